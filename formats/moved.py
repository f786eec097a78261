"""Which tokens' logits a feature moves most, for the tools that show them: those that this lake has computed, else those that
another tool has told."""

from typing import TYPE_CHECKING, NamedTuple

from saelake.analysis.meaning.explanations import KnownSae

if TYPE_CHECKING:
    from saelake.lake import OpenLake

LOGITS = """
with own as (
    select feature_id, if(promotes, 'promoted', 'suppressed') as side, rank, token, token_id, logit, 0 as turn, run_id
    from feature_logits where sae_id = $1
    union all
    select feature_id, side, rank, token, null, logit, 1, run_id from reported_logits where sae_id = $1
)
select feature_id, side, list(token order by rank), list(logit order by rank),
    list(token_id order by rank) filter (where token_id is not null)
from own
group by feature_id, side, turn, run_id
qualify row_number() over (partition by feature_id, side order by turn, run_id) = 1
"""


class Moved(NamedTuple):
    """One side of a feature, strongest first."""

    tokens: list[str]
    logits: list[float]
    token_ids: list[int]
    """None where another tool has told them, by their texts alone."""


NOTHING = Moved([], [], [])


def moved_logits(opened: "OpenLake", sae: KnownSae) -> dict[tuple[int, str], Moved]:
    """feature_id and side, which is promoted or suppressed -> what it moves."""
    rows = opened.sql(LOGITS, [sae.sae_id]).fetchall()
    return {(row[0], row[1]): Moved(row[2], row[3], row[4] or []) for row in rows}
