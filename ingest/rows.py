"""Rows of CSV, TSV, JSON, JSON lines and Parquet files: the same rows for the same table, one row at a time, within bounds.

A name that occurs twice in a header or an object is an error (of two values one would be lost), and only the columns that are
asked for are read: the others may hold what nobody can read.
"""

import csv
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from saelake.ingest.inputs import MAX_RATIO, MAX_SMALL, open_input, open_text, unpacked
from saelake.warehouse.errors import UserError, one_line

Row = dict[str, Any]
Reader = Callable[[IO[bytes], Collection[str] | None], Iterator[Any]]

MAX_ROW = 2**22
"""Characters of a row: longer ones are not prompts or texts, but files without an end of line.
One of JSON may take eighty times as much memory."""
MAX_BLANK_ROWS = 10_000
"""Blank rows of CSV that may follow one another."""
MAX_BATCH = 2**26
"""Bytes of the rows that are decoded at a time."""
PARQUET_ROWS = 128
"""Rows that are decoded at a time."""
UNREADABLE = (
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    MemoryError,
    OSError,
    EOFError,
    csv.Error,
    zlib.error,
)
"""What readers raise for damaged files; a nesting too deep is a RuntimeError, Arrow's errors are several of these."""
BLANKS = re.compile(r"[ \t\r\n]*")


def read_rows(file: Path, owner: str, wanted: Collection[str] | None = None) -> Iterator[Row]:
    """The rows of a file in one of FORMATS, plain or with .gz behind; `owner` opens the sentence of every error.

    Args:
        wanted: the columns to read; the others are there by name, and hold None. All by default.
    """
    kind = rows_suffix(file.name)
    if kind is None:
        raise UserError(f"{owner}: {file.name} is none of {', '.join(FORMATS)}, plain or with .gz behind (Parquet plain)")
    reader, packed = FORMATS[kind.removesuffix(".gz")], kind.endswith(".gz")
    with open_input(file, owner) as stream:
        try:
            for number, row in enumerate(reader(unpacked(stream) if packed else stream, wanted), start=1):
                if not isinstance(row, dict):
                    raise UserError(f"{owner}: row {number} of {file.name} is not an object with named columns")
                yield row
        except UserError:
            raise
        except UNREADABLE as error:
            raise UserError(f"{owner}: {file.name} is not a readable {kind} file ({one_line(error)})") from error


def rows_suffix(name: str) -> str | None:
    """How the name of a file of rows ends, in lower case; None for another file."""
    lower = name.lower()
    return next((kind for kind in SUFFIXES if lower.endswith(kind)), None)


def _read_csv(stream: IO[bytes], wanted: Collection[str] | None, delimiter: str = ",") -> Iterator[Row]:
    reader = csv.reader(_lines(open_text(stream)), strict=True, delimiter=delimiter)
    filled = _filled(reader)
    names = next((cells for cells in filled if any(map(str.strip, cells))), None)
    if names is None:
        return
    _refuse_repeated("its header", [name for name in names if name])  # spreadsheets leave columns without a name
    for number, cells in enumerate(filled, start=1):
        if len(cells) != len(names):
            raise ValueError(f"row {number} has another number of cells than the header")
        yield dict(zip(names, cells, strict=True))


def _filled(rows: Iterable[list[str]]) -> Iterator[list[str]]:
    """The rows that have a cell; a run of blank ones has an end."""
    n_blank = 0
    for cells in rows:
        n_blank = 0 if any(map(str.strip, cells)) else n_blank + 1
        if n_blank > MAX_BLANK_ROWS:
            raise ValueError(f"more than {MAX_BLANK_ROWS:,} blank rows follow one another")
        if cells:
            yield cells


def _read_tsv(stream: IO[bytes], wanted: Collection[str] | None) -> Iterator[Row]:
    return _read_csv(stream, wanted, delimiter="\t")


def _lines(text: IO[str]) -> Iterator[str]:
    while line := text.readline(MAX_ROW):
        if len(line) == MAX_ROW:
            raise ValueError(f"a line has more than {MAX_ROW:,} characters")
        yield line


class _Pairs(tuple[tuple[str, Any], ...]):
    """The names and values of a JSON object as they stand, repeated names too."""


def _read_json(stream: IO[bytes], wanted: Collection[str] | None) -> Iterator[Any]:
    """The values of a list, or values one after another (JSON lines), however they are laid out and the file is called."""
    source = _Json(open_text(stream))
    is_list = source.skip("[")
    number = 0
    while not (source.skip("]") if is_list else source.at_end()):
        if is_list and number and not source.skip(","):
            raise ValueError(f"row {number} is not followed by a comma or the end of the list, on line {source.line}")
        number += 1
        value = source.value(number)
        if isinstance(value, _Pairs):
            _refuse_repeated(f"row {number}", [name for name, _ in value])
            value = dict(value)
        yield value
    if is_list and not source.at_end():
        raise ValueError(f"something stands behind the end of the list, on line {source.line}")


class _Json:
    """JSON values from a text that is read piece by piece, so that a file of any size takes the memory of a row."""

    PIECE = 2**16

    def __init__(self, text: IO[str]) -> None:
        self._text = text
        self._buffer = ""
        self._at = 0
        self._ended = False
        self._decoder = json.JSONDecoder(object_pairs_hook=_Pairs)
        self.line = 1

    def at_end(self) -> bool:
        """Whether nothing but blanks is left."""
        blanks = 0
        while True:
            end = BLANKS.match(self._buffer, self._at).end()  # type: ignore[union-attr]
            blanks += end - self._at
            self._pass(end - self._at)
            if self._at < len(self._buffer):
                return False
            if blanks > MAX_ROW:
                raise ValueError(f"more than {MAX_ROW:,} blanks stand between two rows")
            if not self._more():
                return True

    def skip(self, mark: str) -> bool:
        """Passes the mark, if it is what comes next."""
        if self.at_end() or self._buffer[self._at] != mark:
            return False
        self._pass(1)
        return True

    def value(self, number: int) -> Any:
        """The next value, that of row `number`."""
        if self.at_end():
            raise ValueError(f"the list does not end: nothing comes behind row {number - 1}")
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                # It may be cut off where the buffer ends. Each time the buffer doubles, so no row is read much more than twice.
                if len(self._buffer) - self._at > MAX_ROW:
                    raise ValueError(f"row {number} has more than {MAX_ROW:,} characters, or is not JSON") from error
                line = self.line + self._buffer.count("\n", self._at, error.pos)
                if not self._more():
                    raise ValueError(f"{error.msg} on line {line}, in row {number}") from error
            else:
                if end - self._at > MAX_ROW:
                    raise ValueError(f"row {number} has more than {MAX_ROW:,} characters")
                self._pass(end - self._at)
                return value

    def _pass(self, n: int) -> None:
        self.line += self._buffer.count("\n", self._at, self._at + n)
        self._at += n

    def _more(self) -> bool:
        if self._ended:
            return False
        self._buffer = self._buffer[self._at :]
        self._at = 0
        piece = self._text.read(min(max(self.PIECE, len(self._buffer)), MAX_ROW))
        self._buffer += piece
        self._ended = not piece
        return bool(piece)


def _read_parquet(stream: IO[bytes], wanted: Collection[str] | None) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(stream) as table:
        schema, metadata = table.schema_arrow, table.metadata
    _refuse_repeated("its schema", schema.names)
    read = [name for name in schema.names if wanted is None or name in wanted]
    refuse_bombs(metadata, read)
    # Repeated texts stay a dictionary: a small file may spell a long one a million times.
    texts = [path for path in _texts(metadata) if _is_of(path, read)]
    blank = dict.fromkeys(schema.names)
    with pyarrow.parquet.ParquetFile(stream, read_dictionary=texts) as table:
        for batch in table.iter_batches(PARQUET_ROWS, columns=read, use_threads=False):
            if sum(_n_bytes(batch.column(name)) for name in read) > MAX_BATCH:
                raise ValueError(f"{batch.num_rows} of its rows hold more than {MAX_BATCH:,} bytes")
            columns = [_cells(batch.column(name)) for name in read]
            for cells in zip(*columns, strict=True):
                yield blank | dict(zip(read, cells, strict=True))


def _cells(column: Any) -> Iterator[Any]:
    """The values of an Arrow column; of a dictionary, each text is made once, unless it has far more than are used."""
    if not hasattr(column, "dictionary"):
        return iter(column.to_pylist())
    if len(column.dictionary) > 4 * len(column):
        return (cell.as_py() for cell in column)
    texts = column.dictionary.to_pylist()
    return (None if index is None else texts[index] for index in column.indices.to_pylist())


def _texts(metadata: Any) -> Iterator[str]:
    """The columns of texts, by the paths of those in lists and the like."""
    columns = map(metadata.schema.column, range(metadata.num_columns))
    return (column.path for column in columns if column.logical_type.type == "STRING")


def _is_of(path: str, names: Collection[str]) -> bool:
    """Whether a path is that of a column, or of what is in it; names may have dots of their own."""
    parts = path.split(".")
    return any(".".join(parts[:n]) in names for n in range(1, len(parts) + 1))


def _n_bytes(column: Any, is_within: bool = False) -> int:
    """Bytes of a column's values; a text within a list or the like counts as often as it is there, since it is made anew."""
    from pyarrow import compute, types

    if types.is_struct(column.type):
        return sum(_n_bytes(part, is_within) for part in column.flatten())
    if types.is_map(column.type):
        return _n_bytes(column.keys, is_within=True) + _n_bytes(column.items, is_within=True)
    if types.is_nested(column.type):
        return _n_bytes(column.flatten(), is_within=True)
    if types.is_dictionary(column.type) and is_within:
        return int(compute.sum(compute.binary_length(column.dictionary).take(column.indices)).as_py() or 0)
    return int(column.nbytes)


def refuse_bombs(metadata: Any, read: Collection[str]) -> None:
    """Raises ValueError for a Parquet file with a column to be read that unpacks to far more than its size."""
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            chunk, repeats = metadata.row_group(group).column(place), metadata.schema.column(place).max_repetition_level
            if _is_of(chunk.path_in_schema, read):
                limit = max(MAX_SMALL, MAX_RATIO * chunk.total_compressed_size)
                if chunk.total_uncompressed_size > limit or (repeats and chunk.num_values > limit):
                    raise ValueError(f"its column {chunk.path_in_schema} unpacks to more than {MAX_RATIO} times its size")


def _refuse_repeated(where: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{where} has the name {repeated!r} twice")


FORMATS: dict[str, Reader] = {
    ".csv": _read_csv,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".tsv": _read_tsv,
    ".ndjson": _read_json,
}
SUFFIXES = (*FORMATS, *(f"{kind}.gz" for kind in FORMATS if kind != ".parquet"))
