"""Looks through a Parquet file page by page before anything of it is decoded: what its footer says of sizes is not believed.

A reader allocates what the header of each page declares, so the headers are read here (Thrift's compact protocol), and added up.
Text is then measured by its dictionaries, without being spelt out: a thousand rows may point to one long text.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from saelake.warehouse.layout import BATCH_ROWS, open_parquet, text_columns, text_lengths

LARGEST_PAGE = 64 << 20
LARGEST_GROUP = 128 << 20
"""Bytes of a row group in memory; `share` writes 100 MiB at most."""
MOST_GROUP_ROWS = 1 << 20
MOST_ITEMS = 1 << 23
"""Values of a column in a row group, where it holds lists."""
ROWS_A_GROUP, SPARE_GROUPS = 1_000, 64
"""A file may have a row group for so many rows, and a few more."""
LARGEST_FOOTER, FOOTER_SHARE = 1 << 20, 0.05
"""Bytes of a footer, and what it may be beyond, as a share of the file."""
UNPACKED = 200
"""Bytes in memory for one of the file, beside SPARE_BYTES: what compressed tables of numbers and answers stay far below."""
LARGEST_TEXT = 4 << 20
SHORT_TEXT, REPEATED = 64, 1_000
"""Names are short, and come again on every row; of longer texts, repetitions count up to so many bytes for one of the file."""
SPARE_BYTES = 64 << 20
ENCODINGS = {0: "PLAIN", 2: "PLAIN_DICTIONARY", 3: "RLE", 5: "DELTA_BINARY_PACKED", 8: "RLE_DICTIONARY", 9: "BYTE_STREAM_SPLIT"}
"""What `share` writes. Those for text by its differences from the text before it could make gigabytes of a page."""

HEADERS = {0: (5, 2, True), 2: (7, 2, False), 3: (8, 4, True)}
"""Type of a page, by which Arrow goes -> the field of its header, that of the encoding in it, and whether its values are data."""


class Page(NamedTuple):
    """What the header of a page declares."""

    n_bytes: int
    n_stored: int
    n_values: int
    encoding: int
    is_data: bool
    begins: int
    """Where its content lies in the file."""


def check_pages(path: Path, table: str, version: int) -> None:
    """Raises ValueError where pages, row groups or texts of a file are larger than any that `share` writes."""
    n_bytes = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, n_bytes - 8))
        footer = int.from_bytes(file.read(4), "little")
    if footer > LARGEST_FOOTER + FOOTER_SHARE * n_bytes:
        raise ValueError(f"its footer has {footer:,} bytes: too large")
    with open_parquet(path) as parquet:
        metadata = parquet.metadata
        if metadata.num_row_groups > SPARE_GROUPS + metadata.num_rows // ROWS_A_GROUP:
            raise ValueError(f"it has {metadata.num_row_groups:,} row groups for {metadata.num_rows:,} rows: too many")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _check_groups(metadata, content)
    _check_text(path, table, version, n_bytes)


def _check_groups(metadata: pq.FileMetaData, content: mmap.mmap) -> None:
    unpacked = 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        if not 0 <= group.num_rows <= MOST_GROUP_ROWS:
            raise ValueError(f"row group {i} has {group.num_rows:,} rows: too large")
        n_bytes = 0
        for j in range(group.num_columns):
            column = group.column(j)
            most = MOST_ITEMS if column.path_in_schema.endswith(".element") else MOST_GROUP_ROWS
            n_values = 0
            for n_pages, page in enumerate(_pages(content, column), start=1):
                n_bytes += page.n_bytes
                n_values += page.n_values if page.is_data else 0
                if page.encoding not in ENCODINGS:
                    raise ValueError(f"{column.path_in_schema} has an encoding that is not read ({page.encoding})")
                if page.n_bytes > LARGEST_PAGE or n_bytes > LARGEST_GROUP or max(n_values, page.n_values) > most:
                    raise ValueError(f"row group {i} unpacks to more than {LARGEST_GROUP:,} bytes or {most:,} values: too large")
                if n_pages > 64 + n_values // 16 + n_bytes // (1 << 16):
                    raise ValueError(f"row group {i} has {n_pages:,} pages for {n_values:,} values: too many")
        unpacked += n_bytes
        if unpacked > SPARE_BYTES + UNPACKED * len(content):
            raise ValueError(f"its {len(content):,} bytes unpack to more than {unpacked:,}: too large")


def _pages(content: mmap.mmap, column: Any) -> Iterator[Page]:
    """The pages of a column chunk, as Arrow finds them."""
    at = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset and 0 < column.dictionary_page_offset < at:
        at = column.dictionary_page_offset
    end = at + column.total_compressed_size
    if not 0 <= at <= end <= len(content):
        raise ValueError(f"{column.path_in_schema} is said to lie outside the file")
    while at < end:
        page = _page(content, at)
        if page.n_bytes < 0 or page.n_stored < 0 or page.n_values < 0:
            raise ValueError(f"{column.path_in_schema} has a page of negative size")
        yield page
        at = page.begins + page.n_stored


def _page(content: mmap.mmap | bytes, at: int) -> Page:
    try:
        fields, begins = _struct(content, at)
        field, encoding, is_data = HEADERS[fields[1]]
        header = fields[field]
        return Page(fields[2], fields[3], header[1], header[encoding], is_data, begins)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("it has a page without a header") from error


def _struct(content: mmap.mmap | bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The integers and structs of a struct in Thrift's compact protocol, by field, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while kind := content[at]:
        at += 1
        if kind >> 4:
            number += kind >> 4
        else:
            number, at = _integer(content, at)
        match kind & 15:
            case 1 | 2:
                fields[number] = kind & 15 == 1
            case 3:
                at += 1
            case 4 | 5 | 6:
                fields[number], at = _integer(content, at)
            case 7:
                at += 8
            case 8:
                length, at = _unsigned(content, at)
                at += length
            case 12 if depth < 3:
                fields[number], at = _struct(content, at, depth + 1)
            case _:
                raise ValueError("it has a page with a header that is none")
    return fields, at + 1


def _integer(content: mmap.mmap | bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(content, at)
    return (value >> 1) ^ -(value & 1), at


def _unsigned(content: mmap.mmap | bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("it has a page with a header that is none")


def _check_text(path: Path, table: str, version: int, n_bytes: int) -> None:
    text = text_columns(table, version)
    total, most = 0, SPARE_BYTES + REPEATED * n_bytes
    with open_parquet(path, text) as parquet:
        for batch in parquet.iter_batches(BATCH_ROWS, columns=text):
            for name in batch.schema.names:
                lengths = text_lengths(batch[name])
                if len(lengths) and lengths.max() > LARGEST_TEXT:
                    raise ValueError(f"{name} holds a text of {lengths.max():,} bytes: too large")
                total += int(np.maximum(lengths - SHORT_TEXT, 0).sum())
            if total > most:
                raise ValueError(f"its {n_bytes:,} bytes hold more than {most:,} bytes of text: too large")
