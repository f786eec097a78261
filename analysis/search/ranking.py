"""Features ranked by attribution: by how much, to first order, a prompt's log-odds of a target token fall without them.

One forward and one backward pass say it of every feature at every site. Log-odds, because a probability near 1 has no slope.
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from saelake.analysis.engine.attribution import attribution
from saelake.analysis.engine.library import Engine
from saelake.analysis.engine.requests import codes_of, of_codes
from saelake.analysis.study_context import StudyContext
from saelake.ingest.subject import Subject

PASSES_OF_A_GRADIENT = 3
"""A backward pass costs about two forward ones."""
LEAST = 1e-3
"""The weight, relative to the largest, of a candidate that attribution says nothing of, or the opposite."""


def log_odds(subject: Subject) -> Callable[[Tensor], Tensor]:
    """Of next-token logits (b, v): how likely a target token is beside all others, (b,)."""
    targets = list(subject.target_token_ids)

    def of(logits_bv: Tensor) -> Tensor:
        others_bv = logits_bv.index_fill(1, logits_bv.new_tensor(targets).long(), -float("inf"))
        return logits_bv[:, targets].logsumexp(-1) - others_bv.logsumexp(-1)

    return of


def engine_of(context: StudyContext) -> Engine:
    """What attribution asks, of a study."""
    return Engine(context.subject, list(context.saes.values()))


def ranked(context: StudyContext, engine: Engine, prompt: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The features that fire on a prompt beyond BOS: number of the SAE, id, and what the log-odds fall by without each."""
    found = attribution(engine, [context.token_ids[prompt]], log_odds(context.subject)).combine_chunks()
    roles = context.encoded(prompt).roles
    numbers = context.sae_numbers(found["sae_id"].to_pylist())
    codes, place = np.unique(codes_of(numbers, found["feature_id"].to_numpy()), return_inverse=True)
    falls = -np.bincount(place, found["effect"].to_numpy().astype(np.float64), len(codes))
    counted = np.array([roles[pos] != "bos" for pos in found["pos"].to_pylist()], dtype=bool)
    fires = np.bincount(place, counted, len(codes)) > 0
    return *of_codes(codes[fires]), falls[fires]


def drawn_order(falls: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) places of candidates, each drawn next with a probability in proportion to what falls without it."""
    weights = np.maximum(falls, 0) / max(float(falls.max(initial=0)), np.finfo(float).tiny)
    return np.argsort(-(np.log(np.maximum(weights, LEAST)) + rng.gumbel(size=len(falls))), kind="stable")
