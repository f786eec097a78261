"""What everything is compared with: the unmodified model, and the refusal direction projected out of every layer (R2, R3)."""

from collections.abc import Iterator, Sequence

from saelake.analysis.engine.requests import Request
from saelake.analysis.search.answers import Ablation, ablation_rows
from saelake.analysis.search.candidates import CHOSEN, OWN, shards_of_split
from saelake.analysis.search.directions import chosen_everywhere
from saelake.analysis.stage import Condition, Stage, Work, searched_split
from saelake.warehouse.runs import Rows

NONE = Condition("none")
DIRECTION = Condition("direction")


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context, shards = work.context, shards_of_split(work.context.study, "baseline")
    with work.sql("direction") as con:
        direction = chosen_everywhere(context, con)
    for name in missing:
        asked = [Ablation(Request(p), NONE) for p in shards[name]]
        if direction is not None:
            asked += [Ablation(Request(p, direction=direction), DIRECTION) for p in shards[name]]
        yield name, ablation_rows(context, work.spec.stage, asked)


STAGE = Stage(
    name="baseline",
    parents=("direction", "prompts"),
    splits=searched_split,
    sections=("candidates", "generation", "verdicts", "capture"),
    tables=("feature_sets", "ablations", "verdicts"),
    shards=lambda study: list(shards_of_split(study, "baseline")),
    compute=_compute,
    conditions=("none", "direction"),
    compared=((OWN, DIRECTION), (CHOSEN, DIRECTION)),
)
