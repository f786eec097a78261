"""A process that has imported all of saelake and forks for every command, so that trying hundreds of them stays quick.

    with Commands() as saelake:
        saelake.run("ingest", "recipe.toml", "--lake", "lake", cwd=folder)     # what it said, how long it took, how much memory

A command's memory is that of its process and of those that it started, imports included, as `getrusage` reports it.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

LATEST = 60
"""Seconds after which a command is killed: none should take so long."""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    """Its exit code; negative for the signal that ended it."""
    out: str
    err: str
    seconds: float
    """Processor time, so that a busy machine makes no difference; a command that waits for ever is killed."""
    mib: float
    """Most memory of its process, or of one that it started and waited for."""


class Commands:
    """The process that forks."""

    def __enter__(self) -> Self:
        env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, encoding="utf-8"
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None, "a pipe"
        self._process.stdin.close()
        self._process.wait()

    def run(self, *arguments: object, cwd: Path) -> Ended:
        assert self._process.stdin is not None, "a pipe"
        assert self._process.stdout is not None, "a pipe"
        self._process.stdin.write(json.dumps([[str(one) for one in arguments], str(cwd)]) + "\n")
        self._process.stdin.flush()
        code, seconds, mib = json.loads(self._process.stdout.readline())
        out, err = ((cwd / f".{name}").read_text("utf-8", "replace") for name in ("out", "err"))
        return Ended(code, out, err, seconds, mib)


def _serve() -> None:
    import duckdb  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    import saelake.analysis.judges.harmbench
    import saelake.analysis.meaning.scores
    import saelake.analysis.stages
    import saelake.ingest.plan.estimate
    import saelake.ingest.shards  # noqa: F401
    from saelake import cli

    for line in sys.stdin:
        arguments, cwd = json.loads(line)
        Path(cwd, ".used").unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            os.chdir(cwd)
            for number, name in ((1, ".out"), (2, ".err")):
                os.dup2(os.open(name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
            signal.alarm(LATEST)
            code = 1
            try:
                cli.main(arguments, prog_name="saelake")
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                # The sandbox's memory counts: it ends with its input, and a process that was waited for is measured.
                _end_children()
                used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
                seconds = sum(one.ru_utime + one.ru_stime for one in used)
                Path(".used").write_text(json.dumps([seconds, max(one.ru_maxrss for one in used) / 1024]))
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        written = Path(cwd, ".used")
        told = json.loads(written.read_text()) if written.is_file() else [float(LATEST), float("inf")]
        sys.stdout.write(json.dumps([os.waitstatus_to_exitcode(status), *told]) + "\n")
        sys.stdout.flush()


def _end_children() -> None:
    for child in Path("/proc/self/task", str(os.getpid()), "children").read_text().split():
        os.kill(int(child), signal.SIGTERM)
        os.waitpid(int(child), 0)


if __name__ == "__main__":
    _serve()
