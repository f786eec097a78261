"""Real processes of the command line, quick to start: each is forked from one that has imported everything already.

with Forks() as forks:
    pid = forks.start("analyze", "recipe.toml", "--lake", "lake")
    forks.wait(pid)      # its exit code, negative for a signal
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parent.parent


class Forks:
    """Starts processes, and waits for them."""

    def __enter__(self) -> Self:
        self._mother = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._mother.stdin
        self._mother.stdin.close()
        self._mother.wait(timeout=60)

    def start(self, *arguments: object) -> int:
        """The process id of a `saelake` with these arguments; what it prints is dropped."""
        return self._ask({"start": [str(argument) for argument in arguments]})

    def wait(self, pid: int) -> int:
        """The exit code of a process when it has ended."""
        return self._ask({"wait": pid})

    def _ask(self, request: dict[str, object]) -> int:
        assert self._mother.stdin
        assert self._mother.stdout
        self._mother.stdin.write(json.dumps(request) + "\n")
        self._mother.stdin.flush()
        return int(self._mother.stdout.readline())


def _serve() -> None:
    import torch  # noqa: F401  (what takes long to import; nothing here starts a thread, so that forking is safe)

    import queries.formats  # noqa: F401
    from cli import main

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        main(request["start"])


if __name__ == "__main__":
    _serve()
