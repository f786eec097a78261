"""Critical features that do not fire on the very prompt that they are critical for (R8): what is lost without them?

Every set that Stage 2 found is ablated in two parts: what of it fires on the prompt, and what does not.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from saelake import queries
from saelake.analysis.engine.requests import Request
from saelake.analysis.search import minimal
from saelake.analysis.search.answers import Ablation, ablation_rows
from saelake.analysis.search.candidates import shards_of_split
from saelake.analysis.stage import Condition, Stage, Work, searched_split
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import CRITICAL_FEATURES

PARTS = ("active", "silent")
MINIMAL_ACTIVE = Condition("minimal", "active")


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context, shards = work.context, shards_of_split(work.context.study, "inert")
    with work.sql() as con:
        critical = queries.run(con, "critical_features", judge=context.recipe.verdicts.oracle).to_arrow_table()
    columns = {name: critical[name].to_numpy() for name in critical.column_names}
    for name in missing:
        mine = np.isin(columns["prompt_id"], context.prompt_ids[list(shards[name])])
        asked = list(_parts(work, {n: column[mine] for n, column in columns.items()}))
        yield name, [*ablation_rows(context, work.spec.stage, asked), Rows.of(CRITICAL_FEATURES, critical.filter(mine))]


def _parts(work: Work, critical: Mapping[str, np.ndarray]) -> Iterator[Ablation]:
    """Both parts of every set, the empty ones too: what they flip is what nothing flips."""
    keys = list(zip(critical["prompt_id"].tolist(), critical["method"].tolist(), critical["start"].tolist(), strict=True))
    members: dict[tuple[int, str, int], list[int]] = {}
    for row, key in enumerate(keys):
        members.setdefault(key, []).append(row)
    for (prompt_id, method, start), rows in members.items():
        tau = None if method == "minimal" else float(critical["tau"][rows[0]])
        for part in PARTS:
            kept = [row for row in rows if (critical["n_tokens"][row] > 0) == (part == "active")]
            features = work.context.feature_set(critical, kept)
            draw = start if method == "minimal" else None
            yield Ablation(Request(work.context.number_of[prompt_id], features), Condition(method, part), draw=draw, tau=tau)


STAGE = Stage(
    name="inert",
    parents=("minimal", "algorithm1", "prompts", "activations"),
    splits=searched_split,
    sections=("generation", "verdicts", "capture"),
    tables=("feature_sets", "ablations", "verdicts", "critical_features"),
    shards=lambda study: list(shards_of_split(study, "inert")),
    compute=_compute,
    conditions=("minimal", "algorithm1"),
    compared=((minimal.FOUND, MINIMAL_ACTIVE),),
)
