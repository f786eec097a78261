"""Algorithm 1 by the identity equals the published loop, evaluated literally from the same draws."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from saelake.analysis.search.algorithm1 import block_sequence, found_sets
from saelake.analysis.search.noise import changes
from tests.analysis.literal import literal_loop

TAUS = np.arange(1, 9) / 10


@given(n=st.integers(1, 60), block_size=st.integers(1, 7), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_every_threshold_from_one_sequence_equals_the_published_loop(n: int, block_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = block_sequence(n, block_size, rng)
    weights = rng.standard_normal(n) * 2

    def p(ablated: frozenset[int]) -> float:
        """A stand-in for the model: any function of the ablated set, in float64, above the guard against division by zero."""
        return 1e-9 + float(1 / (1 + np.exp(-2 + weights[sorted(ablated)].sum())))

    ablated = [set(range(n)) - set(blocks[:t].ravel().tolist()) for t in range(len(blocks) + 1)]
    p_target = np.array([p(frozenset(a)) for a in ablated])
    for tau, found in zip(TAUS, found_sets(blocks, p_target, TAUS), strict=True):
        assert set(found.tolist()) == literal_loop(n, block_size, tau, blocks, p)


@given(n=st.integers(0, 60), block_size=st.integers(1, 7), seed=st.integers(0, 2**32 - 1))
def test_blocks_are_disjoint_and_leave_fewer_than_one_block(n: int, block_size: int, seed: int) -> None:
    blocks = block_sequence(n, block_size, np.random.default_rng(seed))
    assert blocks.shape == (n // block_size, block_size)
    assert len(set(blocks.ravel().tolist())) == blocks.size


def test_a_vanished_refusal_probability_gives_no_infinite_change() -> None:
    assert np.isfinite(changes(np.array([0.0, 0.5, 0.0]))).all()


@given(n=st.integers(0, 60), block_size=st.integers(1, 7), seed=st.integers(0, 2**32 - 1))
def test_sets_are_nested_in_the_threshold(n: int, block_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = block_sequence(n, block_size, rng)
    sets = found_sets(blocks, rng.random(len(blocks) + 1), TAUS)
    assert all(set(small) <= set(large) for large, small in pairwise(sets))
