"""Verdicts over stored answers (R7): a run for each judge, so that judges can be added without ablating again."""

from collections.abc import Iterator, Sequence
from functools import partial

from saelake import queries
from saelake.analysis.judges.protocol import Answer
from saelake.analysis.judges.verdicts import judge_identity, judge_named
from saelake.analysis.search.answers import verdict_rows
from saelake.analysis.search.candidates import shards_of_split
from saelake.analysis.stage import Stage, Work, searched_split
from saelake.warehouse.runs import Rows

PREFIX = "verdicts_"
"""A judge's stage is called by its name behind this."""


def _compute(judge: str, work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    if "model" in judge_named(judge, work.context.recipe).needs:
        work.context.make_room_for(judge)
    judgement = work.context.judge(judge)
    shards = shards_of_split(work.context.study)
    with work.sql() as con:
        for name in missing:
            found = con.execute(
                queries.step("unjudged_answers"),
                {"prompt_ids": work.context.prompt_ids[list(shards[name])].tolist(), "judge": judge},
            ).fetchall()
            verdicts = judgement(
                [Answer(text, first, p, said, label=label, role=role) for _, text, first, p, said, label, role in found]
            )
            yield name, [verdict_rows([row[0] for row in found], [judge] * len(found), verdicts)]


def stage(judge: str, answered_by: Sequence[str]) -> Stage:
    """The stage in which one judge reads the answers of some stages."""
    return Stage(
        name=PREFIX + judge,
        parents=(*answered_by, "prompts"),
        splits=searched_split,
        sections=(),
        tables=("verdicts",),
        shards=lambda study: list(shards_of_split(study)),
        compute=partial(_compute, judge),
        identity=lambda study: {"judge": judge_identity(judge, study.recipe)},
    )
