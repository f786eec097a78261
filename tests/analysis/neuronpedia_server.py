"""A local HTTP server that answers as Neuronpedia and its bucket do, and misbehaves on request."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from time import sleep
from urllib.parse import parse_qs, unquote, urlsplit

from tests.local_server import answering


@dataclass
class Neuronpedia:
    """What the server knows, how it misbehaves, and what it was asked."""

    explanations: dict[tuple[str, int], list[str]]
    """(model/source, index) -> descriptions"""
    place: tuple[str, str] = ("", "")
    """the SAE's repository and folder, as answers give it"""
    page_size: int = 2
    """keys in one page of a listing"""
    faults: dict[str, list[str]] = field(default_factory=dict)
    """path -> faults of its first answers: a status, "429 2" with a time to wait, slow, cut, garbled, index, gzip"""
    asked: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.asked)

    def answer(self, path: str, query: dict[str, list[str]]) -> tuple[int, bytes]:
        if path.startswith("/api/feature/"):
            model, source, index = path.removeprefix("/api/feature/").split("/")
            found = self.explanations.get((f"{model}/{source}", int(index)))
            if found is None:
                return 404, b'{"error":"Feature not found"}'
            return 200, json.dumps(self._feature(model, source, index, found)).encode()
        if path == "/":
            return 200, self._listing(query)
        model, source = path.removeprefix("/v1/").split("/")[:2]
        number = int(path.rsplit("-", 1)[1].split(".")[0])
        rows = self._rows(model, source)[number::3]
        return 200, gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())

    def _feature(self, model: str, source: str, index: str, found: list[str]) -> dict[str, object]:
        repository, folder = self.place
        told = {"id": source, "modelId": model, "hfRepoId": repository, "hfFolderId": folder, "saelensRelease": None}
        explanations = [
            row | {"id": f"c{n}", "authorId": "a", "scores": []}
            for n, row in enumerate(self._rows_of(model, source, index, found))
        ]
        return {
            "modelId": model,
            "layer": source,
            "index": index,
            "frac_nonzero": 0.01,
            "source": told,
            "explanations": explanations,
        }

    def _rows(self, model: str, source: str) -> list[dict[str, object]]:
        mine = {index: found for (name, index), found in self.explanations.items() if name == f"{model}/{source}"}
        return [row for index, found in mine.items() for row in self._rows_of(model, source, str(index), found)]

    def _rows_of(self, model: str, source: str, index: str, found: list[str]) -> list[dict[str, object]]:
        more = {"typeName": "oai_token-act-pair", "explanationModelName": "gpt-4o-mini"}
        return [{"modelId": model, "layer": source, "index": index, "description": text, **more} for text in found]

    def _listing(self, query: dict[str, list[str]]) -> bytes:
        prefix = query["prefix"][0]
        source = "/".join(prefix.split("/")[1:3])
        keys = [f"{prefix}batch-{n}.jsonl.gz" for n in range(3)] if any(name == source for name, _ in self.explanations) else []
        start = int(query.get("continuation-token", ["0"])[0])
        shown, rest = keys[start : start + self.page_size], keys[start + self.page_size :]
        contents = "".join(f"<Contents><Key>{key}</Key><Size>1</Size></Contents>" for key in shown)
        more = f"<NextContinuationToken>{start + self.page_size}</NextContinuationToken>" if rest else ""
        return f'<?xml version="1.0"?><ListBucketResult>{contents}{more}</ListBucketResult>'.encode()


@contextmanager
def serving(neuronpedia: Neuronpedia) -> Iterator[Neuronpedia]:
    """The server on a free port, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            split = urlsplit(self.path)
            path = unquote(split.path)
            neuronpedia.asked.append(path)
            faults = neuronpedia.faults.get(path, [])
            fault = faults.pop(0) if faults else ""
            code, body = neuronpedia.answer(path, parse_qs(split.query))
            status = str(code)
            headers = {"Content-Length": str(len(body))}
            if fault[:1].isdigit():
                status, _, wait = fault.partition(" ")
                body = b'{"error":"busy"}'
                headers = {"Content-Length": str(len(body))} | ({"Retry-After": wait} if wait else {})
            elif fault == "slow":
                sleep(1.0)
            elif fault == "cut":
                body = body[: len(body) // 2]
            elif fault == "garbled":
                body = body[:-1] + b"!"
            elif fault == "index":
                body = body.replace(b'"index": "', b'"index": "9')
                headers["Content-Length"] = str(len(body))
            elif fault == "gzip":
                body = body[:12] + bytes(len(body) - 12)
            try:
                self.send_response(int(status))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except OSError:  # the client did not wait
                pass

        def log_message(self, *_: object) -> None:
            pass

    with answering(Handler) as neuronpedia.url:
        yield neuronpedia
