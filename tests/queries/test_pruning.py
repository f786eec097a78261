"""Questions about a few features or one prompt read few row groups and files, and answer as if they had read everything."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saelake import queries
from saelake.queries.features import subquery
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from saelake.warehouse.layout import ROW_GROUPS
from saelake.warehouse.synth import Shape, synthesize

SHAPE = Shape(n_prompts=40, tokens_per_prompt=34, n_layers=2, width=2048, l0=73, prompt_major=True, shard_prompts=16)
ROW_GROUP = ROW_GROUPS["activations"]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """About 99,000 rows a layer: six row groups."""
    lake = Lake.create(tmp_path_factory.mktemp("pruning") / "lake")
    synthesize(lake, SHAPE)
    return lake


@pytest.fixture(scope="module")
def con(lake: Lake) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(lake, threads=1) as con:
        yield con


def scanned(con: duckdb.DuckDBPyConnection, statement: str) -> list[int]:
    """Rows that each scan of a Parquet file handed on: whole row groups, those of `activations` being 16,384 rows.

    DuckDB 2 calls the scan, its rows and the list of operators otherwise than 1.5.
    """
    (_, plan), *_ = con.execute(f"explain (analyze, format json) {statement}").fetchall()

    def walk(node: Mapping[str, Any]) -> Iterator[int]:
        described = json.dumps(node.get("extra_info", {}))
        if "READ_PARQUET" in described or "PARQUET_SCAN" in described:
            yield node["operator_cardinality" if "operator_cardinality" in node else "intermediate_rows"]
        for child in (*node.get("children", []), *node.get("operator", [])):
            yield from walk(child)

    return list(walk(json.loads(plan)))


def largest_rows(con: duckdb.DuckDBPyConnection) -> int:
    found = con.execute("select max(n) from (select count(*) as n from activations group by layer)").fetchone()
    assert found is not None
    return int(found[0])


def test_two_features_read_their_own_row_groups_only(con: duckdb.DuckDBPyConnection) -> None:
    assert largest_rows(con) > 5 * ROW_GROUP
    statement = f"select count(*) from {subquery(con, 'activations', {(0, 'synth0/layer-00'): [3, 1500]})}"
    assert 0 < sum(scanned(con, statement)) <= 4 * ROW_GROUP  # each may lie across two


def test_a_question_about_features_reads_few_rows(con: duckdb.DuckDBPyConnection) -> None:
    statement = queries.load("top_samples").statement(con, {"features": "1:7", "n": 3})
    activations = [n for n in scanned(con, statement) if n not in (SHAPE.n_prompts, SHAPE.n_prompts * SHAPE.tokens_per_prompt)]
    assert 0 < sum(activations) <= 2 * ROW_GROUP


def test_a_plain_join_with_a_table_of_features_reads_few_rows(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("create or replace temp table wanted as from (values (0, 3), (0, 5), (0, 8)) as t(layer, feature_id)")
    join = "select count(*) from activations as a join wanted as w on w.layer = a.layer and w.feature_id = a.feature_id"
    assert 0 < sum(scanned(con, join)) <= 4 * ROW_GROUP
    in_all = con.execute("select count(*) from activations where layer = 0 and feature_id in (3, 5, 8)").fetchall()
    assert con.execute(join).fetchall() == in_all != [(0,)]


@pytest.mark.parametrize("question", ["prompt", "firing_on_tokens"])
def test_a_question_about_one_prompt_reads_its_copy_and_nothing_else(con: duckdb.DuckDBPyConnection, question: str) -> None:
    (prompt_id,) = con.execute("select min(prompt_id) + 7 from prompts").fetchall()[0]
    (n_rows,) = con.execute(f"select count(*) from activations where prompt_id = {prompt_id}").fetchall()[0]
    read = scanned(con, queries.load(question).statement(con, {"prompt_id": prompt_id}))
    assert n_rows in read
    assert sum(read) < n_rows + 4 * SHAPE.n_prompts * SHAPE.tokens_per_prompt  # its tokens, and a first glance elsewhere


def test_one_layer_is_read_without_opening_the_files_of_others(lake: Lake, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(lake.root, damaged)
    next(damaged.glob("data/*/activations/layer-01.parquet")).write_bytes(b"no Parquet")
    catalog = f"'{damaged}/catalog.duckdb'"
    with duckdb.connect() as con:  # any DuckDB shell
        con.execute(f"set variable lake = '{damaged}'; attach {catalog} as lake (read_only); use lake")
        assert con.execute("select count(*) > 0 from activations_of(0)").fetchall() == [(True,)]
        assert con.execute("select count(*) from activations_of(17)").fetchall() == [(0,)]
        with pytest.raises(duckdb.Error):
            con.execute("select count(*) from activations_of(1)").fetchall()


ids = st.lists(st.integers(0, SHAPE.width - 1), min_size=1, max_size=30) | st.builds(
    lambda first, n: list(range(first, min(first + n, SHAPE.width))), st.integers(0, SHAPE.width - 1), st.integers(1, 300)
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.dictionaries(st.integers(0, 1), ids))
def test_pruned_rows_equal_those_of_the_plain_statement(con: duckdb.DuckDBPyConnection, chosen: dict[int, list[int]]) -> None:
    features = {(layer, f"synth0/layer-{layer:02d}"): found for layer, found in chosen.items()}
    pairs = [(layer, feature) for layer, found in chosen.items() for feature in set(found)]
    columns = "run_id, sae_id, layer, feature_id, prompt_id, pos, activation"
    pruned = con.execute(f"select {columns} from {subquery(con, 'activations', features)} order by all").fetchall()
    listed = ", ".join(map(str, pairs)) or "(null, null)"
    plain = con.execute(f"select {columns} from activations where (layer, feature_id) in ({listed}) order by all").fetchall()
    assert pruned == plain


def test_two_saes_of_one_layer_are_told_apart(tmp_path: Path) -> None:
    both = Lake.create(tmp_path / "lake")
    for seed in (0, 1):
        synthesize(both, Shape(n_prompts=8, tokens_per_prompt=6, n_layers=2, width=64, l0=6), recipe=f"study{seed}", seed=seed)
    with connect(both) as con:
        rows = subquery(con, "activations", {(1, "synth1/layer-01"): [0, 1, 2, 9]})
        plain = "select count(*) from activations where sae_id = 'synth1/layer-01' and feature_id in (0, 1, 2, 9)"
        assert con.execute(f"select count(*) from {rows}").fetchall() == con.execute(plain).fetchall()
        assert con.execute(f"select distinct sae_id from {rows}").fetchall() == [("synth1/layer-01",)]
