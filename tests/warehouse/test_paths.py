"""Where a lake lies is never data: the same rows come out of a folder of any name, by every reader."""

import shutil
from pathlib import Path

import duckdb
import pytest

import saelake
from saelake.queries.sparse import sparse_of_files
from saelake.warehouse.catalog import connect
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.literals import literal, literals, parquet, paths
from tests.warehouse import toys

NAMES = (
    "split=test/label=harmful",
    "layer=7/seed=3",
    "a*b[c]?{d,e}",
    "it's \\ back\\n",
    'new\nline "quoted"',
    "ü 漢/**",
    "[1]",
    "%20?x=1",
)
TABLES = ("prompts", "tokens", "activations", "saes", "feature_sets", "ablations", "verdicts", "runs")


def rows(con: duckdb.DuckDBPyConnection) -> dict[str, list[tuple[object, ...]]]:
    wanted = {name: "run_id" if name == "runs" else "*" for name in TABLES}
    found = {name: con.execute(f"select {columns} from {name} order by all").fetchall() for name, columns in wanted.items()}
    found["activations_of"] = con.execute("select * from activations_of(1) order by all").fetchall()
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[object, ...]]]:
    lake = Lake.create(tmp_path_factory.mktemp("plain") / "lake")
    toys.ingest(lake)
    toys.answers(lake)
    with connect(lake) as con:
        return rows(con)


@pytest.mark.parametrize("name", NAMES)
def test_a_lakes_path_is_not_data(tmp_path: Path, expected: dict[str, list[tuple[object, ...]]], name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    lake = Lake.create(tmp_path / name / "lake")
    toys.ingest(lake)
    toys.answers(lake)
    with connect(lake) as con:
        assert rows(con) == expected
    with duckdb.connect(
        shutil.copy(lake.catalog, tmp_path), read_only=True
    ) as con:  # DuckDB opens no database below some of these
        con.execute(f"set variable lake = {literal(str(lake.root))}")
        assert rows(con) == expected
    file = next(f.path for r in lake.records() for f in r.files if f.table == "activations" and f.path.endswith("-01.parquet"))
    matrix, _, features = sparse_of_files(str(lake.root / file), rows="token", bos=True)
    with saelake.open(lake.root) as opened:
        of_lake = opened.sparse(layer=1, rows="token", bos=True)
    assert matrix.nnz == of_lake.matrix.nnz == len(expected["activations_of"])
    assert set(features["layer"]) == {1}


def test_texts_are_written_as_themselves(tmp_path: Path) -> None:
    texts = ["", "'", "\\", "\\n", "\n", "?", "$1", "漢", "a''b", "{x}", '"']
    assert duckdb.sql(f"select {literals(texts)}").fetchall() == [(texts,)]
    assert duckdb.sql(f"select {literals([])}").fetchall() == [([],)]
    for number, text in enumerate(t for t in texts if t and "\\" not in t):  # DuckDB 2 takes a leading backslash for a slash
        file = tmp_path / f"{text}[*]"
        duckdb.sql(f"select {number} as n").write_parquet(str(file))
        assert duckdb.sql(f"select n from {parquet(paths([file]))}").fetchall() == [(number,)]


@pytest.mark.parametrize("address", ["gs://bucket/lake", "az://container/lake", "S3://bucket/lake", "https://example.org/lake"])
def test_an_address_that_is_no_lakes_is_no_folder(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for opened in (Lake.create, Lake.existing):
        with pytest.raises(UserError, match=f"the lake is '{address}': give a folder or s3://bucket/prefix"):
            opened(address)
    assert not list(tmp_path.iterdir())
