"""A stand-in for the hub on this machine: data sets that huggingface_hub makes, uploads to and downloads from."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote

from tests.local_server import answering

COMMIT = "c0ffee" + "0" * 34


class Hub:
    """What the stub holds."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        """repository -> path -> content"""
        self.private: dict[str, bool] = {}
        self.cards: list[str] = []
        """Cards that were sent to be validated."""
        self.address = ""


@contextmanager
def hub() -> Iterator[Hub]:
    """Serves an empty hub on a free port of 127.0.0.1."""
    held = Hub()
    with answering(type("Handler", (_Handler,), {"hub": held})) as held.address:
        yield held


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.split("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.hub.files.setdefault(name, {})
            self.hub.private[name] = asked.get("private", False) or asked.get("visibility") == "private"
            self._json({"url": f"{self.hub.address}/datasets/{name}"})
        elif path == "/api/validate-yaml":
            self.hub.cards.append(json.loads(body)["content"])
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
            self._json({"files": files})
        elif "/commit/" in path:
            self._commit(self._repository(path), body)
        else:
            self.send_error(404)

    def _commit(self, name: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.hub.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del self.hub.files[name][line["value"]["path"]]
        url = f"{self.hub.address}/datasets/{name}/commit/{COMMIT}"
        self._json({"commitOid": COMMIT, "commitUrl": url, "pullRequestUrl": None, "success": True})

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        if path.startswith("/api/datasets/"):
            name = self._repository(path)
            if name not in self.hub.files:
                self.send_error(404)
            elif "/tree/" in path:
                files = self.hub.files[name].items()
                self._json([{"type": "file", "path": p, "size": len(c), "oid": _etag(c)} for p, c in files])
            else:
                siblings = [{"rfilename": p} for p in self.hub.files[name]]
                self._json({"id": name, "sha": COMMIT, "siblings": siblings, "private": self.hub.private[name]})
        elif "/resolve/" in path:
            where, _, rest = path.removeprefix("/datasets/").partition("/resolve/")
            self._bytes(self.hub.files[where][rest.partition("/")[2]])
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def _repository(self, path: str) -> str:
        return "/".join(path.removeprefix("/api/datasets/").split("/")[:2])

    def _json(self, value: Any) -> None:
        self._bytes(json.dumps(value).encode(), "application/json")

    def _bytes(self, content: bytes, kind: str = "application/octet-stream") -> None:
        self.send_response(200)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("ETag", f'"{_etag(content)}"'),
            ("X-Repo-Commit", COMMIT),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
