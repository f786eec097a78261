"""Files that a user names, opened with care: ordinary files only, text in any Unicode encoding, and never without bounds.

A name in a recipe may be that of a pipe, a device or a file of terabytes: each is one sentence, at once.
"""

import codecs
import errno
import gzip
import hashlib
import io
import os
import stat
from pathlib import Path
from typing import IO

from saelake.warehouse.errors import UserError

MAX_BYTES = 2**31
"""Of any file: a larger one is a hole or a device, not prompts or texts; several files may be named instead of one."""
MAX_TEXT_BYTES = 8 * 2**20
"""Of a text that is read whole: a recipe, a template, an instruction."""
MAX_RATIO, MAX_SMALL = 100, 16 * 2**20
"""A compressed file may unpack to so many times its size, or to so many bytes: rows compress tenfold, bombs a thousandfold."""
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, the longer of two that begin alike first."""


def open_input(file: Path, owner: str) -> io.BufferedReader:
    """An ordinary file, opened to be read; `owner` opens the sentence about anything else."""
    try:
        known = os.stat(file)
        if (kind := KINDS.get(stat.S_IFMT(known.st_mode))) is not None:
            raise UserError(f"{owner}: {file} is {kind}, not a file: save what it gives to a file first")
        if known.st_size > MAX_BYTES:
            raise UserError(f"{owner}: {file} is larger than {MAX_BYTES:,} bytes, too large to be read here: take a part of it")
        return file.open("rb")
    except FileNotFoundError as error:
        raise UserError(f"{owner}: there is no file {file}") from error
    except UserError:
        raise
    except (OSError, ValueError) as error:  # a name with a zero byte in it is a ValueError
        raise UserError(f"{owner}: {short(file)} cannot be opened ({reason(error)})") from error


def hash_input(file: Path, owner: str) -> str:
    """Hex sha256 of an ordinary file."""
    with open_input(file, owner) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_there(path: Path) -> bool:
    """Whether a path names anything; False also for a name that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def reason(error: OSError | ValueError) -> str:
    """What a file system or a name refuses, as part of a sentence."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "the name is too long"
    return str(getattr(error, "strerror", None) or error)


def read_text(file: Path, owner: str) -> str:
    """The text of a small file, its lines ended by \\n, in the encoding that its byte order mark names; UTF-8 without one."""
    with open_input(file, owner) as stream:
        content = stream.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise UserError(f"{owner}: {file} is larger than {MAX_TEXT_BYTES:,} bytes, too large for a text of its kind")
    try:
        return content.decode(_encoding(content)).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{owner}: {file} is not text in UTF-8 ({error})") from error


def open_text(stream: IO[bytes]) -> io.TextIOWrapper:
    """The text of an open file, line ends as they are, in the encoding that its byte order mark names, or UTF-8."""
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)  # type: ignore[type-var]
    return io.TextIOWrapper(buffered, encoding=_encoding(buffered.peek(4)[:4]), newline="")


def unpacked(stream: IO[bytes]) -> IO[bytes]:
    """What a gzip file holds; reading it ends in a ValueError when it unpacks to far more than its size."""
    return io.BufferedReader(_Unpacked(stream))


class _Unpacked(io.RawIOBase):
    """The content of a gzip file, counted while it is read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._gzip = gzip.GzipFile(fileobj=stream)
        self._left = max(MAX_SMALL, MAX_RATIO * os.fstat(stream.fileno()).st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        piece = self._gzip.read(len(buffer))
        self._left -= len(piece)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {MAX_RATIO} times its size, so it is not a file of rows")
        buffer[: len(piece)] = piece
        return len(piece)


def _encoding(start: bytes) -> str:
    return next((encoding for mark, encoding in MARKS if start.startswith(mark)), "utf-8")


def short(file: Path) -> str:
    """A path for a sentence: one of thousands of letters is cut."""
    text = str(file)
    return text if len(text) <= 200 else f"{text[:80]}...{text[-80:]}"
