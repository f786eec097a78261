"""How a table lies in Parquet: encodings, compression, row groups and checksums.

The settings of `activations` are measured, not guessed: feature-major order, delta coding for sorted ids, a byte stream for
values, zstd 3, row groups small enough that one feature's rows are read alone.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saelake.warehouse.content import ContentHash
from saelake.warehouse.schema import SCHEMA_VERSION, TABLES
from saelake.warehouse.store import sha256_file, sync_file

ROW_GROUPS = {"activations": 16_384}
BATCH_ROWS = 131_072
"""Rows that are handled at once: the row group of all tables but those above, and a multiple of theirs."""
DELTA_COLUMNS = {"feature_id", "prompt_id", "ablation_id", "set_id"}
BYTE_STREAM_COLUMNS = {"activation", "cosine"}  # DuckDB reads byte streams of floats only: `pos` takes a dictionary, +2% bytes
REPEATED_COLUMNS = {"run_id", "sae_id"}
"""Handed to the writer as Arrow dictionaries, which it writes faster; the file holds plain strings all the same."""

UNRANGED_COLUMNS = {"activations": {"run_id", "pos"}, "activations_by_prompt": {"run_id", "pos", "feature_id"}}
"""No reader can skip row groups by their range: a file holds one run, and a row group nearly every position."""


def parquet_options(table: str, version: int = SCHEMA_VERSION) -> dict[str, Any]:
    """Keyword arguments of pyarrow's ParquetWriter for one table of the protocol."""
    names = TABLES[table].schema_at(version).names
    encoding = {n: "DELTA_BINARY_PACKED" for n in names if n in DELTA_COLUMNS}
    encoding |= {n: "BYTE_STREAM_SPLIT" for n in names if n in BYTE_STREAM_COLUMNS}
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": [n for n in names if n not in encoding],
        "column_encoding": encoding,
        "write_statistics": [n for n in names if n not in UNRANGED_COLUMNS.get(table, ())],
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
) -> tuple[int, int, str]:
    """Writes sorted `batches` of BATCH_ROWS rows (see `rechunk`) as one durable Parquet file; returns its rows, bytes and sha256.

    Args:
        content: running hash of the whole table, updated with these rows.
        group_rows: rows of a row group, if not those that suit the table.
        version: of the schema, if it is a file of an older run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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
    repeated = pa.dictionary(pa.int32(), pa.string())
    return pa.schema([f.with_type(repeated) if f.name in REPEATED_COLUMNS else f for f in TABLES[table].schema_at(version)])


def _written(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    return column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)


def rechunk(batches: Iterable[pa.RecordBatch], n_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of exactly `n_rows` (the last one may be short), whatever sizes they came in."""
    kept: list[pa.RecordBatch] = []
    n_kept = 0
    for batch in batches:
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
