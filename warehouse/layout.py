"""How a table lies in Parquet: encodings, compression, row groups and checksums.

The settings of `activations` are measured, not guessed: feature-major order, delta coding for sorted ids, a byte stream for
values, zstd 3, row groups small enough that one feature's rows are read alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from saelake.warehouse.content import ContentHash
from saelake.warehouse.durable import make_private, sha256_file, sync_file
from saelake.warehouse.schema import SCHEMA_VERSION, TABLES

ROW_GROUPS = {"activations": 16_384}
BATCH_ROWS = 131_072
"""Rows that are handled at once: the row group of all tables but those above, and a multiple of theirs."""
BATCH_BYTES = 32 << 20
"""Text of the rows that are read from a file at once."""
READ_BYTES, MOST_GROUPS, DEEPEST = 1 << 20, 1 << 17, 8
"""Of files that are read: what is fetched at once and a text in the footer in bytes, row groups, levels of the schema."""
PRIVATE = frozenset(table.name for table in TABLES.values() if any(column.is_private for column in table.columns))
"""Tables whose files are their owner's alone."""


def parquet_options(table: str, version: int = SCHEMA_VERSION) -> dict[str, Any]:
    """Keyword arguments of pyarrow's ParquetWriter for one table of the protocol."""
    columns = TABLES[table].stored(version)
    names, encoding = [c.name for c in columns], {c.name: c.encoding for c in columns if c.encoding}
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": [n for n in names if n not in encoding],
        "column_encoding": encoding,
        "write_statistics": [c.name for c in columns if c.is_ranged],
        "write_page_index": True,
        "write_page_checksum": True,
        "store_schema": False,  # the Parquet types say it all, for every reader
    }


def write_table(
    path: Path,
    table: str,
    batches: Iterable[pa.RecordBatch],
    content: ContentHash,
    group_rows: int | None = None,
    version: int = SCHEMA_VERSION,
    *,
    private: bool | None = None,
) -> tuple[int, int, str]:
    """Writes sorted `batches` of BATCH_ROWS rows (see `rechunk`) as one durable Parquet file; returns its rows, bytes and sha256.

    Args:
        content: running hash of the whole table, updated with these rows.
        group_rows: rows of a row group, if not those that suit the table.
        version: of the schema, if it is a file of an older run.
        private: whether the file is its owner's alone; by default if the table holds completions.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if table in PRIVATE if private is None else private:
        make_private(path)
    schema = _writing_schema(table, version)
    row_group = group_rows or ROW_GROUPS.get(table, BATCH_ROWS)
    n_rows = 0
    with pq.ParquetWriter(path, schema, **parquet_options(table, version)) as writer:
        for rows in batches:
            content.update(rows)
            n_rows += rows.num_rows
            columns = [_written(rows[field.name], field.type) for field in schema]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema), row_group_size=row_group)
    sync_file(path)
    return n_rows, path.stat().st_size, sha256_file(path)


def _writing_schema(table: str, version: int) -> pa.Schema:
    coded, repeated = pa.dictionary(pa.int32(), pa.string()), {c.name for c in TABLES[table].columns if c.is_repeated}
    return pa.schema([f.with_type(coded) if f.name in repeated else f for f in TABLES[table].schema_at(version)])


def _written(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    return column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)


def rechunk(batches: Iterable[pa.RecordBatch], n_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of exactly `n_rows` (the last one may be short), whatever sizes they came in.

    Where so many rows have more than twice BATCH_BYTES, batches are shorter.
    """
    kept: list[pa.RecordBatch] = []
    n_kept = 0
    for batch in batches:
        if n_kept and sum(b.nbytes for b in kept) + batch.nbytes > 2 * BATCH_BYTES:
            yield _joined(kept)
            kept, n_kept = [], 0
        while n_kept + batch.num_rows >= n_rows:
            head = n_rows - n_kept
            yield _joined([*kept, batch.slice(0, head)])
            kept, n_kept, batch = [], 0, batch.slice(head)
        if batch.num_rows:
            kept.append(batch)
            n_kept += batch.num_rows
    if n_kept:
        yield _joined(kept)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def open_parquet(path: Path, text: Sequence[str] = ()) -> pq.ParquetFile:
    """A file that nobody vouches for, with bounds on what its footer may be; columns named in `text` come dictionary-coded."""
    return pq.ParquetFile(
        path,
        read_dictionary=list(text),
        page_checksum_verification=True,
        pre_buffer=False,
        buffer_size=READ_BYTES,
        thrift_string_size_limit=READ_BYTES,
        thrift_container_size_limit=MOST_GROUPS,
        schema_depth_limit=DEEPEST,
    )


def stored_batches(path: Path, table: str, version: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a file of a run of that version in order, a few at a time: no batch has more than BATCH_BYTES of text.

    However often long texts come again, they are spelt out only for the rows of one batch.
    """
    text = text_columns(table, version)
    with open_parquet(path, text) as parquet:
        # To hand the columns of a few rows to other threads takes longer than to read them.
        is_large = parquet.metadata.num_rows > BATCH_ROWS
        for batch in parquet.iter_batches(BATCH_ROWS, columns=None if columns is None else list(columns), use_threads=is_large):
            yield from _spelt_out(batch, [name for name in text if name in batch.schema.names])


def text_columns(table: str, version: int) -> list[str]:
    """The columns of a table that hold text, in files of a version of the schema."""
    return [field.name for field in TABLES[table].schema_at(version) if pa.types.is_string(field.type)]


def _spelt_out(batch: pa.RecordBatch, text: Sequence[str]) -> Iterator[pa.RecordBatch]:
    ends = np.cumsum(sum((text_lengths(batch[name]) for name in text), np.zeros(batch.num_rows, dtype=np.int64)))
    fields = [f.with_type(pa.string()) if f.name in text else f for f in batch.schema]
    first = 0
    while first < batch.num_rows:
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + BATCH_BYTES, "right")))
        rows = batch.slice(first, last - first)
        yield pa.RecordBatch.from_arrays([rows[f.name].cast(f.type) for f in fields], schema=pa.schema(fields))
        first = last


def text_lengths(column: pa.DictionaryArray) -> np.ndarray:
    """(n_rows,) int64: bytes of each text of a dictionary-coded column, without spelling it out; 0 for null."""
    lengths = pc.binary_length(column.dictionary.cast(pa.large_binary()))
    return pc.fill_null(lengths.take(column.indices), 0).to_numpy(zero_copy_only=False).astype(np.int64)
