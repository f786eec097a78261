"""Which tokens' logits a feature moves most, for tools that show them: as this lake has computed, else as another tool says."""

from typing import TYPE_CHECKING, NamedTuple

from saelake import queries
from saelake.analysis.meaning.explanations import KnownSae

if TYPE_CHECKING:
    from saelake.lake import OpenLake


class Moved(NamedTuple):
    """One side of a feature, strongest first."""

    tokens: list[str]
    logits: list[float]
    token_ids: list[int]
    """Empty where another tool has told them, by their texts alone."""


NOTHING = Moved([], [], [])


def moved_logits(opened: "OpenLake", sae: KnownSae) -> dict[tuple[int, str], Moved]:
    """feature_id and side, which is promoted or suppressed -> what it moves."""
    rows = opened.sql(queries.step("moved_logits"), {"sae_id": sae.sae_id}).fetchall()
    return {(row[0], row[1]): Moved(row[2], row[3], row[4] or []) for row in rows}
