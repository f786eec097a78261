"""Arrow streams and Parquet files that a stranger wrote, a part at a time, each checked before anything of it is used.

A stream may be compressed, buffer by buffer: what each unpacks to is read from the messages before any is unpacked. A message is
a flatbuffer: a table whose fields lie where its vtable says.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from saelake.ingest.inputs import MAX_RATIO, MAX_SMALL
from saelake.ingest.rows import refuse_bombs
from saelake.warehouse.errors import UserError, one_line

END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""What a finished stream ends with: without it a file that was cut off between two parts would pass for a whole one."""
BATCH_ROWS = 256
LARGEST = 2**29
"""Bytes to which the compressed buffers of one message may unpack."""
PACKED = -1
"""What stands for the size of a buffer that is stored as it is, in a compressed message."""
HEADER, DATA, BUFFERS, COMPRESSION = 2, 1, 2, 3
"""Fields by their numbers: of a message, of a batch of a dictionary, and of a batch of rows."""


def tables_of(file: Path, owner: str) -> Iterator[pa.Table]:
    """The rows of a file, part by part; raises UserError for one that is damaged."""
    try:
        if file.suffix == ".parquet":
            with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                refuse_bombs(parquet.metadata, parquet.schema_arrow.names)
                for batch in parquet.iter_batches(BATCH_ROWS):
                    yield _checked(batch)
        else:
            with pa.memory_map(str(file)) as source:
                for message in pa.ipc.MessageReader.open_stream(source):
                    _refuse_bomb(message)
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
                for batch in stream:
                    yield _checked(batch)
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, EOFError, MemoryError, struct.error) as error:
        raise UserError(f"{owner}: {file.name} cannot be read ({one_line(error)})") from error


def check_streams_whole(file: Path, owner: str) -> None:
    """Raises UserError for an Arrow stream that does not end as a finished one does."""
    if file.suffix == ".parquet":
        return
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - len(END)))
        if content.read() != END:
            raise UserError(f"{owner}: {file.name} is cut off: it does not end as a finished stream does")


def _checked(batch: pa.RecordBatch) -> pa.Table:
    assert batch.schema.names is not None, "names that are not text raise a ValueError here"
    batch.validate(full=True)
    return pa.Table.from_batches([batch])


def _refuse_bomb(message: pa.Message) -> None:
    """Raises ValueError for a message whose buffers say that they unpack to far more than they are."""
    if message.type not in ("record batch", "dictionary"):
        return
    content, body = memoryview(message.metadata), memoryview(message.body)
    rows = _table(content, _field(content, _number(content, "<I", 0), HEADER))
    if message.type == "dictionary":
        rows = _table(content, _field(content, rows, DATA))
    buffers = _field(content, rows, BUFFERS)
    if _field(content, rows, COMPRESSION) is None or buffers is None:
        return
    start = _table(content, buffers)
    total = 0
    for place in range(_number(content, "<I", start)):
        offset, length = struct.unpack_from("<qq", content, start + 4 + 16 * place)
        told = _number(body, "<q", offset) if length else 0
        total += length if told == PACKED else told
        if told < PACKED or total > min(LARGEST, max(MAX_SMALL, MAX_RATIO * len(body))):
            raise ValueError(f"a compressed part of it says that it unpacks to {max(total, told):,} bytes")


def _field(content: memoryview, table: int, number: int) -> int | None:
    """Where a field of a table is; None where the table has none of that number."""
    vtable = table - _number(content, "<i", table)
    at = 4 + 2 * number
    offset = _number(content, "<H", vtable + at) if at < _number(content, "<H", vtable) else 0
    return table + offset if offset else None


def _table(content: memoryview, place: int | None) -> int:
    """What the offset in a field leads to."""
    if place is None:
        raise ValueError("a message of it lacks a field")
    return place + _number(content, "<I", place)


def _number(content: memoryview, kind: str, at: int) -> int:
    found: int = struct.unpack_from(kind, content, at)[0]
    return found
