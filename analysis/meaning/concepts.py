"""The recipe's concepts as a table, so that SQL alone groups explanations by them (R20)."""

from collections.abc import Iterator, Sequence

from saelake.analysis.stage import Stage, Work, single_shard
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import CONCEPTS


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    patterns = work.context.recipe.concepts.patterns
    rows = [(rank, concept, one) for rank, concept in enumerate(patterns) for one in dict.fromkeys(patterns[concept])]
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("rank", "concept", "pattern"))}
    for name in missing:
        yield name, [Rows.of(CONCEPTS, columns)]


STAGE = Stage(
    name="concepts",
    parents=("prompts",),
    sections=("concepts",),
    tables=("concepts",),
    shards=single_shard,
    compute=_compute,
)
