"""Rates and comparisons over prompts that share wordings, and over those that fitted no direction."""

import duckdb
import numpy as np
import pytest

from saelake.analysis.interactions.comparisons import (
    Answers,
    Prompts,
    Row,
    Setting,
    comparisons,
    corrected,
    models,
    rates,
    with_nothing_new,
)
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
    flips, p_target = corrected(list(comparisons(answers, [("minimal", "random_minimal")], prompts, "harmful", seed=0)))
    assert (flips.test, flips.p, flips.p_families) == ("permutation", 2 / 2**12, 2 / 2**3)
    assert (flips.p_holm, flips.p_families_holm) == (flips.p, flips.p_families), "alone of its measure"
    assert p_target.p_families == 2 / 2**3
    assert flips.low_families is not None
    assert flips.high_families is not None
    assert flips.low_families <= flips.estimate <= flips.high_families


def test_without_families_and_without_overlap_nothing_is_added(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("update prompts set family = null")
    con.execute("delete from prompts where split = 'val'")
    answers = {Setting("minimal", None, None, label): answered([1.0] * 12) for label in ("harmful", "benign")}
    rows = list(rates(answers, Prompts.of(con, ("train", "val")), "harmful"))
    assert [(row.measure, row.n_families, row.low_families) for row in rows] == [("flipped", None, None)] * 2


def test_every_measure_is_a_family_of_tests_and_rates_are_none() -> None:
    def row(measure: str, p: float | None, p_families: float | None = None) -> Row:
        return Row("comparison", measure, "harmful", "a", 9, 0.5, 0.1, 0.9, "t", p=p, p_families=p_families)

    rows = [row("x", 0.01, 0.04), row("y", 0.02), row("x", None), row("x", 0.03, 0.01), row("x", 0.02), row("y", 0.5, 0.5)]
    found = corrected(rows)
    assert [one.p_holm for one in found] == pytest.approx([0.03, 0.04, None, 0.04, 0.04, 0.5])
    assert [one.p_families_holm for one in found] == pytest.approx([0.04, None, None, 0.02, None, 0.5])
    assert [(one.p, one.p_families) for one in found] == [(one.p, one.p_families) for one in rows]


def test_stage_3_is_compared_with_the_critical_features_that_it_adds_to(con: duckdb.DuckDBPyConnection) -> None:
    """Those of the recipe's method, of the first start and whatever tau: not of all starts, nor of another method."""
    con.execute(
        "create table ablations (prompt_id int, method text, part text, control text, draw int, tau float, p_refusal_token float)"
    )
    con.execute("alter table ablations add column ablation_id int")
    con.execute("create table verdicts (ablation_id int, judge text, flipped bool)")
    stored = [
        ("algorithm1", None, 0.1, True),
        ("algorithm1", None, 0.4, False),
        ("minimal", 0, None, False),
        ("minimal", 1, None, True),
    ]
    for i, (method, draw, tau, flipped) in enumerate(stored):
        prompt = 1 if tau == 0.4 else 0
        con.execute("insert into ablations values (?, ?, 'active', null, ?, ?, 0.25, ?)", [prompt, method, draw, tau, i])
        con.execute("insert into verdicts values (?, 'phrases', ?)", [i, flipped])
    answers = {Setting("stage3", k, None, "harmful"): answered([1.0, 1.0, 0.0]) for k in (5, 10)}
    for method, flips in (("algorithm1", [1, 0, 0]), ("minimal", [0, 0, 0])):
        compared, pairs = with_nothing_new(con, answers, "phrases", method, "harmful")
        assert compared[Setting(f"{method}_active", None, None, "harmful")].flipped.tolist() == flips
        rows = list(comparisons(compared, pairs, Prompts(None, frozenset()), "harmful", seed=0))
        told = {(row.a, row.k, row.b, row.measure): (row.n, row.estimate) for row in rows}
        assert told["stage3", 5, f"{method}_active", "flipped"] == (3, pytest.approx((2 - sum(flips)) / 3))
        assert told["stage3", 10, f"{method}_active", "p_refusal_token"][0] == (2 if method == "algorithm1" else 1)
    assert with_nothing_new(con, {}, "phrases", "minimal", "harmful") == ({}, [])


def test_machines_are_compared_with_the_probe_on_the_same_prompts_alone(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("create table predictions (model text, prompt_id bigint, split text, correct bool)")
    right = {"fm_2": [1, 1, 1, 0], "probe": [1, 0, 1, 0], "fm_2_held_out": [1, 1]}
    for model, answers in right.items():
        for i, is_right in enumerate(answers):
            con.execute("insert into predictions values (?, ?, 'test', ?)", [model, i, bool(is_right)])
        con.execute("insert into predictions values (?, 99, 'train', false)", [model])
    rows = list(models(con))
    rates_of = {row.a: (row.kind, row.n, row.estimate) for row in rows if not row.b}
    assert rates_of == {"fm_2": ("rate", 4, 0.75), "probe": ("rate", 4, 0.5), "fm_2_held_out": ("rate", 2, 1.0)}
    (compared,) = [row for row in rows if row.b]
    assert (compared.a, compared.b, compared.n, compared.estimate, compared.p) == ("fm_2", "probe", 4, 0.25, 1.0)
    assert (compared.measure, compared.label, compared.test) == ("correct", "all", "mcnemar_exact")


def test_what_is_compared_has_the_same_k_and_tau_or_none() -> None:
    answers = {
        Setting("a", 2, None, "harmful"): answered([1.0] * 6),
        Setting("a", 4, None, "harmful"): answered([1.0] * 6),
        Setting("a", 2, None, "benign"): answered([1.0] * 6),
        Setting("b", 2, None, "harmful"): answered([0.0] * 6),
        Setting("c", None, None, "harmful"): answered([0.0] * 6),
    }
    alone = Prompts(None, frozenset())
    rows = list(comparisons(answers, [("a", "b"), ("a", "c"), ("b", "absent")], alone, "harmful", seed=0))
    assert [(row.a, row.k, row.b, row.label) for row in rows if row.measure == "flipped"] == [
        ("a", 2, "b", "harmful"),
        ("a", 2, "c", "harmful"),
        ("a", 4, "c", "harmful"),
    ]
    unknown = answered([1.0] * 6)
    unknown.p_refusal_token[[0, 4]] = np.nan
    found = list(comparisons(answers | {Setting("a", 2, None, "harmful"): unknown}, [("a", "b")], alone, "harmful", seed=0))
    assert [(row.measure, row.n) for row in found] == [("flipped", 6), ("p_refusal_token", 4)]


def test_the_organisms_prompts_tell_their_wordings() -> None:
    prompts = load_prompts(load_recipe("organism"))
    assert len({prompt.family for prompt in prompts}) == 16
    for prompt in prompts:
        start, end = str(prompt.family).split("{action}")
        assert prompt.text.startswith(start)
        assert prompt.text.endswith(end)
    alone = [prompt.__class__(**(vars(prompt) | {"family": None})) for prompt in prompts]
    assert content_hash(alone) != content_hash(prompts), "families decide intervals: a run is another"
