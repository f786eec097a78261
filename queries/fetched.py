"""The rows of a relation as they are fetched: as Python's values, as Arrow, or into a file of Parquet."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 10_000
NAMES = r"""\"(?:[^\"]|\"\")*\"|'(?:[^']|'')*'"""
"""Of fields and of an ENUM's values, which may read like types."""
AS_TEXT = re.compile(
    rf"{NAMES}|\b(?P<type>TIMESTAMP WITH TIME ZONE|TIMESTAMP(_NS|_MS|_S)?|DATE|TIME WITH TIME ZONE|TIME_NS|INTERVAL|BIT|BIGNUM|"
    r"VARIANT|GEOMETRY)(?=[,)\[]|$)"
)
"""Types whose values Python lacks, in part (the year 10000, infinity) or without further packages (time zones)."""
NOT_IN_PARQUET = re.compile(rf"{NAMES}|\b(?P<type>TIME WITH TIME ZONE|INTERVAL|BIT|BIGNUM|VARIANT|GEOMETRY)(?=[,)\[]|$)")
"""Types that Parquet, or Arrow on the way there, has no equivalent for: they are written as text."""
UNION = re.compile(rf"{NAMES}|\b(?P<type>UNION)\(")
"""Another one: a column that has it anywhere is written as text, whole."""
PARQUET_ROWS = 122_880
"""Rows of a row group of what is written as Parquet."""


class ShownRows(NamedTuple):
    """Rows to show, with the names and DuckDB types of their columns."""

    names: Sequence[str]
    types: Sequence[str]
    rows: Iterator[Sequence[Any]]


def rows_of(relation: duckdb.DuckDBPyRelation) -> ShownRows:
    """The rows of a relation as Python's values, read as they are asked for; raises duckdb.Error."""
    names, types = relation.columns, [str(kind) for kind in relation.types]
    read = relation.project(", ".join(_as_read(place, kind) for place, kind in enumerate(types, 1)))

    def fetched() -> Iterator[Sequence[Any]]:
        for batch in _batches(read, BATCH):
            yield from zip(*map(_values, batch.columns, types), strict=True)

    return ShownRows(names, types, fetched())


def _as_read(place: int, kind: str) -> str:
    """A column, by its place, as something that Python has a value for."""
    if kind == "FLOAT":
        # As a Python float 0.1 would be 0.10000000149011612: DuckDB knows the shortest number that is the same float.
        return f"#{place}::varchar::double"
    if kind in ("HUGEINT", "UHUGEINT"):
        return f"#{place}::varchar"
    read = _with_text(AS_TEXT, kind)
    return f"#{place}" if read == kind else f"#{place}::{read}"


def _with_text(types: re.Pattern[str], kind: str) -> str:
    """A type with VARCHAR for the types that a pattern finds in it."""
    return types.sub(lambda found: "VARCHAR" if found["type"] else found[0], kind)


def _values(column: "pa.Array", kind: str) -> list[Any]:
    values: list[Any] = column.to_pylist(maps_as_pydicts="lossy")
    if kind in ("HUGEINT", "UHUGEINT"):
        return [None if value is None else int(value) for value in values]
    if kind.startswith("TIMESTAMP") and AS_TEXT.fullmatch(kind):
        return [value and value.replace(" ", "T", 1) for value in values]
    return values


def _batches(relation: duckdb.DuckDBPyRelation, n_rows: int) -> Iterator["pa.RecordBatch"]:
    """The rows a batch at a time, which every DuckDB gives as Arrow alone; raises duckdb.Error."""
    import pyarrow as pa

    try:
        yield from relation.to_arrow_reader(n_rows)
    except (OSError, pa.ArrowException) as error:  # what DuckDB says while rows are fetched comes through Arrow
        raise duckdb.Error(str(error)) from error


def write_parquet(relation: duckdb.DuckDBPyRelation, path: Path) -> None:
    """Writes a relation as Parquet; what that has no type for becomes text. Raises duckdb.Error."""
    # Not by DuckDB: a connection that answers what others typed may not write files.
    import pyarrow as pa
    import pyarrow.parquet as pq

    names, kinds = distinct(relation.columns), [str(kind) for kind in relation.types]
    casts = ", ".join(f"#{place}::{_in_parquet(kind)}" for place, kind in enumerate(kinds, 1))
    rows = relation.project(casts)
    fields = rows.limit(0).to_arrow_table().schema
    schema = pa.schema([field.with_name(name) for name, field in zip(names, fields, strict=True)])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in _batches(rows, PARQUET_ROWS):
            writer.write_batch(batch.rename_columns(names))


def _in_parquet(kind: str) -> str:
    return "VARCHAR" if any(found["type"] for found in UNION.finditer(kind)) else _with_text(NOT_IN_PARQUET, kind)


def distinct(names: Sequence[str]) -> list[str]:
    """Column names, repeated ones numbered: an object cannot hold a name twice."""
    found: list[str] = []
    for name in names:
        candidates = (name if i == 0 else f"{name}_{i}" for i in range(len(names) + 1))
        found.append(next(c for c in candidates if c not in found))
    return found
