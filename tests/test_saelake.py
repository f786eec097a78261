"""`saelake.open`: SQL and questions from Python, on one study of a lake or all."""

from pathlib import Path

import pytest

import saelake
from saelake.queries import QueryError
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from tests.lakes import build_lake


def test_open_answers_sql_and_questions(tmp_path: Path) -> None:
    build_lake(tmp_path / "lake")
    with saelake.open(tmp_path / "lake") as lake:
        assert lake.sql("select count(*) from prompts where label = $label", {"label": "benign"}).fetchall() == [(2,)]
        assert len(lake.query("candidates", k=1).fetchall()) == 2
        assert {"activations", "prompts", "runs"} <= set(lake.tables())
        with pytest.raises(UserError, match="candidates") as raised:
            lake.query("candidate")
        assert raised.type is QueryError


def test_questions_are_about_one_study(tmp_path: Path) -> None:
    build_lake(tmp_path / "lake")
    build_lake(tmp_path / "lake", "other", variant=1)
    with saelake.open(tmp_path / "lake") as lake:
        assert lake.sql("select count(*) from prompts").fetchall() == [(12,)]
        with pytest.raises(UserError, match=r"several studies \(other, small\): choose one"):
            lake.query("asr")
        assert len(lake.query("runs").fetchall()) == 6
    with saelake.open(str(tmp_path / "lake"), recipe="other") as lake:
        assert lake.sql("select count(*) from prompts").fetchall() == [(6,)]
        assert len(lake.query("asr", judge="phrases").fetchall()) == 16


def test_a_study_that_is_written_to_is_shown_from_then_on(tmp_path: Path) -> None:
    build_lake(tmp_path / "lake")
    with saelake.open(tmp_path / "lake") as lake:
        prompts = lake.sql("select prompt_id from prompts limit 1").fetchall()
        rows = {"prompt_id": [prompts[0][0]], "stage": ["notebook"], "method": ["mine"], "p_refusal_token": [0.5]}
        lake.write("ablations", rows | {"first_token": ["I"], "completion": ["I cannot."]}, study="other")
        assert lake.studies == ("other", "small")
        with pytest.raises(UserError, match=r"several studies \(other, small\): choose one"):
            lake.query("asr")
        with pytest.raises(UserError, match=r"shows other, small: say which study: study=NAME"):
            lake.write("ablations", rows)


def test_a_lake_without_a_study_has_no_data_set(tmp_path: Path) -> None:
    with saelake.open(Lake.create(tmp_path / "lake").root) as lake, pytest.raises(UserError, match="holds no study yet"):
        lake.dataset()


def test_open_refuses_what_is_no_lake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a lake"):
        saelake.open(tmp_path)
    with pytest.raises(UserError, match="no study named 'absent'"):
        saelake.open(build_lake(tmp_path / "lake").root, recipe="absent")
