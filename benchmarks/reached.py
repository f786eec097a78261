"""Which lines of a copy of the repository each of its tests reaches, and how long each takes: measured once, and kept.

What was measured is kept beside the copy, for test files that are the same next time.
"""

import hashlib
import json
import os
import resource
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("tests/analysis", "tests/planted", "tests/test_arguments.py", "tests/test_planted.py")
SLOW = ("organism_lake", "test_workers", "test_kill")
"""Test files that hold one of these words, or are named so, take minutes."""
QUIETLY = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist")


class Tested(NamedTuple):
    """One test, run undisturbed."""

    name: str
    """As pytest names it."""
    seconds: float
    fixtures: Mapping[str, float]
    """What it asks for and others may share -> the seconds that each takes to make."""
    lines: Mapping[str, set[int]]
    """The lines that it and its fixtures reach, of every file of the packages."""


def test_files(copy: Path) -> list[str]:
    files = [
        file for name in TESTS for file in (sorted((copy / name).rglob("test_*.py")) if (copy / name).is_dir() else [copy / name])
    ]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    return [str(file.relative_to(copy)) for file, text in texts.items() if not any(w in text or w == file.stem for w in SLOW)]


def forked(copy: Path, work: Callable[[], int], seconds: float) -> int | None:
    """What `work` returns in a fork that sees the copy and nothing of this checkout; None if it took too long."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
        os.chdir(copy)
        sys.path[:] = [str(copy), *(one for one in sys.path if Path(one or ".").resolve() not in (ROOT, copy))]
        os.environ |= {"PYTHONPATH": os.pathsep.join(sys.path[:1]), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
        os.environ["SAELAKE_TEST_CACHE"] = str(copy / ".kept")  # what a mutant computes is nobody else's
        sys.dont_write_bytecode = True
        for number in (1, 2):
            os.dup2(os.open(copy / ".out", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
        code = 70
        try:
            code = int(work())
        finally:
            sys.stdout.flush()
            os._exit(code)
    last = time.monotonic() + 20 * seconds  # others share the machine; what never ends uses no processor or all of its limit
    try:
        while time.monotonic() < last:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        return None
    finally:
        try:
            os.killpg(pid, signal.SIGKILL)  # and what a test has started
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def measured(copy: Path, packages: Sequence[str], files: Sequence[str]) -> list[Tested]:
    """The tests of these files as they are.

    Those of a file that was measured before and is the same are not run again: of a module that has changed since, each line then
    counts as reached by what reached any of it.
    """
    kept = copy.with_name(f"{copy.name}-measured.json")
    known: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    modules = {str(file.relative_to(copy)): _hash(file) for package in packages for file in (copy / package).rglob("*.py")}
    missing = [file for file in files if known.get(file, {}).get("hash") != _hash(copy / file)]
    if missing:
        found = _run_and_seen(copy, packages, missing)
        for file in missing:
            mine = [one for one in found if one[0].startswith(f"{file}::")]
            known[file] = {"hash": _hash(copy / file), "modules": modules, "tests": mine}
        kept.write_text(json.dumps({file: known[file] for file in files}), encoding="utf-8")
    every = {name: set(range(1, 1 + len((copy / name).read_text(encoding="utf-8").splitlines()))) for name in modules}
    tested = []
    for file in files:
        then = known[file]["modules"]
        for name, seconds, fixtures, lines in known[file]["tests"]:
            reached = {m: set(some) if then.get(m) == modules[m] else every[m] for m, some in lines.items() if m in modules}
            tested.append(Tested(name, seconds, fixtures, reached))
    return tested


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _run_and_seen(copy: Path, packages: Sequence[str], files: Sequence[str]) -> list[Any]:
    """Runs the test files in one process, so that what they share is made once. Tests that fail without a change are left out."""

    def work() -> int:
        seen = _Seen(copy, packages)
        code = pytest.main([*QUIETLY, *files], plugins=[seen])
        (copy / ".reached").write_text(json.dumps([sorted(seen.failed), seen.reached()]))
        return int(code)

    code = forked(copy, work, 3600)
    assert code in (0, 1), f"the tests did not run: {(copy / '.out').read_text()[-3000:]}"
    failed, found = json.loads((copy / ".reached").read_text())
    for name in failed:
        print(f"  left out, since it fails without a change: {name}", flush=True)
    return list(found)


class _Seen:
    """A plugin of pytest that keeps which test reaches which lines, and how long it takes alone.

    Fixtures that many tests share are made for the first one of them: their lines and seconds are those of every test that asks.
    """

    def __init__(self, copy: Path, packages: Sequence[str]) -> None:
        import coverage

        self._copy = copy
        self._coverage = coverage.Coverage(data_file=None, source=[str(copy / package) for package in packages])
        self._coverage.start()
        self._now: list[tuple[str, float]] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._asked: dict[str, set[str]] = {}
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        made = item._fixtureinfo.name2fixturedefs
        self._asked[item.nodeid] = {_fixture(made[name][-1]) for name in item.fixturenames if name in made}
        with self._within(item.nodeid):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        if fixturedef.scope == "function":
            return (yield)
        with self._within(_fixture(fixturedef)):
            return (yield)

    @contextmanager
    def _within(self, name: str) -> Iterator[None]:
        """What runs now belongs to this test or fixture, and not to what is around it."""
        self._switch(name)
        yield
        self._switch(None)

    def _switch(self, name: str | None) -> None:
        now = sum(os.times()[:4])  # of what it has started, too
        if self._now:
            self._seconds[self._now[-1][0]] += now - self._now[-1][1]
        if name is None:
            self._now.pop()
        else:
            self._now.append((name, now))
        if self._now:
            self._now[-1] = (self._now[-1][0], now)
            self._coverage.switch_context(self._now[-1][0])

    def reached(self) -> list[tuple[str, float, dict[str, float], dict[str, list[int]]]]:
        """Each test, its seconds, those of the fixtures that it shares, and the lines of each module that it reaches."""
        self._coverage.stop()
        data = self._coverage.get_data()
        lines: dict[str, dict[str, set[int]]] = {}
        for measured in data.measured_files():
            file = Path(measured).relative_to(self._copy).as_posix()
            for line, contexts in data.contexts_by_lineno(measured).items():
                for context in contexts:
                    lines.setdefault(context, {}).setdefault(file, set()).add(line)
        imported = lines.pop("", {})  # constants and defaults count as reached where anything else of their module is
        found = []
        for test, asked in self._asked.items():
            if test in self.failed:
                continue
            shared = {name: self._seconds[name] for name in sorted(asked) if name in self._seconds}
            mine: dict[str, set[int]] = {}
            for name in (test, *shared):
                for file, reached in lines.get(name, {}).items():
                    mine.setdefault(file, set()).update(reached)
            reaches = {file: sorted(reached | imported.get(file, set())) for file, reached in mine.items()}
            found.append((test, self._seconds[test], shared, reaches))
        return found


def _fixture(made: Any) -> str:
    """A fixture's name, and where it stands: several files may have one of the name."""
    return f"fixture {made.argname} of {made.baseid}"
