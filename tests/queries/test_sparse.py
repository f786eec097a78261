"""Sparse matrices have the study's shape, whatever fires, and mean by BOS what every question means by it: a role."""

import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import saelake
from saelake import cli
from saelake.queries import QueryError
from saelake.queries.sparse import sparse, sparse_of_files
from saelake.warehouse.catalog import connect
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import Choice, share
from tests.lakes import FIRINGS, WIDTH, build_lake, prompt_id

FILES = "data/activations/*.parquet"


def dense(by_token: bool, layers: tuple[int, ...] = (0, 1)) -> np.ndarray:
    """The matrix of tests/lakes.py, written out value by value."""
    values = np.zeros((24 if by_token else 6, len(layers) * WIDTH), np.float32)
    for (layer, feature_id), fired in FIRINGS.items():
        for (prompt, pos), value in fired.items() if layer in layers else ():
            row, column = prompt * 4 + pos if by_token else prompt, layers.index(layer) * WIDTH + feature_id
            values[row, column] = max(values[row, column], value)
    return values


def test_bos_is_a_role(tmp_path: Path) -> None:
    lake = build_lake(tmp_path / "lake")
    with connect(lake) as con:
        n_all, n_without = (sparse(con, rows="token", bos=bos).matrix.nnz for bos in (True, False))
        assert n_all - n_without == 7, "feature 0 on six BOS tokens, and one more on prompt 0's"
        con.execute("create temp view tokens as select * replace ('template' as role) from memory.main.tokens")
        assert sparse(con, rows="token", bos=False).matrix.nnz == n_all, "without a BOS token none is left out"
    share(lake, tmp_path / "set")
    assert sparse_of_files(str(tmp_path / "set" / FILES), rows="token", bos=False).matrix.nnz == n_without


def test_a_matrix_has_every_row_and_every_column(tmp_path: Path) -> None:
    lake = build_lake(tmp_path / "lake")
    share(lake, tmp_path / "set")
    of_files = tmp_path / "set" / FILES
    ids = [prompt_id(lake, prompt) for prompt in range(6)]
    with saelake.open(lake.root) as opened, warnings.catch_warnings():
        warnings.filterwarnings("error", message="the table")
        for ask in (opened.sparse, lambda **options: saelake.sparse(str(of_files), **options)):
            matrix, rows, features = ask(layer=1)
            assert np.array_equal(matrix.toarray(), dense(False, (1,))), "prompts 3 to 5 fire nothing on layer 1"
            assert rows["prompt_id"].tolist() == ids
            assert features["feature_id"].tolist() == list(range(WIDTH))
            assert features["sae_id"].tolist() == ["sae1"] * WIDTH
            matrix, rows, features = ask(rows="token")
            assert np.array_equal(matrix.toarray(), dense(True))
            assert rows["prompt_id"].tolist() == np.repeat(ids, 4).tolist()
            assert rows["pos"].tolist() == [0, 1, 2, 3] * 6
            assert features["layer"].tolist() == [0] * WIDTH + [1] * WIDTH
            without = ask(rows="token", bos=False).matrix
            assert without.shape == matrix.shape
            assert not without.toarray()[::4].any(), "the BOS tokens"
            assert np.array_equal(ask(layer="1", rows="token", library="torch").matrix.to_dense(), dense(True, (1,)))
    one_file = next(of_files.parent.glob("*-01.parquet"))
    assert saelake.sparse(str(one_file)).matrix.shape == (6, WIDTH), "the SAE of these files alone"


@pytest.mark.filterwarnings("ignore:the table")  # of those that are not beside these files
def test_files_that_hold_no_such_activations_are_one_sentence(tmp_path: Path) -> None:
    share(build_lake(tmp_path / "lake"), tmp_path / "set")
    with pytest.raises(QueryError, match=r"there is no SAE in layer 7: SAEs are in 0, 1$"):
        saelake.sparse(tmp_path / "set" / FILES, layer=7)
    (tmp_path / "text.parquet").write_text("no Parquet")
    for files in ("set/data/activation/*.parquet", "set/data/prompts/*.parquet", "text.parquet", "set", "lake", "set/data/*/*"):
        with pytest.raises(UserError, match=r"cannot be read \(.*\): give Parquet files of activations"):
            saelake.sparse(tmp_path / files, layer=1)
    with pytest.raises(UserError, match=r"^the files have no name: give Parquet files of activations"):
        saelake.sparse("")


@pytest.mark.filterwarnings("ignore:the table")
def test_a_prompt_may_have_as_many_tokens_as_int16_has_positions(tmp_path: Path) -> None:
    row = {"prompt_id": 1, "pos": 32_767, "layer": 0, "sae_id": "s", "feature_id": 2, "activation": 0.5}
    types = {
        "prompt_id": pa.int64(),
        "pos": pa.int16(),
        "layer": pa.int16(),
        "feature_id": pa.int32(),
        "activation": pa.float32(),
    }
    rows = pa.table({name: pa.array([value], types.get(name)) for name, value in row.items()})
    pq.write_table(rows, tmp_path / "one.parquet")
    assert saelake.sparse(tmp_path / "one.parquet", rows="token").matrix.shape == (32_768, 3)


def test_what_a_set_left_out_is_said(tmp_path: Path) -> None:
    lake = build_lake(tmp_path / "lake")
    share(lake, tmp_path / "part", Choice(tables=("activations",)))
    share(lake, tmp_path / "set", Choice(tables=("activations", "prompts", "saes")))
    part, without_tokens = (str(tmp_path / name / FILES) for name in ("part", "set"))
    with pytest.warns(UserWarning, match="table (prompts|saes) is not beside these files: (rows|columns) are") as said:
        matrix, rows, features = saelake.sparse(part, rows="token")
    assert len(said) == 2
    assert len(rows["pos"]) == matrix.shape[0] == 18, "up to the last token of each prompt on which something fires"
    assert features["feature_id"].tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert np.array_equal(saelake.sparse(without_tokens, rows="token").matrix.toarray(), dense(True))
    for files in (part, without_tokens):
        with pytest.raises(QueryError, match="the table tokens, which is not beside these files"):
            saelake.sparse(files, bos=False)
    mine = Lake.create(tmp_path / "mine")
    add(mine, tmp_path / "set")
    with saelake.open(mine.root) as opened:
        assert np.array_equal(opened.sparse().matrix.toarray(), dense(False))
        assert len(opened.query("sparse", rows="token").fetchall()) == opened.sparse(rows="token").matrix.nnz == 16
        with pytest.raises(UserError, match=r"tokens is not here: run .* was shared without"):
            opened.sparse(bos=False)
    told = CliRunner().invoke(cli.main, ["query", "sparse", "--bos", "false", "--lake", str(mine.root)])
    assert told.exit_code == 1
    assert "tokens is not here" in told.output


@pytest.mark.parametrize("order", ["feature_id, prompt_id, pos", "activation, pos", "pos, prompt_id, feature_id desc"])
@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_rows_of_any_order_and_batch_give_the_same_matrix(
    order: str, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they lie in a run's files nothing is sorted; rows that lie otherwise are. A prompt's tokens may end a batch."""
    monkeypatch.setattr("saelake.queries.matrix.BATCH_ROWS", batch)
    lake = build_lake(tmp_path / "lake")
    with connect(lake) as con:
        con.execute(f"create temp view activations as from memory.main.activations order by layer, {order}")
        for by_token in (False, True):
            found = sparse(con, rows="token" if by_token else "prompt").matrix
            assert np.array_equal(found.toarray(), dense(by_token))
            assert found.has_canonical_format


def test_runs_of_prompts_are_rows_one_below_the_other(tmp_path: Path) -> None:
    build_lake(tmp_path / "lake")
    lake = build_lake(tmp_path / "lake", "again", variant=1)
    share(lake, tmp_path / "set")
    with connect(lake) as con:
        for matrix, rows, _ in (sparse(con, rows="token"), saelake.sparse(tmp_path / "set" / FILES, rows="token")):
            assert (np.diff(rows["prompt_id"]) >= 0).all()
            assert np.array_equal(matrix.toarray(), np.concatenate([dense(True)] * 2))


def test_what_stands_beside_files_is_found_however_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share(build_lake(tmp_path / "lake"), tmp_path / "set")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "set" / "data" / "activations")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the table")
        for files in (tmp_path / "set/data/activations", f"~/set/{FILES}", tmp_path / "*et" / FILES, "*.parquet"):
            assert saelake.sparse(files).matrix.shape == (6, 2 * WIDTH)
            assert saelake.sparse(files, bos=False).matrix.shape == (6, 2 * WIDTH)


@pytest.mark.parametrize("table", ["prompts", "saes", "tokens"])
def test_sets_of_which_one_lacks_a_table_are_not_read_together(table: str, tmp_path: Path) -> None:
    build_lake(tmp_path / "lake")
    others = tuple(name for name in ("activations", "prompts", "saes", "tokens") if name != table)
    share(build_lake(tmp_path / "other", variant=1), tmp_path / "set")
    share(Lake.existing(tmp_path / "lake"), tmp_path / "part", Choice(tables=others))
    with pytest.raises(UserError, match=f"some of these sets have the table {table} and some have not: read them one by one"):
        saelake.sparse(tmp_path / "*" / FILES, bos=False)


def test_a_run_that_is_given_twice_is_told_or_counts_once(tmp_path: Path) -> None:
    share(build_lake(tmp_path / "lake"), tmp_path / "set")
    share(Lake.existing(tmp_path / "lake"), tmp_path / "again")
    twice = tmp_path / "*" / FILES
    assert np.array_equal(saelake.sparse(twice).matrix.toarray(), dense(False))
    with pytest.raises(UserError, match="activations of sae0 hold a row twice: give the files of each run once"):
        saelake.sparse(twice, rows="token")
