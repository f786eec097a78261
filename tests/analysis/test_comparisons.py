"""Rates and comparisons over prompts that share wordings, and over those that fitted no direction."""

import duckdb
import numpy as np
import pytest

from saelake.analysis.interactions.comparisons import Answers, Prompts, Setting, comparisons, corrected, rates
from saelake.analysis.interactions.statistics import wilson
from saelake.ingest.prompts import content_hash, load_prompts
from saelake.ingest.recipe import load_recipe


@pytest.fixture
def con() -> duckdb.DuckDBPyConnection:
    """12 prompts of three wordings; the first four of the test split stand in val too."""
    con = duckdb.connect()
    con.execute("create table prompts (prompt_id bigint, prompt_hash text, split text, family text)")
    for i in range(12):
        con.execute("insert into prompts values (?, ?, 'test', ?)", [i, f"hash {i}", f"wording {i % 3}"])
    for i in range(4):
        con.execute("insert into prompts values (?, ?, 'val', null)", [100 + i, f"hash {i}"])
    return con


def answered(flips: list[float]) -> Answers:
    return Answers(np.arange(len(flips)), np.array(flips), 1 - 0.9 * np.array(flips) - 0.001 * np.arange(len(flips)))


def test_prompts_of_one_wording_are_one_observation_and_held_out_ones_have_a_row(con: duckdb.DuckDBPyConnection) -> None:
    answers = {
        Setting("minimal", None, None, "harmful"): answered([1.0] * 12),
        Setting("random_minimal", None, None, "harmful"): answered([0.0] * 4 + [1 / 3] * 8),
    }
    prompts = Prompts.of(con, ("train", "val"))
    rows = {(row.measure, row.a): row for row in rates(answers, prompts, "harmful")}
    of_all, held_out = rows["flipped", "random_minimal"], rows["flipped_held_out", "random_minimal"]
    assert (of_all.n, of_all.n_families, held_out.n, held_out.n_families) == (12, 3, 8, 3)
    assert of_all.estimate == pytest.approx(8 / 36)
    assert held_out.estimate == pytest.approx(1 / 3), "the first four were seen by the direction"
    minimal = rows["flipped", "minimal"]
    assert (minimal.low_families, minimal.high_families) == pytest.approx(wilson(3, 3)), "three wordings, whatever their number"
    assert (minimal.low, minimal.high) == pytest.approx(wilson(12, 12))
    flips, p_refusal = corrected(list(comparisons(answers, [("minimal", "random_minimal")], prompts, "harmful", seed=0)))
    assert (flips.test, flips.p, flips.p_families) == ("permutation", 2 / 2**12, 2 / 2**3)
    assert (flips.p_holm, flips.p_families_holm) == (flips.p, flips.p_families), "alone of its measure"
    assert p_refusal.p_families == 2 / 2**3
    assert flips.low_families is not None
    assert flips.high_families is not None
    assert flips.low_families <= flips.estimate <= flips.high_families


def test_without_families_and_without_overlap_nothing_is_added(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("update prompts set family = null")
    con.execute("delete from prompts where split = 'val'")
    answers = {Setting("minimal", None, None, label): answered([1.0] * 12) for label in ("harmful", "benign")}
    rows = list(rates(answers, Prompts.of(con, ("train", "val")), "harmful"))
    assert [(row.measure, row.n_families, row.low_families) for row in rows] == [("flipped", None, None)] * 2


def test_the_organisms_prompts_tell_their_wordings() -> None:
    prompts = load_prompts(load_recipe("organism"))
    assert len({prompt.family for prompt in prompts}) == 16
    for prompt in prompts:
        start, end = str(prompt.family).split("{action}")
        assert prompt.text.startswith(start)
        assert prompt.text.endswith(end)
    alone = [prompt.__class__(**(vars(prompt) | {"family": None})) for prompt in prompts]
    assert content_hash(alone) != content_hash(prompts), "families decide intervals: a run is another"
