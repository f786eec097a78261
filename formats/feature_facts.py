"""What tools show of a feature: how often it fires, and which tokens' logits it moves most."""

from typing import TYPE_CHECKING, Any, NamedTuple

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
    """feature_id, and promoted or suppressed -> what it moves: as this lake has computed, else as another tool says."""
    rows = opened.sql(queries.step("moved_logits"), {"sae_id": sae.sae_id}).fetchall()
    return {(row[0], row[1]): Moved(row[2], row[3], row[4] or []) for row in rows}


def densities(opened: "OpenLake", sae: KnownSae) -> list[tuple[Any, ...]]:
    """(feature_id, share of the tokens on which it fires, its largest activation, the SAE's hook), feature by feature."""
    return opened.sql(queries.step("feature_densities"), {"sae_id": sae.sae_id}).fetchall()
