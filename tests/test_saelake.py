"""`saelake.open`: SQL and questions from Python, on one study of a lake or all."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

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


def test_lists_may_be_arrays_columns_and_iterators(tmp_path: Path) -> None:
    build_lake(tmp_path / "lake")
    with saelake.open(tmp_path / "lake") as lake:
        expected = lake.query("top_samples", features="0:1").fetchall()
        assert expected
        pairs = [(0, 1)]
        for given in (np.array(pairs), iter(pairs), torch.tensor(pairs)):
            assert lake.query("top_samples", features=given).fetchall() == expected, type(given)
        without = lake.query("candidates", exclude_layers=[1]).fetchall()
        for layers in (
            np.array([1]),
            torch.tensor([1]),
            lake.sql("select 1 as one").df()["one"],
            pl.Series([1]),
            iter([1]),
            np.int64(1),
        ):
            assert lake.query("candidates", exclude_layers=layers).fetchall() == without != [], type(layers)
        for bad in (np.array(["x"]), np.array(1.5), np.array([[1]])):
            with pytest.raises(QueryError, match=r"^exclude_layers is a list of layers, such as 0,1, not "):
                lake.query("candidates", exclude_layers=bad)
        for features in (["17", "42"], {"14": 1}, [b"17"], ["17"]):
            with pytest.raises(QueryError, match=r"^features is a list of features: layer:feature_id,\.\.\. or"):
                lake.query("top_samples", features=features)
        with pytest.raises(QueryError, match=r"^features is a list .*") as raised:
            lake.query("top_samples", features=lake.sql("select layer, feature_id from features").df())
        assert "\n" not in str(raised.value)
        with pytest.raises(QueryError, match=r"^condition is the name of a condition, not \['a', 'a'.{,70}$"):
            lake.query("completions", condition=["a"] * 3000)
        with pytest.raises(UserError, match=r"^engine is duckdb or spark, not array"):
            lake.query("asr", engine=np.array([1, 2]))  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"^params is 5: give a list of values"):
            lake.sql("select $1", params=5)


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
