"""Rows that are written from Python: what is checked, what they are computed from, and what is refused."""

import re
from pathlib import Path

import pytest

import saelake
from saelake.warehouse.lake import Lake
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import Choice, share
from saelake.warehouse.synth import synthesize
from tests.lakes import build_lake
from tests.warehouse import toys


def test_rows_are_written_to_a_lake_as_a_run(tmp_path: Path) -> None:
    build_lake(tmp_path / "lake")
    with saelake.open(tmp_path / "lake") as lake:
        ids = [row[0] for row in lake.sql("select prompt_id from prompts order by prompt_id limit 2").fetchall()]
        answers = {
            "prompt_id": ids,
            "stage": ["notebook"] * 2,
            "method": ["my_edit"] * 2,
            "p_refusal_token": [0.25, 0.5],
            "first_token": ["I", "Sure"],
            "completion": ["I cannot.", "Sure."],
        }
        record = lake.write("ablations", answers, about={"edit": "clamp 5:17 to 3"})
        assert (record.stage, record.recipe, record.about["edit"]) == ("written_ablations", "small", "clamp 5:17 to 3")
        ingest = lake.sql("select run_id from runs where stage = 'ingest'").fetchall()[0]
        assert record.parents == ingest
        found = lake.sql("select prompt_id, p_refusal_token from ablations where condition = 'my_edit' order by prompt_id")
        assert found.fetchall() == [(ids[0], 0.25), (ids[1], 0.5)]
        assert lake.write("ablations", answers).run_id == record.run_id, "the same rows are the same run"
        for rows, expected in (
            (answers | {"prompt_id": [1, 2]}, r"ablations\.prompt_id has ids of no run in this lake"),
            (answers | {"prompt_id": [ids[0], ids[0] + 9999]}, r"ablations\.prompt_id is not in prompts of this run or of one"),
            (answers | {"colour": ["red"] * 2}, "ablations has no column colour"),
            ({"prompt_id": ids}, "rows of ablations lack the column stage"),
            (answers | {"p_refusal_token": ["x", "y"]}, r"ablations\.p_refusal_token cannot be float"),
            (answers | {"p_refusal_token": [0.5, 3.0]}, r"ablations\.p_refusal_token is above 1 in 1 of 2 rows"),
            (answers | {"p_refusal_token": [float("nan"), 0.5]}, r"ablations\.p_refusal_token is not a finite number in 1"),
            (answers | {"k": [-1, None]}, r"ablations\.k is below 0 in 1 of 2 rows"),
            (answers | {"prompt_id": [float(one) for one in ids]}, r"ablations.prompt_id cannot be int64 \(ids pass 2\^53"),
            (answers | {"run_id": ["x"] * 2}, "rows of ablations have the column run_id: leave it out"),
            ([], "there are no rows"),
            (5, "rows cannot be read as a table"),
        ):
            with pytest.raises(saelake.UserError, match=expected):
                lake.write("ablations", rows)
        for table, expected in (
            ("answers", "there is no table answers to write to"),
            (
                "activations_by_prompt",
                "activations_by_prompt to write to: there are ablations, activations, a(?!ctivations_by)",
            ),
            ("prompts", "prompts come into a lake by `saelake ingest` or `saelake import`"),
        ):
            with pytest.raises(saelake.UserError, match=expected):
                lake.write(table, answers)


@pytest.mark.parametrize("name", ["../../../../outside", "a/b", "../x", "", ".x"])
def test_a_study_is_no_path(name: str, tmp_path: Path) -> None:
    lake = build_lake(tmp_path / "deep" / "er" / "lake")
    before = sorted(tmp_path.rglob("*"))
    row = {"sae_id": "sae0", "layer": 0, "feature_id": 1, "number": 0, "description": "thefts", "source": "me"}
    with saelake.open(lake.root) as opened, pytest.raises(saelake.UserError, match="is not a name for a study: use letters"):
        opened.write("explanations", [row], study=name)
    with pytest.raises(saelake.UserError, match="is not a name for a study"):
        synthesize(lake, toys.SHAPE, recipe=name)
    assert sorted(tmp_path.rglob("*")) == before


def test_where_saes_were_left_out_rows_about_one_are_refused_in_a_sentence(tmp_path: Path) -> None:
    share(build_lake(tmp_path / "lake"), tmp_path / "set", Choice(tables=("prompts", "activations")))
    add(Lake.create(tmp_path / "other"), tmp_path / "set")
    row = {"sae_id": "sae0", "layer": 0, "feature_id": 1, "number": 0, "description": "thefts", "source": "me"}
    with saelake.open(tmp_path / "other") as opened, pytest.raises(saelake.UserError, match="saes is not here"):
        opened.write("explanations", [row])


def test_rows_of_a_set_say_which_set(tmp_path: Path) -> None:
    build_lake(tmp_path / "lake")
    rows = [{"sae_id": "sae0", "layer": 0, "feature_id": i, "value": 0.0, "set_id": 7} for i in (1, 2)]
    with saelake.open(tmp_path / "lake") as lake:
        without = [{name: value for name, value in row.items() if name != "set_id"} for row in rows]
        with pytest.raises(
            saelake.UserError, match=r"^rows of feature_sets lack set_id: give those that belong together one number"
        ):
            lake.write("feature_sets", without, study="mine")
        lake.write("feature_sets", rows, study="mine")
    with saelake.open(tmp_path / "lake", "mine") as lake:
        assert lake.sql("select count(*), count(distinct set_id) from feature_sets").fetchall() == [(2, 1)]


def test_rows_about_a_feature_are_held_to_an_sae_of_the_lake(tmp_path: Path) -> None:
    build_lake(tmp_path / "lake")
    with saelake.open(tmp_path / "lake") as lake:
        ((sae_id, layer, width),) = lake.sql("select sae_id, layer, width from saes order by all limit 1").fetchall()
        row = {"sae_id": sae_id, "layer": layer, "feature_id": width - 1, "number": 0, "description": "thefts", "source": "me"}
        ingest = lake.sql("select run_id from runs where stage = 'ingest'").fetchall()[0]
        record = lake.write("explanations", [row])
        assert record.parents == ingest
        for changed, expected in (
            ({"sae_id": ""}, "explanations.sae_id names '', an SAE of no run in this lake"),
            ({"sae_id": "none"}, "explanations.sae_id names 'none', an SAE of no run in this lake"),
            ({"layer": layer + 1}, "explanations.layer is not the SAE's in 1 of 1 rows"),
            ({"feature_id": width}, "explanations.feature_id is past the SAE's width in 1 of 1 rows"),
            ({"feature_id": -1}, "explanations.feature_id is below 0 in 1 of 1 rows"),
        ):
            with pytest.raises(saelake.UserError, match=re.escape(expected)):
                lake.write("explanations", [row | changed])
        build_lake(tmp_path / "lake", "other", variant=1)  # of the same SAEs, later
        assert lake.write("explanations", [row], study="small").run_id == record.run_id


@pytest.mark.parametrize("form", ["df", "pl", "to_arrow_table", "to_arrow_reader", "relation", "batch"])
def test_rows_come_in_whatever_form_a_table_has(form: str, tmp_path: Path) -> None:
    build_lake(tmp_path / "lake")
    with saelake.open(tmp_path / "lake") as lake:
        rows = lake.sql("select * exclude run_id from verdicts where judge = 'phrases' order by ablation_id limit 2")
        expected = rows.fetchall()
        table = rows.to_arrow_table()
        given = rows if form == "relation" else table.to_batches()[0] if form == "batch" else getattr(rows, form)()
        record = lake.write("verdicts", given, study="mine")
        kept = lake.sql(f"select * exclude run_id from all_runs.verdicts where run_id = '{record.run_id}' order by ablation_id")
        assert kept.fetchall() == expected
