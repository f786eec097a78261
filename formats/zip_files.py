"""Zip archives that a stranger wrote: members are read whole and within bounds, those packed with Zstandard too."""

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from saelake.ingest.inputs import open_input
from saelake.warehouse.errors import UserError, one_line

ZSTANDARD = 93
"""How zip files call it; Python's own reader knows it from 3.14 on."""
MAX_MEMBER, MAX_MEMBERS = 2**28, 1_000_000
MAX_RATIO, MAX_SMALL = 1_000, 2**20
"""A member may unpack to so many times its size, or to so many bytes: logs repeat themselves."""
MAX_RATIO_OF_ALL, MAX_SMALL_OF_ALL = 100, 2**26
"""And all that are wanted, of the archive's size: they may share their bytes, or each be as small as a bomb may be."""


def members(file: Path, wanted: Callable[[str], bool], owner: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of the members that are wanted, in their order; raises UserError for an archive that is not whole."""
    with open_input(file, owner) as stream:
        content = stream.read()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found = [info for info in archive.infolist() if wanted(info.filename)]
            if len(found) > MAX_MEMBERS:
                raise ValueError(f"it has more than {MAX_MEMBERS:,} members")
            total = sum(info.file_size for info in found)
            if total > max(MAX_SMALL_OF_ALL, MAX_RATIO_OF_ALL * len(content)):
                raise ValueError(f"its members say that they unpack to {total:,} bytes together")
            for info in found:
                yield info.filename, _unpacked(archive, content, info)
    except UserError:
        raise
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError, RuntimeError, zlib.error) as error:
        raise UserError(f"{owner}: {file.name} is not a complete zip archive ({one_line(error)})") from error


def _unpacked(archive: zipfile.ZipFile, content: bytes, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > min(MAX_MEMBER, max(MAX_SMALL, MAX_RATIO * info.compress_size)):
        raise ValueError(f"{info.filename} says that it unpacks to {info.file_size:,} bytes")
    if info.compress_type != ZSTANDARD:
        with archive.open(info) as member:
            found = member.read(info.file_size + 1)
    else:
        start = info.header_offset + 30  # behind the member's own header, whose name and extra field have lengths of their own
        start += sum(int.from_bytes(content[info.header_offset + at : info.header_offset + at + 2], "little") for at in (26, 28))
        packed = content[start : start + info.compress_size]
        with pa.CompressedInputStream(pa.BufferReader(packed), "zstd") as unpacked:
            found = unpacked.read(info.file_size + 1)
    if len(found) != info.file_size or zlib.crc32(found) != info.CRC:
        raise ValueError(f"{info.filename} is damaged")
    return found
