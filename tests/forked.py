"""Processes that fork from one that has imported what takes seconds, so that running hundreds of programs stays quick.

    with Forks() as forks:                          # of one that has imported saelake
        forks.run("saelake", "ingest", "recipe.toml", "--lake", "lake", cwd=folder)    # what it said, its time and memory
        forks.run("python", "-c", "import saelake", cwd=folder)

    with Forks(LIBRARIES) as forks:                 # of one that has imported what saelake is made of, for another copy of it

A program's memory is that of its process and of those that it started, imports included, as `getrusage` reports it.
"""

import importlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

LIBRARIES = ("duckdb", "pyarrow.parquet", "pydantic", "sae_lens", "torch")
SAELAKE = (
    "saelake.analysis.judges.harmbench",
    "saelake.analysis.meaning.scores",
    "saelake.analysis.verbs",
    "saelake.cli",
    "saelake.ingest.plan.estimate",
    "saelake.ingest.shards",
    "transformers.models.llama.modeling_llama",
)
LATEST = 60
"""Seconds after which a program is killed, unless it is told otherwise: none should take so long."""


class Ended(NamedTuple):
    """How a program ended."""

    code: int
    """Its exit code; negative for the signal that ended it."""
    out: str
    err: str
    seconds: float
    """Processor time, so that a busy machine makes no difference; a program that waits for ever is killed."""
    mib: float
    """Most memory of its process, or of one that it started and waited for."""


class Forks:
    """The process that forks."""

    def __init__(self, modules: Sequence[str] = SAELAKE, env: Mapping[str, str] | None = None) -> None:
        self._modules = modules
        outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        self._env = outer | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | dict(env or {})

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        command = [sys.executable, "-P", __file__, self._folder.name, *self._modules]  # -P: nothing is imported from these tests
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._env, encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None, "a pipe"
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def run(self, *words: object, cwd: Path, latest: int = LATEST) -> Ended:
        """Runs `saelake ...`, `python -c CODE` or `python -m MODULE ...`; python imports from `cwd` before anywhere else."""
        assert self._process.stdin is not None, "a pipe"
        assert self._process.stdout is not None, "a pipe"
        self._process.stdin.write(json.dumps([[str(one) for one in words], str(cwd), latest]) + "\n")
        self._process.stdin.flush()
        code, seconds, mib = json.loads(self._process.stdout.readline())
        out, err = (Path(self._folder.name, name).read_text("utf-8", "replace") for name in ("out", "err"))
        return Ended(code, out, err, seconds, mib)


def _serve(folder: Path, modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    for line in sys.stdin:
        words, cwd, latest = json.loads(line)
        used = folder / "used"
        used.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(folder / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.chdir(cwd)
            signal.alarm(latest)
            code = 1
            try:
                _run(words, cwd)
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                # The sandbox's memory counts: it ends with its input, and a process that was waited for is measured.
                _end_children()
                both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
                seconds = sum(one.ru_utime + one.ru_stime for one in both)
                used.write_text(json.dumps([seconds, max(one.ru_maxrss for one in both) / 1024]))
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        told = json.loads(used.read_text()) if used.is_file() else [float(latest), float("inf")]
        sys.stdout.write(json.dumps([os.waitstatus_to_exitcode(status), *told]) + "\n")
        sys.stdout.flush()


def _run(words: Sequence[str], cwd: str) -> None:
    match words:
        case "saelake", *arguments:
            from saelake import cli

            cli.main(arguments, prog_name="saelake")
        case "python", "-c", code:
            sys.path.insert(0, cwd)
            exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
        case "python", "-m", module, *arguments:
            sys.path.insert(0, cwd)
            sys.argv[1:] = arguments
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case _:
            raise ValueError(f"neither saelake nor python -c or -m: {words}")


def _end_children() -> None:
    for child in Path("/proc/self/task", str(os.getpid()), "children").read_text().split():
        os.kill(int(child), signal.SIGTERM)
        os.waitpid(int(child), 0)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2:])
