"""How a table lies in Parquet: encodings, compression, row groups, checksums, and the hash of its logical content.

The settings of `activations` are measured, not guessed: feature-major order, delta coding for sorted ids, byte streams for
positions and values, zstd 3, row groups small enough that one feature's rows are read alone.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .schema import TABLES
from .store import sha256_file, sync_file

FACT_ROW_GROUP = 16_384
ROW_GROUP = 131_072
DELTA_COLUMNS = {"feature_id", "prompt_id", "ablation_id", "set_id"}
BYTE_STREAM_COLUMNS = {"pos", "activation", "cosine"}


@dataclass(frozen=True)
class DataFile:
    """A published file as its run record lists it: `path` relative to the lake, and what it must still hold."""

    table: str
    path: str
    n_rows: int
    n_bytes: int
    sha256: str


class ContentHash:
    """A hash of a table's rows that does not depend on how they are cut into batches, files or row groups.

    Every column is a few byte streams (validity, lengths, values), each hashed by itself as the rows go by.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._streams: dict[tuple[str, ...], Any] = {}
        self.n_rows = 0

    def update(self, batch: pa.RecordBatch) -> None:
        self.n_rows += batch.num_rows
        for field in self._schema:
            for stream, content in _byte_streams(batch[field.name], field.nullable):
                key = (field.name, *stream)
                if key not in self._streams:
                    self._streams[key] = hashlib.blake2b(digest_size=16)
                self._streams[key].update(content)

    def hexdigest(self) -> str:
        total = hashlib.sha256(f"{self.n_rows}".encode())
        for key in sorted(self._streams):
            total.update(f";{'.'.join(key)}:{self._streams[key].hexdigest()}".encode())
        return total.hexdigest()


def _byte_streams(column: pa.Array, nullable: bool) -> Iterator[tuple[tuple[str, ...], memoryview]]:
    if nullable:
        yield ("valid",), memoryview(column.is_valid().cast(pa.int8()).to_numpy(zero_copy_only=False))
    if pa.types.is_list(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0)
        yield ("lengths",), memoryview(lengths.to_numpy(zero_copy_only=False).astype("<i8"))
        for stream, content in _byte_streams(column.flatten(), nullable=False):
            yield ("items", *stream), content
    elif pa.types.is_string(column.type):
        text = pc.fill_null(column, "").cast(pa.large_binary())
        yield ("lengths",), memoryview(pc.binary_length(text).to_numpy(zero_copy_only=False).astype("<i8"))
        offsets = np.frombuffer(text.buffers()[1], dtype="<i8")[text.offset : text.offset + len(text) + 1]
        if len(offsets) and text.buffers()[2] is not None:
            yield ("text",), memoryview(text.buffers()[2])[offsets[0] : offsets[-1]]
    else:
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        values = pc.fill_null(column, 0) if column.null_count else column
        yield ("values",), memoryview(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)))


def parquet_options(table: str) -> dict[str, Any]:
    """Keyword arguments of pyarrow's ParquetWriter for one table of the protocol."""
    names = [c.name for c in TABLES[table].columns]
    encoding = {n: "DELTA_BINARY_PACKED" for n in names if n in DELTA_COLUMNS}
    encoding |= {n: "BYTE_STREAM_SPLIT" for n in names if n in BYTE_STREAM_COLUMNS}
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": [n for n in names if n not in encoding],
        "column_encoding": encoding,
        "write_page_index": True,
        "write_page_checksum": True,
    }


def write_table(
    path: Path, table: str, batches: Iterable[pa.RecordBatch], content: ContentHash
) -> tuple[int, int, str]:
    """Writes sorted `batches` as one durable Parquet file; returns its rows, bytes and sha256.

    Args:
        content: running hash of the whole table, updated with these rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = TABLES[table].schema
    row_group = FACT_ROW_GROUP if table == "activations" else ROW_GROUP
    n_rows = 0
    with pq.ParquetWriter(path, schema, **parquet_options(table)) as writer:
        for rows in _in_row_groups(batches, row_group):
            content.update(rows)
            n_rows += rows.num_rows
            writer.write_batch(rows, row_group_size=row_group)
    sync_file(path)
    return n_rows, path.stat().st_size, sha256_file(path)


def _in_row_groups(batches: Iterable[pa.RecordBatch], row_group: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of a whole number of row groups (the last one may be short)."""
    kept: list[pa.RecordBatch] = []
    n_kept = 0
    for batch in batches:
        kept.append(batch)
        n_kept += batch.num_rows
        if n_kept >= row_group:
            rows = pa.concat_batches(kept)
            whole = n_kept - n_kept % row_group
            yield rows.slice(0, whole)
            kept, n_kept = [rows.slice(whole)], n_kept - whole
    if n_kept:
        yield pa.concat_batches(kept)
