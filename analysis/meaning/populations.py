"""The groups of features that the stages of the search found, as one table that every question about meaning joins."""

from collections.abc import Iterator, Sequence

from saelake import queries
from saelake.analysis.stage import Stage, Work, searched_split, single_shard
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import POPULATIONS


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    recipe = work.context.recipe
    method = recipe.stage3.critical
    direction = recipe.minimal.direction if method == "minimal" else recipe.algorithm1.direction
    with work.sql() as con:
        asked = {"judge": recipe.verdicts.oracle, "direction": direction, "method": method}
        found = queries.run(con, "populations", **asked).to_arrow_table()
    for name in missing:
        yield name, [Rows.of(POPULATIONS, found)]


STAGE = Stage(
    name="populations",
    parents=("baseline", "candidates", "inert", "waking", "waking_graph", "stage3", "prompts"),
    splits=searched_split,
    sections=("stage3", "minimal", "algorithm1", "verdicts"),
    tables=("populations",),
    shards=single_shard,
    compute=_compute,
    code_version=3,
)
