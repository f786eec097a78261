"""The guaranteed search: its result flips and is 1-minimal, whatever function decides what flips."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from saelake.analysis.search.minimal import Members, Search, as_they_end, drawn_set, ranked_set, run_together
from saelake.analysis.search.one_prompt import _steps


@given(n=st.integers(1, 12), seed=st.integers(0, 2**32 - 1), share=st.floats(0.02, 0.9))
@settings(max_examples=150, deadline=None)
def test_ends_one_minimal_even_where_flipping_is_not_monotone(n: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    table = rng.random(2**n) < share
    table[0], table[-1] = False, True  # nothing does not flip, the whole pool does

    def flips(members: Members) -> bool:
        return bool(table[sum(1 << i for i in members)])

    searches = {start: drawn_set(n, np.random.default_rng(start)) for start in range(4)}
    found = run_together(searches, lambda trials: [flips(members) for _, members in trials])
    for end in found.values():
        assert flips(end.members)
        assert not any(flips(tuple(m for m in end.members if m != left_out)) for left_out in end.members)


@given(n=st.integers(2, 200), causes=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_finds_exactly_the_causes_where_all_are_needed(n: int, causes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    assume(causes <= n)
    needed = set(rng.choice(n, causes, replace=False).tolist())
    found = run_together({0: drawn_set(n, rng)}, lambda trials: [needed <= set(members) for _, members in trials])
    assert set(found[0].members) == needed


def test_other_starts_find_the_alternatives() -> None:
    alternatives = [{0, 1}, {2}, {3, 4, 5}]
    searches = {start: drawn_set(30, np.random.default_rng(start)) for start in range(60)}
    found = run_together(searches, lambda trials: [any(a <= set(m) for a in alternatives) for _, m in trials])
    ends = {frozenset(f.members) for f in found.values()}
    assert ends == {frozenset(a) for a in alternatives}


def test_all_pending_trials_go_in_one_call_a_round() -> None:
    calls = []

    def flips(trials: Sequence[tuple[int, Members]]) -> list[bool]:
        calls.append({key for key, _ in trials})
        return [7 in members for _, members in trials]

    found = run_together({key: drawn_set(16, np.random.default_rng(key)) for key in range(5)}, flips)
    assert all(f.members == (7,) for f in found.values())
    assert calls[0] == set(range(5))
    assert sum(f.n_evaluations for f in found.values()) < 5 * 16
    assert len(calls) <= 2 * int(np.log2(16)) + 2


def test_rounds_are_full_and_what_began_first_ends_first() -> None:
    """No search begins, or goes on, that a round of three trials would be full without."""
    sizes, begun, rounds = [16, 2, 9, 1, 30, 4, 12], list[int](), list[Counter[int]]()

    def searches() -> Iterator[tuple[int, Search]]:
        for key, size in enumerate(sizes):
            begun.append(key)
            yield key, drawn_set(size, np.random.default_rng(key))

    def flips(trials: Sequence[tuple[int, Members]]) -> list[bool]:
        rounds.append(Counter(key for key, _ in trials))
        n_waiting = len(sizes) - len(begun)
        assert len(trials) >= 3 or not n_waiting
        assert len(trials) - rounds[-1][max(rounds[-1])] < 3, "the last one is needed"
        assert max(rounds[-1]) == begun[-1] or len(trials) >= 3
        return [0 in members for _, members in trials]

    found, begun_by_then = {}, []
    for key, end in as_they_end(searches(), flips, 3):
        found[key] = end
        begun_by_then.append(len(begun))
    assert begun_by_then[0] < 4 < len(sizes) == begun_by_then[-1]
    of_first = [0 in keys for keys in rounds]
    assert of_first == sorted(of_first, reverse=True), "the first is in every round until it ends"
    assert found == run_together(dict(searches()), flips_of_all)


def flips_of_all(trials: Sequence[tuple[int, Members]]) -> list[bool]:
    return [0 in members for _, members in trials]


def test_a_kill_costs_few_shards() -> None:
    """Of 80 prompts in shards of eight, whose searches ask for much: at no time are the trials of more than three unfinished."""
    size, n_prompts, shard = 200, 80, 8
    paid, ended, most_open = Counter[int](), Counter[int](), 0

    def flips(trials: Sequence[tuple[int, Members]]) -> list[bool]:
        nonlocal most_open
        paid.update(key for key, _ in trials)
        most_open = max(most_open, sum(n for key, n in paid.items() if ended[key // shard] < shard))
        return [{key, key + 40, key + 90} <= set(members) for key, members in trials]

    searches = [(key, drawn_set(size, np.random.default_rng(key))) for key in range(n_prompts)]
    for key, _ in as_they_end(searches, flips, 64):
        ended[key // shard] += 1
    assert most_open <= 3 * paid.total() * shard / n_prompts


def test_a_pool_of_one_is_its_own_minimal_set() -> None:
    assert run_together({0: drawn_set(1, np.random.default_rng(0))}, lambda trials: [False] * len(trials))[0].members == (0,)


class InOrder(np.random.Generator):
    """Draws the candidates in their order."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def permutation(self, x: Any, axis: int = 0) -> Any:
        return np.arange(x)


def test_what_a_search_asks_for_by_hand() -> None:
    """Of eight candidates 2 and 5 are needed: halves, quarters, two of which can go together, and so on down to single ones."""
    rounds: list[list[Members]] = []

    def flips(trials: Sequence[tuple[int, Members]]) -> list[bool]:
        rounds.append([members for _, members in trials])
        return [{2, 5} <= set(members) for _, members in trials]

    found = run_together({0: drawn_set(8, InOrder())}, flips)[0]
    assert rounds == [
        [(4, 5, 6, 7), (0, 1, 2, 3)],
        [(2, 3, 4, 5, 6, 7), (0, 1, 4, 5, 6, 7), (0, 1, 2, 3, 6, 7), (0, 1, 2, 3, 4, 5)],
        [(2, 3, 4, 5)],
        [(4, 5), (2, 3)],
        [(3, 4, 5), (2, 4, 5), (2, 3, 5), (2, 3, 4)],
        [(2, 5)],
        [(5,), (2,)],
    ]
    assert (found.members, found.n_evaluations) == ((2, 5), 16)


def test_a_block_that_cannot_go_with_the_others_stays() -> None:
    """Flipping is not monotone: 0 or 1 may be left out, but not both, so only one of them is."""
    rounds: list[list[Members]] = []

    def flips(trials: Sequence[tuple[int, Members]]) -> list[bool]:
        rounds.append([members for _, members in trials])
        return [bool({0, 1} & set(members)) and 3 in members for _, members in trials]

    found = run_together({0: drawn_set(4, InOrder())}, flips)[0]
    assert rounds[:3] == [[(2, 3), (0, 1)], [(1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)], [(2, 3), (3,)]]
    assert rounds[3:] == [[(2, 3), (1, 3), (1, 2)], [(3,), (1,)]], "in as many blocks as are left"
    assert (found.members, found.n_evaluations) == ((1, 3), 13)


def test_beginnings_of_an_order_grow_by_one_and_then_by_a_quarter() -> None:
    order = [3, 1, 2, 0, *range(4, 40)]
    steps = _steps(order)
    assert [len(step) for step in steps] == [*range(1, 17), 20, 25, 31, 38]
    assert steps[:3] == [(3,), (1, 3), (1, 2, 3)]


def asked_by_rank(order: list[int], flips: Callable[[set[int]], bool]) -> tuple[list[list[Members]], Members]:
    """What a search along an order asks for in each round, and finds."""
    rounds: list[list[Members]] = []

    def answer(trials: Sequence[tuple[int, Members]]) -> list[bool]:
        rounds.append([members for _, members in trials])
        return [flips(set(members)) for _, members in trials]

    found = run_together({0: ranked_set(order)}, answer)[0]
    assert found.n_evaluations == sum(map(len, rounds))
    return rounds, found.members


def test_what_a_search_along_an_order_asks_for_by_hand() -> None:
    """2 and 5 are needed: the shortest beginning is found by doubling and halving, then what it needs before its last one."""
    rounds, found = asked_by_rank(list(range(8)), {2, 5}.issubset)
    assert rounds == [
        [(0,)],
        [(0, 1)],
        [(0, 1, 2, 3)],
        [(0, 1, 2, 3, 4, 5, 6, 7)],
        [(0, 1, 2, 3, 4, 5)],
        [(0, 1, 2, 3, 4)],
        [(5,)],
        [(0, 5)],
        [(0, 1, 5)],
        [(0, 1, 2, 3, 5)],
        [(0, 1, 2, 5)],
        [(2, 5)],
        [(2,)],
    ]
    assert found == (2, 5)
    rounds, found = asked_by_rank([3, 1, 0, 2, 4], {4}.issubset)
    assert rounds == [[(3,)], [(1, 3)], [(0, 1, 2, 3)], [(0, 1, 2, 3, 4)], [(4,)]]
    assert found == (4,)


def test_the_first_sixty_four_are_tried_alone_in_growing_groups() -> None:
    for cause, expected in ((63, (63,)), (64, ())):
        rounds, found = asked_by_rank(list(range(100)), {cause}.__eq__)
        alone = [[members[0] for members in one] for one in rounds if len(one) > 1]
        assert alone == [list(range(1, 4)), list(range(4, 12)), list(range(12, 28)), list(range(28, 60)), list(range(60, 64))]
        assert found == expected
