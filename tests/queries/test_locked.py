"""What a select, whoever typed it, gets no way to do: read other files, reach the network, load code, write, log, run text."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import saelake
from saelake import cli
from saelake.queries import QueryError
from saelake.warehouse.lake import Lake
from tests.lakes import build_lake, tree


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return build_lake(tmp_path_factory.mktemp("locked") / "lake")


def sql(lake: Lake, statement: str, *options: str) -> Result:
    return CliRunner().invoke(cli.main, ["sql", statement, "--lake", str(lake.root), "--format", "csv", *options])


@pytest.mark.parametrize(
    "statement",
    [
        "from 'FOLDER/secret.csv'",
        "from read_csv('FOLDER/secret.csv')",
        "from read_text('/etc/passwd')",
        "from read_blob('FOLDER/*')",
        "from glob('FOLDER/*')",
        "from sniff_csv('FOLDER/secret.csv')",
        "from read_text('LAKE/data/../../secret.csv')",
        "from read_text('LAKE/saelake.json')",
        "from 'https://127.0.0.1:9/x.parquet'",
        "from 's3://bucket/x.parquet'",
        "select st_point(1, 2)",
        "install httpfs",
        "load httpfs",
        "attach 'FOLDER/x.db'",
        "copy (select 1) to 'FOLDER/x.csv'",
        "export database 'FOLDER/x'",
        "import database 'FOLDER/x'",
        "set enable_external_access = true",
        "create secret (type s3)",
        "select * from enable_logging(storage = 'file', storage_config = {'path': 'FOLDER/log'})",
        "explain analyze select * from \"enable_logging\" /* ) */ (storage = 'file')",
        "pivot (from Enable_Logging()) on message",
        "from query('select 1')",
        "from json_execute_serialized_sql(json_serialize_sql('select 1'))",
        "select (select count(*) from checkpoint())",
        "from lake",
        "select getenv('HOME')",
        "from parquet_metadata('FOLDER/secret.parquet')",
        "from parquet_schema('FOLDER/secret.parquet')",
        "from parquet_kv_metadata('FOLDER/*.parquet')",
        "from read_parquet(['FOLDER/secret.parquet'])",
        "from read_json('FOLDER/secret.json')",
        "from read_ndjson_objects('/proc/self/environ')",
        "from read_blob('/proc/self/environ')",
        "from 'FOLDER/secret.parquet'",
        "describe 'FOLDER/secret.parquet'",
        "summarize 'FOLDER/secret.csv'",
        "explain analyze from 'FOLDER/secret.csv'",
        "with x as materialized (from 'FOLDER/secret.csv') from x",
        "select (from read_text('FOLDER/secret.csv') select content)",
        "from prompts semi join 'FOLDER/secret.csv' on true",
        "from query_table('prompts')",
        "select * from query_table(['prompts'])",
        "call pragma_database_size()",
        "set variable lake = 'FOLDER'",
        "set allowed_directories = ['/']",
        "reset lock_configuration",
        "use memory",
        "create view x as select 1",
        "insert into all_runs.runs select * from all_runs.runs",
        "vacuum",
        "force checkpoint",
        "from force_checkpoint()",
        "from statement",
        "from opened",
        "from python_map_function(1)",
        "from pandas_scan(1)",
        "from arrow_scan(1, 2, 3)",
        "from sqlite_scan('FOLDER/x.db', 'x')",
        "from iceberg_scan('FOLDER')",
        "from 'gs://bucket/x.parquet'",
        "from 'hf://datasets/a/b/x.parquet'",
        "from 'file:///etc/passwd.csv'",
        "from 'LAKE/../secret.csv'",
        "from 'LAKE/runs/../../secret.csv'",
        "from read_text('LAKE/catalog.duckdb')",
        "select 1; select 2",
        'select * from "FOLDER/secret.csv"',
    ],
)
def test_a_select_reads_the_lake_alone(lake: Lake, tmp_path: Path, statement: str) -> None:
    (tmp_path / "secret.csv").write_text("secret\n1\n")
    (tmp_path / "secret.json").write_text('{"secret": 1}')
    shutil.copy(next(lake.root.glob("data/*/prompts/*.parquet")), tmp_path / "secret.parquet")
    before = tree(tmp_path), tree(lake.root)
    given = sql(lake, statement.replace("FOLDER", str(tmp_path)).replace("LAKE", str(lake.root)))
    assert given.exit_code == 1, given.output
    assert "report it" not in given.output
    assert (tree(tmp_path), tree(lake.root)) == before


def test_files_are_read_that_are_named(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("feature_id\n1\n")
    count = f"select count(*) as n from features join '{tmp_path}/own.csv' using (feature_id)"
    for allowed in (tmp_path, tmp_path / "own.csv"):
        assert sql(lake, count, "--files", str(allowed)).output.split() == ["n", "2"]
    assert sql(lake, count).exit_code == 1
    own = next(lake.root.glob("data/*/prompts/*.parquet"))
    assert sql(lake, f"select count(*) as n from read_parquet('{own.resolve()}')").output.split() == ["n", "6"]
    assert sql(lake, "select 1 as n", "--output", str(tmp_path / "n.parquet")).exit_code == 0
    assert (tmp_path / "n.parquet").is_file()


@pytest.mark.parametrize(
    "given",
    [
        "select 0 as layer, 1 as feature_id from read_text('/etc/passwd')",
        "select 0 as layer, 1 as feature_id from '/etc/passwd.csv'",
        "select 0 as layer, (select count(*) from glob('/*'))::int as feature_id",
        "select 0 as layer, 1 as feature_id from query('select 1')",
        "with x as (from read_csv('/etc/passwd')) select 0 as layer, 1 as feature_id from x",
        "select 0 as layer, (select count(*) from '/etc/passwd.parquet')::int as feature_id",
        "select 0 as layer, 1 as feature_id from features where exists (from read_blob('/proc/self/environ'))",
        "select 0 as layer, 1 as feature_id from parquet_metadata('/x.parquet')",
        "select 0 as layer, 1 as feature_id from query_table('features')",
        'select 0 as layer, 1 as feature_id from "/etc/passwd.csv"',
        "select 0 as layer, 1 as feature_id from features union all select 0, 1 from glob('/*')",
        "select 0 as layer, (values ((select content from read_text('/etc/passwd'))))::int as feature_id",
        "select 0 as layer, 1 as feature_id from duckdb_secrets()",
        "select 0 as layer, 1 as feature_id from 'https://127.0.0.1:9/x.parquet'",
    ],
)
def test_features_are_selected_from_tables_alone(lake: Lake, given: str) -> None:
    with saelake.open(lake.root) as opened:
        assert opened.query("cofiring", features="from features").fetchall() is not None
        with pytest.raises(QueryError, match=r"not allowed|only the lake's tables"):
            opened.query("cofiring", features=given)
