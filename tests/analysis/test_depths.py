"""Which requests resume from one layer: all that is asked is computed, from no higher than it may be, in few batches."""

from hypothesis import given
from hypothesis import strategies as st

from saelake.analysis.engine.depths import together

REQUESTS = st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 3)), max_size=20)
"""The layer that each could resume from, and its prompt."""
TOKENS = (3, 5, 7, 11)


def grouped(requests: list[tuple[int, int]], worth: int) -> list[tuple[int, list[int]]]:
    starts, prompts = [start for start, _ in requests], [prompt for _, prompt in requests]
    return list(together(starts, prompts, [TOKENS[prompt] for prompt in prompts], worth))


@given(REQUESTS, st.integers(0, 60))
def test_every_request_is_in_one_group_which_resumes_where_its_lowest_can(requests: list[tuple[int, int]], worth: int) -> None:
    groups = grouped(requests, worth)
    assert sorted(place for _, members in groups for place in members) == list(range(len(requests)))
    assert all(layer == min(requests[place][0] for place in members) for layer, members in groups)
    assert [layer for layer, _ in groups] == sorted({layer for layer, _ in groups})


def test_requests_of_other_prompts_share_a_batch_for_nothing() -> None:
    assert grouped([(4, 0), (1, 1), (5, 2), (1, 3)], worth=0) == [(1, [1, 3, 0, 2])]


def test_many_of_one_prompt_resume_from_as_high_as_they_can_unless_little_is_read_again() -> None:
    requests = [(0, 0), *[(3, 1)] * 5]  # four of them would read five tokens again, in three layers
    assert grouped(requests, worth=59) == [(0, [0]), (3, [1, 2, 3, 4, 5])]
    assert grouped(requests, worth=60) == [(0, [0, 1, 2, 3, 4, 5])]
