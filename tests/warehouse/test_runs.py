"""The life of a run: computed once, resumed after a kill, found again, shared by recipes, compared when forced."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from saelake.warehouse.catalog import connect
from saelake.warehouse.check import check
from saelake.warehouse.errors import UserError
from saelake.warehouse.housekeeping import drop
from saelake.warehouse.lake import Lake
from saelake.warehouse.progress import Quiet
from saelake.warehouse.records import RunSpec
from saelake.warehouse.runs import Plan, Rows, ensure_run
from saelake.warehouse.schema import ACTIVATIONS, ALIGNMENTS, FM_EMBEDDINGS, PROBE_WEIGHTS, TABLES, Table
from tests.warehouse import processes, toys


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.create(tmp_path / "lake")


def _counted(plan: Plan, computed: list[str]) -> Plan:
    def compute(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        for name, rows in plan.compute(missing):
            computed.append(name)
            yield name, rows

    return replace(plan, compute=compute)


def test_a_found_run_computes_nothing(lake: Lake) -> None:
    toys.ingest(lake)
    first = toys.answers(lake)
    computed: list[str] = []
    found = ensure_run(lake, toys.answers_spec(), _counted(toys.answers_plan(), computed))
    assert (found, computed) == (first, [])


def test_a_stopped_run_goes_on_with_the_missing_shards(lake: Lake) -> None:
    toys.ingest(lake)
    plan = toys.answers_plan()

    def stop_after_one(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        yield next(iter(plan.compute(missing)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_run(lake, toys.answers_spec(), replace(plan, compute=stop_after_one))
    computed: list[str] = []
    ensure_run(lake, toys.answers_spec(), _counted(plan, computed))
    assert computed == ["b", "c"]


@pytest.mark.parametrize("shards", [("c", "a", "b"), ("a", "b", "c")])
def test_ids_are_dense_unique_and_consistent(lake: Lake, shards: Sequence[str]) -> None:
    """Ablations land with content hashes; publishing numbers them in the order of their rows, whoever landed first."""
    toys.ingest(lake)
    record = ensure_run(lake, toys.answers_spec(), toys.answers_plan(shards=shards))
    first = toys.answers_spec().tag << 32
    with connect(lake) as con:
        ablations = con.execute(
            "select ablation_id, set_id, completion from ablations order by condition, k, prompt_id"
        ).fetchall()
        sizes = dict(con.execute("select set_id, count(*) from feature_sets group by all").fetchall())
        judged = con.execute("select ablation_id from verdicts order by all").fetchall()
    assert [row[0] - first for row in ablations] == list(range(24))
    assert [row[0] - first for row in judged] == list(range(24))
    assert sorted(set_id - first for set_id in sizes) == [0, 1, 2, 3, 4]
    for _, set_id, completion in ablations:  # prompt p asks for the set of p % 5, which has p % 5 + 1 features a layer
        number = int(completion.split()[1]) % 5
        assert (sizes[set_id] == 2 * (number + 1)) if number else set_id is None
    assert check(lake) == []
    assert record.content_hash == toys_hash(lake)


def toys_hash(lake: Lake) -> str:
    """The content hash that the answers have in a lake of their own, landed in the usual order."""
    other = Lake.create(lake.root.parent / "other")
    toys.ingest(other)
    return toys.answers(other).content_hash


def test_a_key_that_no_shard_landed_is_refused(lake: Lake) -> None:
    toys.ingest(lake)

    def dangling(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        for name, rows in toys.answers_plan().compute(missing):
            yield name, [r for r in rows if r.table != "ablations"] if name == "b" else rows

    with pytest.raises(Exception, match="no shard landed what it points to"):
        ensure_run(lake, toys.answers_spec(), replace(toys.answers_plan(), compute=dangling))
    assert len(lake.records()) == 1


def test_a_run_is_shared_by_two_recipes(lake: Lake) -> None:
    record = toys.ingest(lake)
    spec = replace(toys.ingest_spec(), recipe="second")
    assert ensure_run(lake, spec, toys.plan(toys.SHAPE, spec)) == record
    assert lake.current() == {("toy0", "ingest"): (record.run_id,), ("second", "ingest"): (record.run_id,)}
    with connect(lake) as both, connect(lake, "second") as second:
        n_rows = [con.execute("select count(*) from activations").fetchall() for con in (both, second)]
    assert n_rows == [[(record.n_rows("activations"),)]] * 2
    drop(lake, record.run_id)
    assert lake.current() == {}


def test_force_compares_and_keeps_what_is_published(lake: Lake) -> None:
    toys.ingest(lake)
    record = toys.answers(lake)
    assert toys.answers(lake, force=True) == record

    def other(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        for name, rows in toys.answers_plan().compute(missing):
            yield name, [replace(r, rows=r.rows.slice(1)) if r.table == "verdicts" else r for r in rows]

    with pytest.raises(UserError, match="other content in verdicts"):
        ensure_run(lake, toys.answers_spec(), replace(toys.answers_plan(), compute=other), force=True)
    assert lake.record(record.run_id) == record
    assert check(lake) == []
    assert list((lake.root / "landing").iterdir()) == []


def test_a_parent_that_is_dropped_meanwhile_stops_the_run(lake: Lake) -> None:
    parent = toys.ingest(lake)

    def drop_parent(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        drop(lake, parent.run_id)
        yield from toys.answers_plan().compute(missing)

    with pytest.raises(UserError, match=parent.run_id):
        ensure_run(lake, toys.answers_spec(), replace(toys.answers_plan(), compute=drop_parent))
    toys.ingest(lake)
    computed: list[str] = []
    ensure_run(lake, toys.answers_spec(), _counted(toys.answers_plan(), computed))
    assert computed == [], "its landed shards are kept"


def test_a_tag_collision_is_refused_before_anything_is_computed(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.ingest(lake)
    monkeypatch.setattr("saelake.warehouse.commit.run_tag", lambda run_id: 7)
    monkeypatch.setattr(RunSpec, "tag", 7)
    computed: list[str] = []
    with pytest.raises(UserError, match="collide"):
        ensure_run(lake, toys.answers_spec(), _counted(toys.answers_plan(), computed))
    assert computed == []


FEATURE = {"sae_id": ["s"], "layer": [0], "feature_id": [0]}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("table", "columns", "name", "layer"),
    [
        (ACTIVATIONS, FEATURE | {"prompt_id": [0], "pos": [0]}, "activation", 0),
        (ALIGNMENTS, FEATURE | {"direction": ["own"]}, "cosine", 0),
        (PROBE_WEIGHTS, FEATURE | {"n_train": [1], "scale": [1.0]}, "weight", None),
        (FM_EMBEDDINGS, FEATURE | {"model": ["fm_1"], "n_train": [1], "scale": [1.0], "weight": [0.0]}, "vector", None),
    ],
)
def test_what_check_would_call_damage_is_not_published(
    lake: Lake, table: Table, columns: dict[str, Any], name: str, layer: int | None, value: float
) -> None:
    held = [[1.0, value]] if name == "vector" else [value]

    def broken(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        yield "a", [Rows.of(table, columns | {name: held}, layer)]

    with pytest.raises(UserError, match=rf"{table.name}\.{name} has values that are not finite numbers"):
        ensure_run(lake, toys.ingest_spec(), Plan(["a"], broken, [table.name]))
    assert lake.records() == []


def test_many_rows_are_published_in_their_order(lake: Lake) -> None:
    """DuckDB 2 sorts them in parts, and hands the parts on as they come where it is not asked well."""
    n_rows = 60_000
    ids = np.random.default_rng(0).permutation(n_rows)
    rows = FEATURE | {"feature_id": ids, "n_train": [1], "scale": [1.0], "weight": [0.5]}
    columns = {name: np.resize(np.asarray(values), n_rows) for name, values in rows.items()}

    def landed(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        yield "a", [Rows.of(PROBE_WEIGHTS, columns)]

    record = ensure_run(lake, toys.ingest_spec(), Plan(["a"], landed, ["probe_weights"]))
    (file,) = record.files
    assert pq.read_table(lake.root / file.path)["feature_id"].to_pylist() == list(range(n_rows))


KILLED = """
lake = Lake.existing(sys.argv[1])
plan = toys.answers_plan()
def slowly(missing):
    for name, rows in plan.compute(missing):
        print(name, flush=True)
        time.sleep(0.2)
        yield name, rows
from dataclasses import replace
from saelake.warehouse.runs import ensure_run
print(ensure_run(lake, toys.answers_spec(), replace(plan, compute=slowly)).content_hash)
"""


def test_a_killed_process_leaves_its_shards_and_blocks_nobody(lake: Lake) -> None:
    toys.ingest(lake)
    process = processes.start(KILLED, lake.root)
    assert process.stdout is not None
    assert [process.stdout.readline().strip() for _ in range(2)] == ["a", "b"]  # "b" is asked for: "a" is landed
    process.kill()
    process.wait()
    computed: list[str] = []
    started = time.monotonic()
    record = ensure_run(lake, toys.answers_spec(), _counted(toys.answers_plan(), computed))
    assert computed == ["b", "c"]
    assert time.monotonic() - started < 20
    assert record.content_hash == toys_hash(lake)


def test_two_processes_that_ask_for_one_run_compute_it_once(lake: Lake) -> None:
    toys.ingest(lake)
    outputs = [processes.finish(p).split() for p in [processes.start(KILLED, lake.root) for _ in range(3)]]
    assert sorted(name for output in outputs for name in output[:-1]) == ["a", "b", "c"]
    assert len({output[-1] for output in outputs}) == 1


def test_a_waiting_process_says_so(lake: Lake) -> None:
    toys.ingest(lake)
    process = processes.start(KILLED, lake.root)
    assert process.stdout is not None
    process.stdout.readline()
    said: list[str] = []

    class Listener(Quiet):
        def say(self, sentence: str) -> None:
            said.append(sentence)

    toys.answers(lake, progress=Listener())
    assert said == [f"waiting: another process computes {toys.answers_spec().run_id}"]
    processes.finish(process)


def test_every_table_can_be_empty(lake: Lake) -> None:
    def nothing(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        yield "a", []

    record = ensure_run(lake, RunSpec("empty", "toy", {}), Plan(["a"], nothing, list(TABLES)))
    assert [t.n_rows for t in record.tables] == [0] * len(TABLES)
    assert check(lake) == []
    with connect(lake) as con:
        assert all(con.execute(f"select count(*) from {name}").fetchall() == [(0,)] for name in TABLES)
