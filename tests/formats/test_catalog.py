"""The lake's tables for others: the script makes them in any DuckDB, with their comments, and `datasets` reads the card."""

import json
from pathlib import Path

import duckdb
import pytest

import saelake
from saelake.formats.registry import Asked
from saelake.formats.transfer import write_out
from saelake.warehouse.schema import TABLES
from tests.lakes import build_lake


def test_the_script_makes_every_table_with_what_it_means_and_can_be_run_again(tmp_path: Path) -> None:
    lake = build_lake(tmp_path / "it's a lake")
    write_out(lake.root, "catalog", tmp_path / "out", Asked())
    script = (tmp_path / "out" / "catalog.sql").read_text()
    with saelake.open(lake.root) as opened, duckdb.connect(tmp_path / "mine.duckdb") as con:
        con.execute(script)
        con.execute(script)
        for name in TABLES:
            wanted = opened.sql(f"from {name} order by all").fetchall()
            assert con.sql(f"from {name} order by all").fetchall() == wanted
            assert con.sql(f"select count(*) from all_runs.{name}").fetchall()
        assert con.sql("select count(*) from runs").fetchall() == opened.sql("select count(*) from runs").fetchall()
        said = con.sql("select comment from duckdb_columns() where table_name = 'activations' and column_name = 'activation'")
        assert {text for (text,) in said.fetchall()} == {"the feature's activation, above 0"}
        assert (
            con.sql(
                "select count(*) from duckdb_views() where schema_name = 'main' and not internal and comment is null"
            ).fetchall()[0][0]
            <= 1
        )


def test_datasets_reads_the_card(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra compute is not installed")
    lake = build_lake(tmp_path / "lake")
    write_out(lake.root, "catalog", tmp_path / "out", Asked())
    card = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    for name, told in card.items():
        info = datasets.DatasetInfo.from_dict(told)
        assert list(info.features) == [column.name for column in TABLES[name].columns]
        assert info.features.arrow_schema.types == TABLES[name].shown.types
    assert card["activations"]["splits"]["train"]["num_examples"] == 16
