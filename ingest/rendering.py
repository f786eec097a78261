"""Renders chat templates in a process of their own (ingest/sandbox.py), where a hostile one is ended after a second.

The process is started by the first rendering, and serves all templates of this process; one that was ended is started again.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

SECONDS, SECONDS_A_PROMPT = 1.0, 0.002
"""Processor time of a request; an ordinary template renders ten thousand prompts a second."""
SANDBOX = Path(__file__).with_name("sandbox.py")


class Rendered(NamedTuple):
    """What a template made of one context."""

    text: str | None
    error: str | None
    """Why there is no text."""


def render(template: str, contexts: Sequence[Mapping[str, Any]]) -> list[Rendered]:
    """A template with every one of the contexts: its variables, and under `clock` the time in ISO format that it is given."""
    seconds = SECONDS + SECONDS_A_PROMPT * len(contexts)
    reply = _sandbox(os.getpid()).ask({"template": template, "contexts": contexts, "seconds": seconds})
    return [Rendered(None, reply)] * len(contexts) if isinstance(reply, str) else [Rendered(*one) for one in reply]


class _Sandbox:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> list[list[str | None]] | str:
        """The replies, or why there are none."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            process = self._process
            assert process.stdin is not None, "a pipe"
            assert process.stdout is not None, "a pipe"
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            if line:
                replies: list[list[str | None]] = json.loads(line)
                return replies
            status = process.wait()
            self._process = None
        if status in (-signal.SIGPROF, -signal.SIGALRM):
            return f"it takes more than {request['seconds']:.0f} s"
        return "it ends the process that renders it"

    def _start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-I", str(SANDBOX)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, encoding="utf-8", **pipes)


@cache
def _sandbox(_pid: int) -> _Sandbox:
    """One for this process; a forked one must not share its pipes."""
    return _Sandbox()
