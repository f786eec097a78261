"""What the report says in words, of answers made by hand: no more than their rows hold."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from saelake.analysis.report import causes, evidence, interactions, waking
from saelake.analysis.report.answers import MOST_ROWS
from saelake.analysis.report.blocks import Note
from saelake.analysis.report.effects import clamping_sentences
from saelake.analysis.report.page import write_report
from saelake.analysis.report.published import BY_MODEL
from saelake.warehouse.lake import Lake
from saelake.warehouse.runs import ensure_run
from saelake.warehouse.synth import plan
from tests.analysis.reported import answer, answers, given
from tests.warehouse.toys import SHAPE, answers_plan, answers_spec, ingest, ingest_spec


def test_what_is_counted_is_all_rows_and_not_those_that_the_page_carries() -> None:
    features = answer("readouts", [{"is_readout": n % 2 == 0} for n in range(MOST_ROWS + 500)])
    sets = answer("readout_sets", [{"method": "minimal", "n_flip": 4, "n_direct_flip": 1}])
    (note,) = causes._warning(sets, features, given())
    assert isinstance(note, Note)
    assert "1,250 of 2,500 critical features are read-outs" in note.text
    assert features.carried == features.rows[:MOST_ROWS]


def clamped(**values: Any) -> dict[str, Any]:
    usual = {"held_over": "first_token", "value": None, "level": 1.0, "n_features": 2, "n_prompts": 6, "n_degenerate": 0}
    return usual | {"n_clean": 2, "n_refused": 2, "n_begun": 0} | values


def test_as_many_that_stop_as_begin_are_no_negative_result() -> None:
    (said,) = clamping_sentences([clamped(n_begun=2)])
    assert "at most 2 of 6 {control} prompts {shown} that were not" in said
    (said,) = clamping_sentences([clamped(n_refused=1)])
    assert "a negative result" in said


@pytest.mark.parametrize(
    ("level", "how"),
    [
        (0.9, "at up to the 0.9 quantile of their activations,"),
        (1.0, "at up to their largest activation,"),
        (1.5, "at up to 1.5 times their largest activation,"),
    ],
)
def test_levels_are_quantiles_up_to_the_largest_and_times_it_above(level: float, how: str) -> None:
    (said,) = clamping_sentences([clamped(level=0.5), clamped(level=level)])
    assert how in said


def test_a_threshold_is_said_as_it_is() -> None:
    row = {"condition": "algorithm1_common", "tau": 0.25, "flip_rate_of_tested": 1.0, "n_searched": 3, "n_untested": 1}
    assert "at tau 0.25 flips" in evidence.searches(given(search_methods=[row]))


def machine_of(model: str, accuracy: float | None) -> dict[str, Any]:
    return {"model": model, "test_accuracy": accuracy, "n_test": None if accuracy is None else 10, "too_alike": False}


def test_a_machine_that_was_tested_on_nothing_is_passed_over() -> None:
    study = given(fm_metrics=[machine_of("probe", 0.9), machine_of("fm_5", 0.8), machine_of("fm_5_held_out", None)])
    assert evidence.machine(study) == (
        "Right on held-out prompts: probe 90% of 10, fm_5 80% of 10. The probe, which knows no pairs, is right as often."
    )
    assert evidence.machine(given(fm_metrics=[machine_of("fm_5", None), machine_of("fm_20", None)])) == ""
    assert evidence.probe(given(fm_metrics=[machine_of("probe", None)])) == ""


@pytest.mark.parametrize(
    ("read", "said"),
    [
        ([], ""),
        ([(1, "harmbench"), (2, "harmbench")], "One judge, harmbench, read the answers."),
        ([(1, "harmbench"), (2, "phrases")], "harmbench and phrases read answers, but no answer was read by two of them."),
        ([(1, "harmbench"), (1, "phrases")], "harmbench and phrases differ on 0% of 1 answers."),
    ],
)
def test_judges_of_different_answers_are_not_one(read: list[tuple[int, str]], said: str) -> None:
    with duckdb.connect() as con:
        con.execute("create table verdicts (ablation_id bigint, judge text, flipped boolean)")
        for one in read:
            con.execute("insert into verdicts values (?, ?, true)", one)
        assert evidence.judges(given(con)) == said


def backed_up(n: int) -> dict[str, Any]:
    return {"n_backed_up": n, "n_more": n, "n_less": 0}


def test_no_backup_beyond_chance_is_not_none() -> None:
    for n, said in ((0, "No backup is seen here."), (2, "No backup beyond chance is seen here.")):
        (note,) = causes._elsewhere(given(), answer("backups", [backed_up(n)]))
        assert isinstance(note, Note)
        assert note.text.startswith(said)
    assert causes._elsewhere(given(), answer("backups", [backed_up(9)])) == []


def test_the_papers_share_of_what_wakes_at_system_tokens_stands_beside_ours_of_the_same() -> None:
    """LLaMA: 74% wake at system tokens, 97% of these at the first; Gemma: 16% of all at the first."""
    here = waking._beside({"at_first": 0.3, "at_system": 0.6})
    assert here == {"first": "30%", "system": "60%", "first_of_system": "50%"}
    gemma, llama = (BY_MODEL[name]["redundancy"] for name in ("google/gemma-2-2b-it", "meta-llama/Llama-3.1-8B-Instruct"))
    assert (gemma.keys(), llama.keys()) == ({"first"}, {"system", "first_of_system"})
    assert waking._beside({"at_first": None, "at_system": None})["first_of_system"] == "–"


def test_sources_without_controls_are_given_no_reason_that_is_not_known() -> None:
    def said(n_matched: int) -> str:
        rows = [{"layer": 4, "n_sources": 3, "n_matched": n_matched, "n_unmatched": 3 - n_matched, "controls": None}]
        return " ".join(note.text for note in waking._unmatched(answer("waking_controls", rows)) if isinstance(note, Note))

    assert said(3) == ""
    assert "candidates and critical features are no controls" in said(2)
    assert said(0).startswith("None of 3 sources has a matched control. They are in no test"), "the recipe may ask for none"


def stage3(k: int, flip_rate: float, up_to: float, n_unique: int) -> dict[str, Any]:
    return {
        "condition": "stage3",
        "k": k,
        "flip_rate": flip_rate,
        "flip_rate_up_to": up_to,
        "n_unique": n_unique,
        "n_refused": 10,
    }


def test_a_rate_of_stage_3_stands_beside_the_features_of_the_sets_that_it_is_of() -> None:
    best = interactions._best(
        answer("stage3", [stage3(0, 0.9, 0.9, 9), stage3(1, 0.4, 0.9, 5), stage3(2, 0.3, 1.0, 7)]), "stage3"
    )
    assert best is not None
    assert (best["flip_rate"], best["n_unique"]) == (0.4, 5)


def test_runs_that_another_study_published_first_are_listed(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    shared = ingest(lake)
    later = replace(ingest_spec(), recipe="later")
    assert ensure_run(lake, later, plan(SHAPE, later)).run_id == shared.run_id
    mine = ensure_run(lake, replace(answers_spec(), recipe="later"), answers_plan())
    ingest(lake, seed=1)
    write_report(lake, "later", tmp_path / "report.html")
    (rows,) = answers((tmp_path / "report.html").read_text(encoding="utf-8"), "runs")
    assert {row["run_id"] for row in rows} == {shared.run_id, mine.run_id}
