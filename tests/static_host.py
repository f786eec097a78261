"""A static host on loopback that answers range requests, as Pages, S3 and the hub do, and counts what it sends."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

from tests.local_server import answering

RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass
class Host:
    """A folder that is served."""

    url: str = ""
    knows_ranges: bool = True
    asked: list[tuple[str, int]] = field(default_factory=list)
    """(path, bytes sent) of every answer, as they come"""

    def forget(self) -> None:
        self.asked.clear()

    @property
    def n_bytes(self) -> int:
        return sum(n for _, n in self.asked)


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *given: object, host: Host, **named: object) -> None:
        self.host = host
        super().__init__(*given, **named)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        asked = RANGE.fullmatch(self.headers.get("Range", "")) if self.host.knows_ranges else None
        sent = content[int(asked[1]) : int(asked[2]) + 1] if asked else content
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {asked[1]}-{int(asked[1]) + len(sent) - 1}/{len(content)}")
        self.send_header("Content-Type", self.guess_type(path))
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.host.asked.append((self.path.lstrip("/"), len(sent)))
        self.wfile.write(sent)

    def log_message(self, *given: object) -> None:
        """Nothing is written to the terminal."""


@contextmanager
def serving(folder: Path, knows_ranges: bool = True) -> Iterator[Host]:
    """Serves a folder until the block ends."""
    host = Host(knows_ranges=knows_ranges)
    with answering(partial(_Handler, host=host, directory=str(folder))) as address:
        host.url = f"{address}/"
        yield host
