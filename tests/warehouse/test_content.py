"""The content hash sees logical rows only, and the row order sees what a sort would."""

import itertools
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelake.warehouse.content import ContentHash
from saelake.warehouse.layout import rechunk
from saelake.warehouse.order import RowOrder

SCHEMA = pa.schema(
    [
        pa.field("number", pa.int32()),
        pa.field("text", pa.string()),
        pa.field("flag", pa.bool_()),
        pa.field("value", pa.float32(), nullable=False),
        pa.field("vector", pa.list_(pa.float32())),
    ]
)
FLOATS = st.floats(width=32, allow_nan=False)
ROWS = st.lists(
    st.tuples(
        st.none() | st.integers(-(2**31), 2**31 - 1),
        st.none() | st.text(max_size=3),
        st.none() | st.booleans(),
        FLOATS,
        st.none() | st.lists(FLOATS, max_size=3),
    ),
    max_size=12,
)


def _batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def _hash(*batches: pa.RecordBatch) -> str:
    content = ContentHash(SCHEMA)
    for batch in batches:
        content.update(batch)
    return content.hexdigest()


@given(ROWS, st.lists(st.integers(0, 12), max_size=4))
def test_hash_does_not_depend_on_cuts(rows: list[tuple[Any, ...]], cuts: list[int]) -> None:
    """Slices keep their parent's buffers and offsets, copies do not; empty batches count for nothing."""
    whole = _batch(rows)
    edges = [0, *sorted(min(c, len(rows)) for c in cuts), len(rows)]
    slices = [whole.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    copies = [_batch(rows[a:b]) for a, b in itertools.pairwise(edges)]
    assert _hash(whole) == _hash(*slices) == _hash(*copies) == _hash(*rechunk(slices, 5))


@given(ROWS)
def test_hash_does_not_depend_on_dictionaries_or_buffers(rows: list[tuple[Any, ...]]) -> None:
    whole = _batch(rows)
    coded = whole.set_column(1, "text", whole["text"].dictionary_encode())
    shifted = _batch([(1, "before", True, 1.0, [1.0, 2.0]), *rows]).slice(1)
    assert _hash(whole) == _hash(coded) == _hash(shifted) == _hash(*(coded.slice(i, 1) for i in range(len(rows))))


@given(ROWS, ROWS)
def test_hash_tells_different_rows_apart(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> None:
    assert (_hash(_batch(one)) == _hash(_batch(other))) == (repr(one) == repr(other))  # repr tells -0.0 from 0.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([(None, "", None, 0.0, [])], [(0, "", None, 0.0, [])]),
        ([(None, None, None, 0.0, [])], [(None, "", None, 0.0, [])]),
        ([(None, "", None, 0.0, None)], [(None, "", None, 0.0, [])]),
        ([(1, "ab", True, 0.0, [1.0, 2.0]), (1, "c", True, 0.0, [])], [(1, "a", True, 0.0, [1.0]), (1, "bc", True, 0.0, [2.0])]),
        ([(1, "a", True, 0.0, []), (1, "a", True, 0.0, [])], [(1, "a", True, 0.0, []), (1, "aa", True, 0.0, [])]),
    ],
)
def test_hash_tells_near_misses_apart(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> None:
    assert _hash(_batch(one)) != _hash(_batch(other))


@given(st.lists(st.tuples(st.none() | st.integers(0, 2), st.none() | st.text("ab", max_size=1)), max_size=12), st.integers(1, 5))
def test_row_order_counts_what_python_counts(rows: list[tuple[Any, ...]], size: int) -> None:
    columns = list(zip(*rows, strict=True)) or [(), ()]
    table = pa.table({"n": pa.array(columns[0], pa.int32()), "t": pa.array(columns[1], pa.string())})
    order = RowOrder(["n", "t"])
    for batch in table.to_batches(max_chunksize=size):
        order.update(batch)
    keys = [tuple((True,) if v is None else (False, v) for v in row) for row in rows]  # nulls last
    pairs = list(itertools.pairwise(keys))
    assert order.n_repeated == sum(a == b for a, b in pairs)
    assert (order.n_misplaced > 0) == any(a > b for a, b in pairs)


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 6))
def test_rechunk_gives_exact_batches(sizes: list[int], n_rows: int) -> None:
    start, batches = 0, []
    for size in sizes:
        batches.append(pa.record_batch({"n": list(range(start, start + size))}, schema=pa.schema([("n", pa.int64())])))
        start += size
    cut = list(rechunk(batches, n_rows))
    assert [v for b in cut for v in b["n"].to_pylist()] == list(range(start))
    assert all(len(b) == n_rows for b in cut[:-1])
    assert all(0 < len(b) <= n_rows for b in cut)
