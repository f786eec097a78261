"""Shards: what a job computes, written to disk whole or not at all, so that a killed job goes on with the missing ones."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from saelake.warehouse.durable import folder_atomic, make_private
from saelake.warehouse.errors import UserError
from saelake.warehouse.files import file_name
from saelake.warehouse.layout import PRIVATE
from saelake.warehouse.schema import TABLES, Table


@dataclass(frozen=True)
class Rows:
    """Rows that a shard lands: columns of the protocol, `run_id` left out; one layer's only, if the table lies by layer."""

    table: str
    rows: pa.Table
    layer: int | None = None

    @classmethod
    def of(cls, table: Table, columns: Mapping[str, Any] | pa.Table, layer: int | None = None) -> "Rows":
        """Rows in the protocol's types from columns in any form that Arrow takes; those that publishing adds may be absent."""
        names = columns.column_names if isinstance(columns, pa.Table) else columns
        return cls(table.name, pa.table({name: _typed(columns[name], table.column(name).type) for name in names}), layer)

    @classmethod
    def none(cls, table: Table) -> "Rows":
        """No rows of a table."""
        return cls.of(table, {column.name: [] for column in table.columns if column.name != "run_id"})


def _typed(values: Any, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.ChunkedArray) else pa.array(values, kind)


def repeated(text: str, n: int) -> pa.DictionaryArray:
    """A column of one repeated text, stored once."""
    return pa.DictionaryArray.from_arrays(np.zeros(n, dtype=np.int8), [text])


class Summary(Protocol):
    """Sees the sorted activations while they are published and completes tables that summarise them."""

    tables: frozenset[str]

    def observe(self, layer: int, rows: pa.RecordBatch) -> None: ...

    def complete(self, table: str, landed: pa.Table) -> pa.Table: ...


Compute = Callable[[Sequence[str]], Iterator[tuple[str, list[Rows]]]]
"""Makes the rows of some shards, by name, in any order."""


def with_others(_missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    """What computes a run whose shards are computed together with those of others (`runs.ensure_runs`): not this."""
    raise AssertionError("its shards are computed together with those of others")


@dataclass(frozen=True)
class Plan:
    """How a run is computed: its shards by name, and the function that computes the missing ones, in any order."""

    shards: Sequence[str]
    compute: Compute
    tables: Sequence[str]
    unit: str = "shards"
    about: Callable[[], Mapping[str, object]] = dict
    """What is worth knowing when all shards are landed, beside what the run's spec says; it determines nothing."""
    summary: Callable[[Callable[[str], pa.Table]], Summary] | None = None
    """Makes the summary from a function that reads a landed table."""

    @classmethod
    def of(
        cls,
        rows: list[Rows],
        tables: Sequence[str],
        summary: Callable[[Callable[[str], pa.Table]], Summary] | None = None,
    ) -> "Plan":
        """The plan of a run whose rows are there already: one shard."""
        return cls(["all"], lambda missing: ((name, rows) for name in missing), tables, summary=summary)


def land(folder: Path, shard: Iterable[Rows]) -> None:
    """Writes one shard, durably and atomically. The files are plain: they live until the run is published."""
    parts: dict[tuple[str, int | None], list[pa.Table]] = {}
    for part in shard:
        parts.setdefault((part.table, part.layer), []).append(_checked(part))
    with folder_atomic(folder) as draft:
        for (table, layer), rows in parts.items():
            _write(draft / file_name(table, layer), pa.concat_tables(rows))


def _checked(part: Rows) -> pa.Table:
    assert TABLES[part.table].by_layer == (part.layer is not None), f"{part.table}: a layer is given where the table has none"
    rows = conform(part.table, part.rows)
    if part.layer is None:
        return rows
    assert (rows["layer"].to_numpy() == part.layer).all(), f"{part.table}: rows of another layer than {part.layer}"
    return rows.drop_columns("layer")  # the file's name says it


def _write(path: Path, rows: pa.Table) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.parent.name in PRIVATE:
        make_private(path)
    text = [f.name for f in rows.schema if pa.types.is_string(f.type) or pa.types.is_dictionary(f.type)]
    pq.write_table(rows, path, compression="none", use_dictionary=text, write_statistics=False, store_schema=False)


def conform(table: str, rows: pa.Table) -> pa.Table:
    """`rows` in the protocol's order and types; text may be dictionary-coded, columns that publishing adds may be absent.

    A column that may be null is null where it is absent.

    Raises UserError for a number that is not finite, AssertionError for an unknown column, a value that does not
    fit its type, or a null where none may be.
    """
    known = TABLES[table].schema
    unknown = set(rows.column_names) - set(known.names)
    assert not unknown, f"{table} has no columns {sorted(unknown)}"
    for name in (f.name for f in known if f.nullable and f.name not in rows.column_names):
        rows = rows.append_column(name, pa.nulls(len(rows), known.field(name).type))
    fields = [_landed_field(field, rows[field.name].type) for field in known if field.name in rows.column_names]
    try:
        conformed = rows.select([f.name for f in fields]).cast(pa.schema(fields))
    except (pa.ArrowInvalid, ValueError) as error:
        raise AssertionError(f"{table}: {error}") from error
    for field in fields:
        column = conformed[field.name]
        assert field.nullable or not column.null_count, f"{table}.{field.name} has nulls"
        if not _is_finite(column):
            raise UserError(f"{table}.{field.name} has values that are not finite numbers: check the model's files and SAEs")
    return conformed


def _is_finite(column: pa.ChunkedArray) -> bool:
    if pa.types.is_list(column.type):
        return all(_is_finite(pa.chunked_array([chunk.flatten()])) for chunk in column.chunks)
    return not pa.types.is_floating(column.type) or pc.all(pc.is_finite(column)).as_py() is not False


def _landed_field(field: pa.Field, given: pa.DataType) -> pa.Field:
    is_coded = pa.types.is_dictionary(given) and given.value_type == field.type
    return field.with_type(given) if is_coded else field
