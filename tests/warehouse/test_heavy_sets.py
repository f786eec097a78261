"""Sets that want to fill memory or time: each is refused with one sentence, soon, and the lake is as it was."""

import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from saelake.warehouse.lake import Lake
from saelake.warehouse.layout import parquet_options
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.pages import _page
from tests.lakes import tree
from tests.measured import measured
from tests.warehouse.spoiled import Record, edit, ingest_record, rewrite, set_first_file, sign

MOST_SECONDS, MOST_BYTES = 5, 500_000_000
SEEDED = random.Random(0).randbytes(600_000).hex()
"""Text that does not compress below half of itself."""


def bomb(table: str, name: str, text: str, n_rows: int, **options: Any) -> Callable[[Path], object]:
    """A table whose column holds one text on very many rows."""

    def spoil(folder: Path) -> None:
        def many(rows: pa.Table) -> pa.Table:
            rows = rows.take(pa.array([0] * n_rows))
            coded = pa.DictionaryArray.from_arrays(pa.array([0] * n_rows, pa.int32()), pa.array([text]))
            return rows.set_column(rows.column_names.index(name), name, coded)

        rewrite(folder, table, many, parquet_options(table) | {"dictionary_pagesize_limit": 1 << 30} | options)

    return spoil


def in_file(table: str, change: Callable[[bytearray], object]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = sorted((folder / "data" / table).glob("*.parquet"))[0]
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(bytes(content))
        sign(folder, path)

    return spoil


def page_of_two_gigabytes(content: bytearray) -> None:
    """The first page of the first column says that it unpacks to 2^31 - 1 bytes; the footer still says a few."""
    assert content[4] == 0x15, "the header begins with the page's type"
    at = 6  # after the header of the second field
    assert content[at] == 0x15
    rest = at + 1
    while content[rest] >= 128:
        rest += 1
    largest = bytes([0xFE, 0xFF, 0xFF, 0xFF, 0x0F])  # zigzag
    width = rest + 1 - (at + 1)
    content[at + 1 : at + 1 + width] = largest[: width - 1] + bytes([0x7F]) if width > 1 else bytes([0x7E])


def struct(fields: Mapping[int, Any]) -> bytes:
    """A struct in Thrift's compact protocol, of small integers and structs."""
    out, last = b"", 0
    for number, value in fields.items():
        kind, content = (5, bytes([2 * value])) if isinstance(value, int) else (12, struct(value))
        out += bytes([(number - last) << 4 | kind]) + content
        last = number
    return out + b"\0"


@pytest.mark.parametrize(
    ("kind", "true", "false"),
    [
        (0, {5: {1: 9, 2: 7}}, {8: {1: 1, 4: 0}}),
        (3, {8: {1: 9, 4: 7}}, {5: {1: 1, 2: 0}}),
        (2, {7: {1: 9, 2: 7}}, {5: {1: 1, 2: 0}}),
    ],
)
def test_a_page_is_what_its_type_says(kind: int, true: dict[int, dict[int, int]], false: dict[int, dict[int, int]]) -> None:
    fields = {1: kind, 2: 30, 3: 20, **dict(sorted((true | false).items()))}
    page = _page(struct(fields), 0)
    assert (page.n_values, page.encoding, page.is_data) == (9, 7, kind != 2)
    with pytest.raises(ValueError, match="without a header"):
        _page(struct({1: 1, 2: 30, 3: 20, **false}), 0)


def rewritten(table: str, change: Callable[[pa.Table], pa.Table], **options: Any) -> Callable[[Path], object]:
    return lambda folder: rewrite(folder, table, change, parquet_options(table) | options)


def deep(levels: int) -> Callable[[Record], object]:
    nested: list[Any] = []
    for _ in range(levels):
        nested = [nested]
    return lambda r: r["config"].update(x=nested)


def huge_records(folder: Path) -> None:
    for number in range(40):
        (folder / "runs" / f"ingest_{number:012x}.json").write_text("[" + "[]," * 300_000 + "[]]")


def swap(folder: Path, name: str, make: Callable[[Path], object]) -> None:
    path = sorted(folder.glob(name))[0]
    path.unlink()
    make(path)


def repeated(n: int) -> Callable[[pa.Table], pa.Table]:
    return lambda rows: rows.take(pa.array([0] * n))


HEAVY: dict[str, Callable[[Path], object]] = {
    "a dictionary of one long text on many rows": bomb("ablations", "completion", SEEDED, 2_400),
    "a dictionary of middling texts on very many rows": bomb("tokens", "token", "z" * 20_000, 900_000),
    "a text that is too long": bomb("prompts", "text", "z" * (200 << 20), 2),
    "a hundred million rows of nothing": rewritten("tokens", repeated(1_000_000), row_group_size=1 << 22),
    "a row group that is too large": rewritten("tokens", repeated((1 << 20) + 1), row_group_size=1 << 22),
    "row groups without end": rewritten("tokens", repeated(3_000), row_group_size=1),
    "texts given by their differences": bomb(
        "ablations", "completion", "z" * 100_000, 5_000, use_dictionary=False, column_encoding={"completion": "DELTA_BYTE_ARRAY"}
    ),
    "text that is packed a thousandfold": bomb("prompts", "text", "z" * 60_000, 2_000, use_dictionary=False),
    "a page that lies": in_file("tokens", page_of_two_gigabytes),
    "a footer that is longer than the file": in_file("tokens", lambda c: c.__setitem__(slice(-8, -4), b"\xff\xff\xff\x7f")),
    "a footer of nothing": in_file("tokens", lambda c: c.__setitem__(slice(-400, -8), b"\x19" * 392)),
    "a file of zeros": in_file("tokens", lambda c: c.__setitem__(slice(4, -4), bytes(len(c) - 8))),
    "megabytes of a record": lambda f: ingest_record(f).write_text("[" + "[]," * 3_000_000 + "[]]"),
    "many records of megabytes": huge_records,
    "brackets without end": lambda f: ingest_record(f).write_text('{"a":' * 200_000),
    "a record that is deep": lambda f: edit(ingest_record(f), deep(300)),
    "ten thousand records": lambda f: [(f / "runs" / f"ingest_{n:012x}.json").write_text("{}") for n in range(10_001)],
    "a name that is too long": lambda f: edit(ingest_record(f), lambda r: r.update(recipe="x" * 300)),
    "a path that is too long": lambda f: edit(ingest_record(f), set_first_file(path="data/" + "x" * 300 + "/y.parquet")),
    "data that never ends": lambda f: swap(f, "data/tokens/*", lambda p: p.symlink_to("/dev/zero")),
    "data that never comes": lambda f: swap(f, "data/tokens/*", os.mkfifo),
    "a record that never ends": lambda f: swap(f, "runs/ingest*", lambda p: p.symlink_to("/dev/zero")),
    "a record that never comes": lambda f: swap(f, "runs/ingest*", os.mkfifo),
}


@pytest.mark.parametrize("name", HEAVY)
def test_a_set_that_wants_to_fill_memory_or_time_is_refused_quickly(name: str, hostile: Path, mine: Lake) -> None:
    HEAVY[name](hostile)
    before = tree(mine.root)
    said, seconds, n_bytes = measured(add, mine, hostile)
    assert said != "done"
    assert "\n" not in said
    assert len(said) < 1_000
    assert seconds < MOST_SECONDS
    assert n_bytes < MOST_BYTES
    assert tree(mine.root) == before
