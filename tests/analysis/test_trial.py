"""What `saelake plan --trial` expects of a study, against what the study takes."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from saelake import cli
from saelake.analysis import trial
from saelake.analysis.stages import stages
from saelake.ingest.recipe import load_recipe
from saelake.warehouse.errors import UserError
from saelake.warehouse.records import Lake

SECONDS = st.floats(0, 1e4)


@given(st.floats(0, 1e3), st.floats(0, 1e2), st.integers(1, 50), st.integers(51, 10_000))
def test_a_fixed_part_and_one_for_each_prompt_are_told_apart(fixed: float, each: float, few: int, n: int) -> None:
    values = fixed + each * few, fixed + each * 2 * few
    assert trial._line((few, 2 * few), values, n) == pytest.approx(fixed + each * n, abs=1e-6 * n)


@given(SECONDS, SECONDS, st.integers(1, 50), st.integers(51, 10_000))
def test_what_is_expected_lies_between_nothing_more_and_all_in_proportion(low: float, high: float, few: int, n: int) -> None:
    assert high <= trial._line((few, 2 * few), (low, high), max(n, 2 * few)) <= high * max(n / (2 * few), 1) * (1 + 1e-9)


def test_a_trial_of_the_planted_network_expects_its_lake(planted_lake: Path) -> None:
    recipe = load_recipe("planted")
    tried = trial.try_study(recipe, 4)
    analysed = {"prompts", "activations", *(one.name for one in stages(recipe))}  # an atlas and an audit are there too
    n_bytes = sum(file.n_bytes for record in Lake(planted_lake).records() if record.stage in analysed for file in record.files)
    assert tried.limits == (4, 8)
    assert tried.n_bytes == pytest.approx(n_bytes, rel=0.15)  # most of it does not depend on the prompts
    assert [one.stage for one in tried.stages] == [trial.INGEST, *(one.name for one in stages(recipe)), trial.BETWEEN]
    assert {one.stage: one.n_prompts for one in tried.stages}[trial.INGEST] == 48
    assert {one.stage: one.n_prompts for one in tried.stages}["minimal"] == 12  # of the split that is searched
    assert tried.seconds > 0
    assert tried.memory > 50e6


def test_a_trial_of_all_prompts_is_refused() -> None:
    with pytest.raises(UserError, match="has more prompts: analyse it whole"):
        trial.try_study(load_recipe("planted"), 12)
    said = CliRunner().invoke(cli.main, ["plan", "planted", "--trial", "1"])
    assert said.exit_code == 2
    assert "1 is not in the range" in said.output
