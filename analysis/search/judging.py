"""Verdicts over stored answers (R7): a run for each judge, so that judges can be added without ablating again."""

from collections.abc import Iterator, Sequence
from functools import partial

from analysis.search.answers import verdict_rows
from analysis.stage import Stage, Work, single_shard
from analysis.verdicts import Answer, judge_named
from warehouse.runs import Rows

ANSWERS = """
select ablation_id, text, first_token, p_refusal_token, completion
from ablations join prompts using (prompt_id)
order by ablation_id
"""


def _compute(judge: str, work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    judgement = judge_named(judge, work.bench.recipe.model.refusal_tokens)
    with work.bench.sql(list(work.parents.values())) as con:
        found = con.execute(ANSWERS).fetchall()
    verdicts = judgement([Answer(*row[1:]) for row in found])
    for name in missing:
        yield name, [verdict_rows([row[0] for row in found], judge, verdicts)]


def stage(judge: str, answered_by: Sequence[str]) -> Stage:
    """The stage in which one judge reads the answers of some stages."""
    return Stage(
        name=f"verdicts_{judge}",
        parents=(*answered_by, "ingest"),
        sections=(),
        tables=("verdicts",),
        shards=single_shard,
        compute=partial(_compute, judge),
    )
