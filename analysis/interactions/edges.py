"""The graph "ablating A wakes B", each edge tested against matched controls (R13)."""

from collections.abc import Iterator, Sequence
from functools import cache

import duckdb
import numpy as np
import pyarrow as pa
from scipy.stats import false_discovery_control, poisson_binom

from saelake import queries
from saelake.analysis.stage import Stage, Work, searched_split, single_shard
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import WAKING_EDGES, WAKINGS


@cache
def p_value(n_woken: int, chances: tuple[float, ...]) -> float:
    """Chance of at least `n_woken` wakings if each prompt's has its own chance: a Poisson-binomial tail."""
    if n_woken == 0 or not chances:
        return 1.0
    return float(np.clip(poisson_binom.sf(n_woken - 1, chances), 0, 1))


def edges(con: duckdb.DuckDBPyConnection) -> pa.Table:
    """Every edge with its p-value, and its q-value among those of single sources or of whole sets.

    The test is exact, given in how many passes of each prompt the feature wakes: under the null hypothesis that the source is no
    other than its controls, any of the prompt's passes could as well be its own. Edges are a family by these margins alone, not
    by whether the source woke them, so that choosing them does not bias the test.
    """
    found = queries.run(con, "waking_counts").to_arrow_table()
    n_woken, chances = found["n_woken_tested"].to_pylist(), [tuple(sorted(c)) for c in found["chances"].to_pylist()]
    p_values = np.array([p_value(n, c) for n, c in zip(n_woken, chances, strict=True)], dtype=np.float64)
    q_values = np.ones_like(p_values)
    is_one = found["source_feature_id"].is_valid().to_numpy(zero_copy_only=False)
    for family in (is_one, ~is_one):
        if family.any():
            q_values[family] = false_discovery_control(p_values[family], method="bh")
    columns = {name: found[name] for name in found.column_names if name != "chances"}
    expected = [float(np.sum(c)) for c in chances]
    return Rows.of(WAKING_EDGES, columns | {"expected": expected, "p_value": p_values, "q_value": q_values}).rows


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    with work.sql() as con:
        # What follows reads it by its name, as it will stand in the lake.
        con.execute("create temp table wakings as " + queries.load("wakings").statement(con, {}))
        woken = con.sql("from wakings").to_arrow_table()
        rows = [
            Rows.of(WAKINGS, woken),
            Rows("waking_edges", edges(con)),
        ]
    for name in missing:
        yield name, rows


STAGE = Stage(
    name="waking_graph",
    parents=("waking", "prompts", "activations"),
    splits=searched_split,
    sections=(),
    tables=("wakings", "waking_edges"),
    shards=single_shard,
    compute=_compute,
    code_version=2,
)
