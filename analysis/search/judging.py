"""Verdicts over stored answers (R7): a run of its own, so that judges can be added without ablating again."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from analysis.stage import Stage, Work, single_shard
from analysis.verdicts import Answer, judge_named
from warehouse.runs import Rows

ANSWERS = """
select ablation_id, text, first_token, p_refusal_token, completion
from ablations join prompts using (prompt_id)
order by ablation_id
"""


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    recipe = work.bench.recipe
    with work.bench.sql(list(work.parents.values())) as con:
        found = con.execute(ANSWERS).fetchall()
    ablation_ids = [row[0] for row in found]
    answers = [Answer(*row[1:]) for row in found]
    parts = []
    for name in recipe.verdicts.judges:
        verdicts = judge_named(name, recipe.model.refusal_tokens)(answers)
        columns = {
            "ablation_id": ablation_ids,
            "judge": [name] * len(verdicts),
            "refused": [v.refused for v in verdicts],
            "degenerate": [v.degenerate for v in verdicts],
            "flipped": [v.flipped for v in verdicts],
            "score": pa.array([v.score for v in verdicts], pa.float32()),
        }
        parts.append(pa.table(columns))
    for name in missing:
        yield name, [Rows("verdicts", pa.concat_tables(parts))]


STAGE = Stage(
    name="verdicts",
    parents=("candidates", "controls", "ingest"),
    sections=("verdicts",),
    tables=("verdicts",),
    shards=single_shard,
    compute=_compute,
)
