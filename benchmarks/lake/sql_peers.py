"""The contenders that are asked in SQL, all by the same statements: saelake, DuckDB's own tables, naive Parquet. And Polars."""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.lake.answers import Cofiring, Samples, Statistics
from benchmarks.lake.captured import Asked, Captured
from saelake import queries
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from saelake.warehouse.literals import parquet, paths
from saelake.warehouse.schema import TABLES

SMALL = ("prompts", "tokens", "saes", "alignments")
PLAIN_JOIN = """
    select p.category, a.layer, a.feature_id, count(distinct a.prompt_id) as n_prompts
    from activations as a
    join wanted as w on w.layer = a.layer and w.feature_id = a.feature_id
    join prompts as p on p.prompt_id = a.prompt_id
    group by all
"""
BY_HAND = "select layer, feature_id, count(*), avg(activation), max(activation) from activations group by layer, feature_id"


class Sql:
    """A DuckDB connection on which `activations` and the other tables are visible, however they are stored."""

    def __init__(self, con: duckdb.DuckDBPyConnection, captured: Captured) -> None:
        self.con = con
        self._captured = captured
        self._first = captured.spec.tag << 32
        con.execute("set threads = 1")

    def ask(self, question: str, **parameters: object) -> pa.Table:
        """All rows of a shipped question."""
        return queries.run(self.con, question, **parameters).to_arrow_table()

    def sql(self, statement: str) -> pa.Table:
        return self.con.sql(statement).to_arrow_table()

    def statistics(self) -> Statistics:
        shape = self._captured.shape
        rows = self.sql("select layer, feature_id, n_tokens, n_prompts, n_harmful, mean_activation, max_activation from features")
        place = rows["layer"].to_numpy().astype(np.int64) * shape.width + rows["feature_id"].to_numpy()
        found = []
        for name in rows.column_names[2:]:
            values = np.zeros(shape.n_layers * shape.width)
            values[place] = np.nan_to_num(rows[name].to_numpy())
            found.append(values.reshape(shape.n_layers, shape.width))
        return Statistics(*found)

    def top_samples(self, features: dict[int, np.ndarray], n: int) -> Samples:
        rows = self.ask("top_samples", features=Asked.listed(features), n=n)
        columns = (rows[name].to_pylist() for name in ("layer", "feature_id", "prompt_id", "pos", "activation"))
        return [(layer, f, p - self._first, pos, value) for layer, f, p, pos, value in zip(*columns, strict=True)]

    def cofiring(self, features: dict[int, np.ndarray]) -> Cofiring:
        rows = self.ask("cofiring", features=Asked.listed(features), pairs="same_layer")
        return Cofiring(len(rows), int(rows["n_both"].to_numpy().sum()))

    def prompt(self, prompt: int, table: str = "activations") -> int:
        where = f"prompt_id = {self._first + prompt}"
        return len(self.sql(f"select layer, feature_id, pos, activation from {table} where {where}"))

    def prompt_id(self, prompt: int) -> int:
        return self._first + prompt

    def want(self, features: dict[int, np.ndarray]) -> None:
        """A table of features for a user's own join."""
        pairs = ", ".join(f"({layer}, {f})" for layer, ids in features.items() for f in ids)
        self.con.execute(f"create or replace temp table wanted as from (values {pairs}) as listed(layer, feature_id)")


def open_lake(lake: Lake, captured: Captured) -> Sql:
    """saelake itself, as `saelake.open` shows it."""
    return Sql(connect(lake), captured)


def native(lake: Lake, captured: Captured, file: Path) -> Sql:
    """DuckDB's own storage, sorted as the lake is, which is its best case."""
    file.unlink(missing_ok=True)
    with connect(lake) as source:
        source.execute(f"attach '{file}' as own")
        for name in (*SMALL, "features", "activations", "activations_by_prompt"):
            order = ", ".join(dict.fromkeys(("layer",) * TABLES[name].by_layer + TABLES[name].order))
            source.execute(f"create table own.{name} as select * from {name} order by {order}")
    return Sql(duckdb.connect(file, read_only=True), captured)


def native_bytes(own: Sql) -> int:
    """What `activations` takes in DuckDB's own storage: blocks that hold its segments."""
    blocks = own.con.execute(
        "select count(distinct block_id) from pragma_storage_info('activations') where persistent"
    ).fetchone()
    size = own.con.execute("select block_size from pragma_database_size()").fetchone()
    assert blocks is not None
    assert size is not None
    return int(blocks[0]) * int(size[0])


def naive(lake: Lake, captured: Captured, folder: Path) -> Sql:
    """One Parquet file a layer in the order of the capture, written with pyarrow's defaults."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(captured.shape.n_layers):
        parts = [r.rows for _, shard in captured.shards for r in shard if r.table == "activations" and r.layer == number]
        rows = pa.concat_tables(parts)
        sae_id = rows.schema.get_field_index("sae_id")
        pq.write_table(
            rows.set_column(sae_id, "sae_id", rows["sae_id"].cast(pa.string())), folder / f"layer-{number:02d}.parquet"
        )
    con = duckdb.connect()
    with connect(lake) as source:
        for name in SMALL:
            con.register(f"{name}_rows", source.sql(f"from {name}").to_arrow_table())
            con.execute(f"create table {name} as from {name}_rows")
    con.execute(f"create view activations as from {parquet(paths(sorted(Path(folder).glob('*.parquet'))))}")
    con.execute("create view activations_by_prompt as from activations where false")
    return Sql(con, captured)


class Polars:
    """Polars' lazy scans of the lake's own files."""

    def __init__(self, lake: Lake, captured: Captured) -> None:
        import polars as pl

        self._pl, self._captured, self._first = pl, captured, captured.spec.tag << 32
        record = lake.record(captured.spec.run_id)
        assert record is not None
        files = [lake.root / f.path for f in record.files if f.table == "activations"]
        self._files = {int(p.stem.removeprefix("layer-")): p for p in files}
        self._harmful = np.flatnonzero(captured.harmful) + self._first

    def statistics(self) -> Statistics:
        pl, shape = self._pl, self._captured.shape
        found = []
        for path in self._files.values():
            fires = pl.scan_parquet(path, hive_partitioning=False).filter(pl.col("pos") > 0)
            is_harmful = pl.col("prompt_id").is_in(self._harmful.tolist())
            rows = (
                fires.group_by("feature_id")
                .agg(
                    pl.len().alias("n_tokens"),
                    pl.col("prompt_id").n_unique().alias("n_prompts"),
                    pl.col("prompt_id").filter(is_harmful).n_unique().alias("n_harmful"),
                    pl.col("activation").mean().alias("mean"),
                    pl.col("activation").max().alias("largest"),
                )
                .collect()
            )
            columns = []
            for name in Statistics._fields:
                values = np.zeros(shape.width)
                values[rows["feature_id"].to_numpy()] = rows[name].to_numpy()
                columns.append(values)
            found.append(columns)
        return Statistics(*(np.stack(column) for column in zip(*found, strict=True)))

    def top_samples(self, features: dict[int, np.ndarray], n: int) -> Samples:
        pl = self._pl
        found: Samples = []
        for layer, ids in features.items():
            rows = (
                pl.scan_parquet(self._files[layer], hive_partitioning=False)
                .filter(pl.col("feature_id").is_in(ids.tolist()), pl.col("pos") > 0)
                .sort("feature_id", "activation", "prompt_id", "pos", descending=[False, True, False, False])
                .unique(["feature_id", "prompt_id"], keep="first", maintain_order=True)
                .group_by("feature_id", maintain_order=True)
                .head(n)
                .collect()
            )
            columns = (rows[name].to_list() for name in ("feature_id", "prompt_id", "pos", "activation"))
            found += [(layer, f, p - self._first, pos, value) for f, p, pos, value in zip(*columns, strict=True)]
        return found

    def cofiring(self, features: dict[int, np.ndarray]) -> Cofiring:
        pl = self._pl
        n_pairs = n_both = 0
        for layer, ids in features.items():
            fires = (
                pl.scan_parquet(self._files[layer], hive_partitioning=False)
                .filter(pl.col("feature_id").is_in(ids.tolist()), pl.col("pos") > 0)
                .select("feature_id", "prompt_id")
                .unique()
            )
            pairs = fires.join(fires, on="prompt_id").filter(pl.col("feature_id") < pl.col("feature_id_right"))
            both = pairs.group_by("feature_id", "feature_id_right").len().collect()
            n_pairs += len(both)
            n_both += int(both["len"].sum())
        return Cofiring(n_pairs, n_both)

    def prompt(self, prompt: int) -> int:
        """Everything of one prompt; returns the number of rows."""
        pl = self._pl
        wanted = pl.col("prompt_id") == self._first + prompt
        rows = (
            pl.scan_parquet(list(self._files.values()), hive_partitioning=False)
            .filter(wanted)
            .select("layer", "feature_id", "pos", "activation")
            .collect()
        )
        return len(rows)
