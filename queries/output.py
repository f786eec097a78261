"""Shows the rows of a relation: as a table to look at, or as CSV, JSON or Parquet to work on with."""

import csv
import io
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

import duckdb

from saelake.queries.fetched import ShownRows, distinct, rows_of, write_parquet
from saelake.queries.parameters import QueryError
from saelake.warehouse.durable import aside, make_private

FORMATS = ("table", "csv", "json", "parquet")
MAX_ROWS, MAX_ROWS_PIPED = 50, 1_000
"""Rows of a table on a terminal, and elsewhere."""
MAX_COUNTED = 1_000_000
"""Further rows that are counted, for the line below a table that was cut."""
WIDEST_CELL, NARROWEST_CELL = 60, 36
"""Text is cut on a terminal, to the first or down to the second: ids and names of conditions are shorter, and stay whole."""
SAFE_INTEGER = 2**53
FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""How a text begins that a spreadsheet might run, with the apostrophes that may stand before it."""


def show(
    relation: duckdb.DuckDBPyRelation,
    kind: str | None = None,
    output: Path | None = None,
    on_empty: Callable[[], None] = lambda: None,
) -> None:
    """Writes a relation to standard output or, whole or not at all, to a file.

    `kind` is one of FORMATS; by default the file's suffix decides, else it is a table. `on_empty` is called where text without
    a row is written.
    Raises QueryError for Parquet on a terminal, for a suffix that is not a format, and for a folder that is not there.
    """
    kind = kind or _kind_of(output)
    if output is not None and not output.parent.is_dir():
        raise QueryError(f"there is no folder {output.parent}: make it first")
    private = output is not None and _has_completions(relation)
    if kind == "parquet":
        _parquet(relation, output, private)
    elif output is None:
        _write(relation, kind, sys.stdout, MAX_ROWS if sys.stdout.isatty() else MAX_ROWS_PIPED, on_empty)
        sys.stdout.flush()
    else:
        _whole(output, lambda draft: _write_file(relation, kind, draft, on_empty), private)


def _kind_of(output: Path | None) -> str:
    suffix = output.suffix[1:].lower() if output else ""
    if suffix not in (*FORMATS, "txt", ""):
        raise QueryError(f"{output}: .{suffix} is not a format: end it in .csv, .json, .parquet or .txt, or give --format")
    return suffix if suffix in FORMATS else "table"


def show_table(rows: ShownRows, out: TextIO, max_rows: int | None = MAX_ROWS) -> None:
    """Writes an aligned table; text is untrusted, so neither markup nor control characters in it do anything.

    Cells are cut on a terminal only.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    body: list[Sequence[Any]] = []
    n_more = 0
    for row in rows.rows:
        if max_rows is None or len(body) < max_rows:
            body.append(row)
        elif (n_more := n_more + 1) > MAX_COUNTED:
            break
    console = Console(file=out, highlight=False, markup=False, emoji=False)
    cells = [[cell(value) for value in row] for row in body]
    numeric = [is_numeric(kind) for kind in rows.types]
    widths = _widths(rows.names, cells, numeric, console.width if console.is_terminal else None)
    # Numbers and names are never cut: a table that is too wide for the terminal is wrapped by it.
    console.width = max(console.width, sum(widths) + 2 * len(widths) + 2)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for name, number, width in zip(rows.names, numeric, widths, strict=True):
        table.add_column(Text(printable(name)), justify="right" if number else "left", no_wrap=True, width=width)
    for line in cells:
        table.add_row(*(Text("-", "dim") if text is None else Text(text, overflow="ellipsis") for text in line))
    console.print(table)
    if not body:
        console.print("no rows")
    if n_more:
        shown = f"{n_more:,}" if n_more <= MAX_COUNTED else f"more than {MAX_COUNTED:,}"
        console.print(f"… {shown} more rows: use a limit, or --format csv for all", soft_wrap=True)


def is_numeric(kind: str) -> bool:
    """Whether a DuckDB type is one of numbers."""
    return re.fullmatch(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL\(.*\)", kind) is not None


def printable(text: str) -> str:
    """Text in which control characters, ANSI escapes and changes of writing direction are spelt out, not obeyed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _write(relation: duckdb.DuckDBPyRelation, kind: str, out: TextIO, max_rows: int | None, on_empty: Callable[[], None]) -> None:
    rows = rows_of(relation)
    rows = rows._replace(rows=_noting(rows.rows, on_empty))
    if kind == "table":
        show_table(rows, out, max_rows)
    elif kind == "csv":
        _csv(rows, out)
    else:
        _json(rows, out)


def _noting(rows: Iterator[Sequence[Any]], on_empty: Callable[[], None]) -> Iterator[Sequence[Any]]:
    is_empty = True
    for row in rows:
        is_empty = False
        yield row
    if is_empty:
        on_empty()


def _write_file(relation: duckdb.DuckDBPyRelation, kind: str, path: Path, on_empty: Callable[[], None]) -> None:
    with path.open("w", encoding="utf-8", newline="") as out:
        _write(relation, kind, out, None, on_empty)


def _has_completions(relation: duckdb.DuckDBPyRelation) -> bool:
    """Whether rows may hold what models answered: a column or table that does is named, or read under whatever name."""
    # The plan knows what views read, but DuckDB 2 draws it without what it has no room for; the statement has its own words.
    texts = (" ".join(relation.columns), relation.sql_query(), relation.explain())
    return any(name in text.lower() for text in texts for name in ("completion", "answer_tokens"))


def _parquet(relation: duckdb.DuckDBPyRelation, output: Path | None, private: bool) -> None:
    if output is not None:
        _whole(output, lambda draft: write_parquet(relation, draft), private)
        return
    if sys.stdout.isatty():
        raise QueryError("parquet is not for a terminal: give --output FILE, or redirect standard output to a file")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.parquet"
        write_parquet(relation, file)
        sys.stdout.buffer.write(file.read_bytes())


def _whole(path: Path, write: Callable[[Path], None], private: bool) -> None:
    """Lets `write` write a draft beside `path`, put in place when it is complete; a `private` file is its owner's alone."""
    draft = aside(path)
    try:
        if private:
            make_private(draft)
        write(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _csv(rows: ShownRows, out: TextIO) -> None:
    """RFC 4180 with plain line feeds; nested values are JSON, null is empty; on a terminal control characters are spelt out.

    Text that a spreadsheet would run as a formula has an apostrophe before it (see `guarded`).
    """
    to_screen = out.isatty()
    line = io.StringIO()
    writer = csv.writer(line)  # only a writer whose lines end in both quotes text that holds a carriage return

    def write(values: Sequence[Any]) -> None:
        writer.writerow(values)
        out.write(line.getvalue().removesuffix("\r\n") + "\n")
        line.seek(0)
        line.truncate()

    write([_shielded(name, to_screen) for name in rows.names])
    out.flush()  # the first row may take long
    for row in rows.rows:
        write([_shielded(_csv_value(value), to_screen) for value in row])


def _shielded(value: Any, to_screen: bool) -> Any:
    if value is None or isinstance(value, int | float | Decimal):
        return value
    return guarded(printable(str(value)) if to_screen else str(value))


def guarded(text: str) -> str:
    """Text as a cell that no spreadsheet runs: one apostrophe before a leading = + - @, tab or carriage return.

    Text with apostrophes before such a character gets one more: where FORMULA matches and a cell begins with one, taking
    that one away gives the text as it was.
    """
    return f"'{text}" if FORMULA.match(text) else text


def _csv_value(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple | dict):
        return json.dumps(_json_value(value), ensure_ascii=False)
    return value.isoformat() if isinstance(value, datetime | date | time) else value


def _json(rows: ShownRows, out: TextIO) -> None:
    """An array with one object a line; int64 ids are strings, for readers whose numbers end at 2^53."""
    separator = "[\n"
    for row in _json_objects(rows):
        line = json.dumps(row, ensure_ascii=False, allow_nan=False)
        out.write(separator + re.sub("[\x7f-\x9f]", lambda c: f"\\u{ord(c[0]):04x}", line))
        separator = ",\n"
    out.write("\n]\n" if separator == ",\n" else "[]\n")


def json_objects(relation: duckdb.DuckDBPyRelation) -> Iterator[dict[str, Any]]:
    """Rows as JSON objects; int64 ids are strings, for readers whose numbers end at 2^53."""
    return _json_objects(rows_of(relation))


def _json_objects(rows: ShownRows) -> Iterator[dict[str, Any]]:
    names = distinct(rows.names)
    is_id = [name.endswith("_id") and kind == "BIGINT" for name, kind in zip(rows.names, rows.types, strict=True)]
    for row in rows.rows:
        values = [str(v) if as_id and v is not None else _json_value(v) for v, as_id in zip(row, is_id, strict=True)]
        yield dict(zip(names, values, strict=True))


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return float(value) if value.as_tuple().exponent else _json_value(int(value))  # a nested hugeint comes as a decimal
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) <= SAFE_INTEGER else str(value)
    if value is None or isinstance(value, bool | str):
        return value
    return value.isoformat() if isinstance(value, datetime | date | time) else str(value)


def cell(value: Any) -> str | None:
    """A value as a table shows it; None for null."""
    if value is None:
        return None
    if isinstance(value, float | Decimal):
        return f"{value:.4g}"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return printable(", ".join(value))
    return printable(str(_csv_value(value)))


def _widths(names: Sequence[str], cells: list[list[str | None]], numeric: list[bool], available: int | None) -> list[int]:
    """Column widths: numbers whole, text cut to what the terminal leaves, the widest columns first."""
    from rich.cells import cell_len

    def length(text: str | None) -> int:
        return cell_len(text or "-")

    headers = [cell_len(printable(name)) for name in names]
    widths = [max([header, *(length(line[i]) for line in cells)]) for i, header in enumerate(headers)]
    if available is None:
        return widths
    widths = [w if numeric[i] else max(headers[i], min(w, WIDEST_CELL)) for i, w in enumerate(widths)]
    while sum(widths) + 2 * len(widths) > available:
        spare, i = max((0 if numeric[i] else widths[i] - max(headers[i], NARROWEST_CELL), i) for i in range(len(widths)))
        if spare <= 0:
            break
        widths[i] -= 1
    return widths
