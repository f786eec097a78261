"""The hash of a table's logical content: the same rows give the same hash, however they are cut, coded or stored."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class ContentHash:
    """A hash of a table's rows that does not depend on how they are cut into batches, files or row groups.

    Every column is a few byte streams, each hashed by itself as the rows go by: numbers by their values, lists by lengths and
    items, text by runs of equal values (a column that repeats one text costs next to nothing), and validity where it may be null.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._streams: dict[str, Any] = {}
        self._open_runs: dict[str, tuple[pa.Array, int]] = {}
        self.n_rows = 0

    def update(self, batch: pa.RecordBatch) -> None:
        """Adds rows; a column may be dictionary-coded."""
        if not batch.num_rows:
            return
        self.n_rows += batch.num_rows
        for field in self._schema:
            column = batch[field.name]
            if pa.types.is_string(field.type):
                self._update_runs(field.name, *_runs(column))
            else:
                column = column if column.type == field.type else column.cast(field.type)
                self._update_streams(field.name, _value_streams(column, field.nullable))

    def hexdigest(self) -> str:
        for name, (value, count) in self._open_runs.items():
            self._update_streams(name, _run_streams(value, np.array([count])))
        self._open_runs.clear()
        total = hashlib.sha256(f"{self.n_rows}".encode())
        for name in sorted(self._streams):
            total.update(f";{name}:{self._streams[name].hexdigest()}".encode())
        return total.hexdigest()

    def _update_runs(self, name: str, values: pa.Array, counts: np.ndarray) -> None:
        if name in self._open_runs:
            value, count = self._open_runs[name]
            if value[0].as_py() == values[0].as_py():
                counts[0] += count
            else:
                values, counts = pa.concat_arrays([value, values]), np.concatenate([[count], counts])
        # The last run may go on in the next batch. The copy lets go of this batch's memory.
        self._open_runs[name] = pa.array(values[-1:].to_pylist(), values.type), int(counts[-1])
        self._update_streams(name, _run_streams(values[:-1], counts[:-1]))

    def _update_streams(self, name: str, streams: Iterator[tuple[str, Any]]) -> None:
        for stream, content in streams:
            key = f"{name}.{stream}"
            if key not in self._streams:
                self._streams[key] = hashlib.sha256()
            self._streams[key].update(content)


def _runs(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Text as runs of equal values, with the length of each."""
    if pa.types.is_dictionary(column.type):
        if len(column.dictionary) == 1 and not column.null_count:
            return column.dictionary, np.array([len(column)], dtype="<i8")
        column = column.cast(column.type.value_type)
    encoded = pc.run_end_encode(column)
    return encoded.values, np.diff(encoded.run_ends.to_numpy(), prepend=0).astype("<i8")


def _run_streams(values: pa.Array, counts: np.ndarray) -> Iterator[tuple[str, Any]]:
    yield "counts", counts.astype("<i8")
    yield "valid", values.is_valid().cast(pa.int8()).to_numpy(zero_copy_only=False)
    text = pc.fill_null(values, "").cast(pa.large_binary())
    yield "lengths", pc.binary_length(text).to_numpy(zero_copy_only=False).astype("<i8")
    offsets = np.frombuffer(text.buffers()[1], dtype="<i8")[text.offset : text.offset + len(text) + 1] if len(text) else [0, 0]
    yield "text", memoryview(text.buffers()[2] or b"")[offsets[0] : offsets[-1]]


def _value_streams(column: pa.Array, nullable: bool) -> Iterator[tuple[str, Any]]:
    if nullable:
        yield "valid", column.is_valid().cast(pa.int8()).to_numpy(zero_copy_only=False)
    if pa.types.is_list(column.type):
        yield "lengths", pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype("<i8")
        for stream, content in _value_streams(column.flatten(), nullable=False):
            yield f"items.{stream}", content
        return
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    values = pc.fill_null(column, 0) if column.null_count else column
    yield "values", np.ascontiguousarray(values.to_numpy(zero_copy_only=False))
