"""Labels are any text: a study of others gives the numbers of one of harmful and benign prompts; further ones are reported."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import saelake
from saelake import queries
from saelake.analysis import verbs
from saelake.analysis.report.page import write_report
from saelake.ingest.recipe import load_recipe
from saelake.warehouse.catalog import connect
from saelake.warehouse.check import check
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import share
from tests.analysis.effects import MORE, TEXTS, Analysed, session
from tests.planted import write_planted

OTHERS = {"harmful": "rude", "benign": "polite"}
ODD = [("kite", "train"), ("soup", "val"), ("lamp", "test"), ("quilt", "test")]
LABELS = """
[labels]
target = "rude"
control = "polite"

[[prompts]]
set = "odd"
file = "odd.jsonl"
label = "odd"
split = { column = "split" }
"""
# Of what counts features on all prompts, the odd ones too, only the counts of target and control are alike.
TABLES = {
    "prompts": "prompt_id, set, split, label_role, category, text",
    "features": "sae_id, feature_id, n_target, n_control",
    "directions": "layer, norm, n_prompts, n_flipped, kl, induced, chosen",
    "alignments": "direction, sae_id, feature_id, cosine",
    "ablations": "prompt_id, condition, method, part, control, k, tau, draw, first_token, p_refusal_token",
    "searches": "prompt_id, method, start, k, n_candidates, n_evaluations",
    "critical_features": "prompt_id, method, start, sae_id, feature_id, n_tokens",
    "waking_edges": "source_sae_id, source_feature_id, sae_id, feature_id, n_prompts, n_woken, p_value",
    "losses": "texts, text_number, method, donor as prompt_id, loss",
    "predictions": "prompt_id, model, split, label, correct, p_target",
    "separations": "sae_id, feature_id, auroc, p_value, n_target, n_control",
    "populations": "population, sae_id, feature_id, n_prompts",
    "taxonomy": "sae_id, feature_id, category, n_prompts, n_user, p_value",
    "comparisons": "kind, measure, label, a, b, k, tau, n, estimate, p_holm",
}
QUESTIONS = (
    "asr", "causal_link", "comparisons", "completions", "critical_features", "direction_by_layer", "directions", "dose_response",
    "first_flip", "first_tokens", "fm_metrics", "inert", "k_choice", "label_separation", "losses", "per_prompt", "rates",
    "search_methods", "self_repair", "set_overlap", "stage3", "steering", "taxonomy", "waking_edges",
)  # fmt: skip
DROPPED = {"run_id", "ablation_id", "set_id", "seconds", "max_activation"}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The study of the fixture `study`, whose prompts have other labels, with prompts of a third one."""
    planted = write_planted(tmp_path_factory.mktemp("labels"))
    rows = [row | {"label": OTHERS[row["label"]]} for row in planted.prompts()]
    odd = [{"instruction": f"show me the {word} in the garden", "split": split} for word, split in ODD]
    for name, written in (("prompts", rows), ("odd", odd), ("texts", TEXTS)):
        (planted.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    planted.recipe.write_text(planted.recipe.read_text() + MORE + LABELS)
    lake = Lake.create(planted.folder / "lake")
    verbs.analyze(load_recipe(planted.recipe), lake)
    return lake


def rows_of(lake: Lake, table: str) -> list[dict[str, Any]]:
    with session(lake) as con:
        return named(con.sql(f"select {TABLES[table]} from {table}"), dict(con.sql(HASHES).fetchall()))


HASHES = "select prompt_id, prompt_hash from prompts where label_role <> 'other'"


def named(relation: Any, hashes: Mapping[int, str]) -> list[dict[str, Any]]:
    """Rows without those of the third label, prompts by their text and labels by those of the first study; in one order."""
    labels = {other: label for label, other in OTHERS.items()}
    found = []
    for values in relation.fetchall():
        row = {name: value for name, value in zip(relation.columns, values, strict=True) if name not in DROPPED}
        row |= {"label": labels.get(row["label"], row["label"])} if "label" in row else {}
        if row.get("label") == "odd" or (row.get("prompt_id") is not None and row["prompt_id"] not in hashes):
            continue
        found.append(row | ({"prompt_id": hashes.get(row["prompt_id"])} if "prompt_id" in row else {}))
    return sorted(found, key=lambda row: str([value for value in row.values() if not isinstance(value, float)]))


def assert_alike(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert len(mine) == len(theirs) > 0
    for one, same in zip(mine, theirs, strict=True):
        for name, value in one.items():
            if isinstance(value, float):
                assert np.isclose(value, same[name], rtol=1e-3, atol=1e-4), (name, one, same)
            else:
                assert value == same[name], (name, one, same)


@pytest.mark.parametrize("table", TABLES)
def test_every_table_is_that_of_harmful_and_benign(study: Analysed, other: Lake, table: str) -> None:
    assert_alike(rows_of(study.lake, table), rows_of(other, table))


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_answers_the_same(study: Analysed, other: Lake, question: str) -> None:
    answers = []
    for lake in (study.lake, other):
        with session(lake) as con:
            answers.append(named(queries.run(con, question), dict(con.sql(HASHES).fetchall())))
    assert_alike(*answers)


def test_prompts_of_a_third_label_are_asked_and_reported_and_not_used(other: Lake, tmp_path: Path) -> None:
    with saelake.open(other.root) as lake:
        roles = "select label, label_role, count(*) from prompts group by all order by all"
        assert lake.sql(roles).fetchall() == [("odd", "other", 4), ("polite", "control", 24), ("rude", "target", 24)]
        rates = lake.query("asr", conditions="none,direction,top_k_own").filter("label = 'odd'").project("condition, n_prompts")
        assert set(rates.fetchall()) == {("none", 2), ("direction", 2), ("top_k_own", 2)}
        assert lake.query("rates", label="odd", conditions="none").project("n_prompts").fetchall() == [(2,)]
        assert {label for (label,) in lake.query("first_tokens").project("label").fetchall()} == {"odd", "polite", "rude"}
        assert {one for (one,) in lake.query("direction_by_layer").project("label").fetchall()} == {"odd", "polite", "rude"}
        used = "select count(*) from {} as t join prompts as p using (prompt_id) where p.label = 'odd'"
        for table in ("searches", "critical_features", "predictions", "waking_passes"):
            assert lake.sql(used.format(table)).fetchall() == [(0,)], table
        asked = "select distinct method from ablations join prompts using (prompt_id) where label = 'odd' order by method"
        assert lake.sql(asked).fetchall() == [("direction",), ("none",), ("top_k",)]
        assert lake.sql("select count(*) from features where n_prompts > n_target + n_control").fetchall()[0][0] > 0
    write_report(other, None, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    text = html.split("<script")[0]
    assert "harmful" not in text
    assert "benign" not in text
    assert "Of odd prompts: answered" in html
    assert not check(other)


def test_answers_to_all_but_control_prompts_stay_where_they_were_made(other: Lake, tmp_path: Path) -> None:
    mine = Lake.create(tmp_path / "mine")
    share(other, tmp_path / "set")
    add(mine, tmp_path / "set", name="added")
    kept = "select label, count(*) filter (where not starts_with(completion, 'withheld:') and completion <> '') from ablations"
    with saelake.open(mine.root) as lake:
        found = dict(lake.sql(f"{kept} join prompts using (prompt_id) group by label").fetchall())
    assert (found["rude"], found["odd"]) == (0, 0)
    assert found["polite"] > 0


def test_a_lake_of_two_studies_reads_each_prompt_by_its_own_studys_labels(study: Analysed, other: Lake, tmp_path: Path) -> None:
    both = Lake.create(tmp_path / "both")
    for name, lake in (("one", study.lake), ("two", other)):
        share(lake, tmp_path / name)
        add(both, tmp_path / name, name=name)
    with connect(both) as con:
        (choice,) = queries.run(con, "k_choice", judge="first_token").project("n_0 + n_1, n_control").fetchall()
        assert choice == (12, 12)
        answered = {prompt_id for (prompt_id,) in queries.run(con, "completions", limit=None).project("prompt_id").fetchall()}
        labels = con.sql("select prompt_id, label from prompts").fetchall()
    assert {label for prompt_id, label in labels if prompt_id in answered} == {"harmful", "rude"}


def test_one_label_is_not_both(tmp_path: Path) -> None:
    planted = write_planted(tmp_path)
    planted.recipe.write_text(planted.recipe.read_text() + '\n[labels]\ntarget = "benign"\n')
    with pytest.raises(UserError, match=r"labels: target and control are both 'benign'"):
        load_recipe(planted.recipe)
