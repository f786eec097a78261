"""How often each kind of change, within each budget, brings the behaviour back: rates over prompts, with families as clusters."""

from collections.abc import Iterator, Sequence

import numpy as np

from saelake import queries
from saelake.analysis.interactions.comparisons import Prompts
from saelake.analysis.interactions.statistics import Families
from saelake.analysis.stage import Stage, Work, searched_split, single_shard
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import RECOVERY_RATES


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    with work.sql() as con:
        found = con.execute(queries.step("audited_prompts")).fetchall()
        prompts = Prompts.of(con, ())
    by_group: dict[tuple[object, ...], list[tuple[int, bool]]] = {}
    for *group, prompt_id, recovered in found:
        by_group.setdefault(tuple(group), []).append((prompt_id, recovered))
    names = ("label_role", "source", "control", "layer", "kind", "budget", "n_prompts", "n_recovered", "rate", "low", "high")
    columns: dict[str, list[object]] = {name: [] for name in names}
    for asked, answers in by_group.items():
        ids, recovered = (
            np.array([prompt_id for prompt_id, _ in answers]),
            np.array([one for _, one in answers], dtype=np.float64),
        )
        interval = (prompts.families(ids) or Families(np.arange(len(ids)))).rate(recovered)
        for name, value in zip(names, (*asked, len(ids), int(recovered.sum()), float(recovered.mean()), *interval), strict=True):
            columns[name].append(value)
    for name in missing:
        yield name, [Rows.of(RECOVERY_RATES, columns)]


STAGE = Stage(
    name="audit_rates",
    parents=("audit", "prompts"),
    splits=searched_split,
    sections=(),
    tables=("recovery_rates",),
    shards=single_shard,
    compute=_compute,
)
