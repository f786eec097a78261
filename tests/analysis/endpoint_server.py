"""A small OpenAI-compatible server on this machine, which does what a test plans."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

from tests.local_server import answering


class Asked(NamedTuple):
    """One question as it came."""

    path: str
    headers: dict[str, str]
    content: Any

    @property
    def question(self) -> str:
        text: str = self.content["messages"][0]["content"]
        return text


class Reply(NamedTuple):
    """What is sent back."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def says(text: str, prompt_tokens: int = 7, completion_tokens: int = 2) -> Reply:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return Reply(body=json.dumps({"choices": [{"message": {"content": text}}], "usage": usage}).encode())


@contextmanager
def serving(answer: Callable[[Asked], Reply]) -> Iterator[tuple[str, list[Asked]]]:
    """The address before /chat/completions, and what has been asked so far."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["content-length"])))
            one = Asked(self.path, {k.lower(): v for k, v in self.headers.items()}, content)
            asked.append(one)
            reply = answer(one)
            try:
                self.send_response(reply.status)
                for name, value in (*reply.headers, ("content-length", str(len(reply.body)))):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)
            except (BrokenPipeError, ConnectionResetError):
                pass

        def log_message(self, *_: Any) -> None: ...

    with answering(Handler) as address:
        yield f"{address}/v1", asked
