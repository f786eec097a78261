"""Algorithm 1 of the paper (Stage 2, R6), every threshold at once.

As published, the loop evaluates P(C \\ K) and P(C \\ (K u V)) for one random block V after another. After an accept the ablated
set is C \\ (K u V), after a reject (C \\ V) \\ K: the same set. So the sets do not depend on the decisions. With A_t = C without
the first t blocks of one random sequence,

    K_tau = union of the blocks V_{t+1} with |P(A_t) - P(A_{t+1})| / P(A_t) >= tau

for every tau from the same floor(|C| / N) + 1 independent evaluations. The last fewer than N candidates are never tested.
"""

import numpy as np

SMALLEST_P = 1e-12
"""P(A_t) is guarded here: below it, a relative change means nothing."""


def block_sequence(n_candidates: int, block_size: int, rng: np.random.Generator) -> np.ndarray:
    """(n_blocks, block_size): random blocks of places in the pool, without replacement; none if the pool is smaller than N."""
    order = rng.permutation(n_candidates)
    n_blocks = n_candidates // block_size
    return order[: n_blocks * block_size].reshape(n_blocks, block_size)


def deltas(p_refusal: np.ndarray) -> np.ndarray:
    """(n_blocks,): relative change by un-ablating each block, from P(A_0) .. P(A_n) (n_blocks + 1,)."""
    before, after = p_refusal[:-1], p_refusal[1:]
    return np.abs(before - after) / np.maximum(before, SMALLEST_P)


def found_sets(blocks: np.ndarray, p_refusal: np.ndarray, taus: np.ndarray) -> list[np.ndarray]:
    """K_tau for every tau, as sorted places in the pool; they are nested."""
    change = deltas(p_refusal)
    return [np.sort(blocks[change >= tau].ravel()) for tau in taus]
