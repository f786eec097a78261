"""Mutants of the searches, the engine, the interactions and the judges: one small change each, which some test must notice.

    make mutants                        # all packages, SAMPLE=200 places in all, drawn by SEED=0
    python -m benchmarks.mutants --sample 40 --only analysis/judges

Cosmic Ray makes the mutants. A place is what it can change: an operator, a comparison, a number, a constant, a decorator, a loop.
Places are drawn by the seed, the same share in each package, and one of the changes of each place. Left out are annotations,
what decides no result (strict of zip, frozen, the version of code, how much is done at a time), and changes that Python itself
refuses (shifts of floats, `is` for numbers), which any test would notice.

Each mutant is run against the tests that reach its line, as measured first, the quickest first, as long as they take no more
than LONGEST seconds together with the fixtures that they ask for. So the score is a lower bound: a survivor may be known to a
test that was left out. What was measured is kept beside the copy, for test files that are the same next time.

Tests run in forks of a process that has imported torch and its like but nothing of saelake, in a copy of the repository.
"""

import ast
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from benchmarks.harness import Report

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("analysis/search", "analysis/interactions", "analysis/engine", "analysis/judges")
TESTS = ("tests/analysis", "tests/planted", "tests/test_arguments.py", "tests/test_planted.py")
LIKE = {"Add": "Sub|Mul", "Sub": "Add|Mul", "Mul": "Add|Div", "Div": "Mul|FloorDiv", "FloorDiv": "Div|Mod", "Mod": "FloorDiv"}
LIKE |= {"Pow": "Mul", "BitAnd": "BitOr", "BitOr": "BitAnd", "BitXor": "BitOr", "LShift": "RShift", "RShift": "LShift"}
LIKE |= {"Lt": "LtE|Gt", "LtE": "Lt|GtE", "Gt": "GtE|Lt", "GtE": "Gt|LtE", "Eq": "NotEq|LtE|GtE", "NotEq": "Eq|Lt|Gt"}
LIKE |= {"Is": "IsNot", "IsNot": "Is", "In": "NotIn", "NotIn": "In"}
"""An operator -> those that take its place."""
GUARDS = ("strict", "code_version", "frozen")
"""Arguments that decide no result: a check of what holds anyway, how a stage names its code, whether a value may change."""
PACE = {
    "AT_ONCE",
    "CAPTURED_TOKENS",
    "CHUNK",
    "CHUNK_ROWS",
    "COMPACT",
    "DENSE",
    "FREE_SHARE",
    "GATHER_TOKENS",
    "KEPT",
    "KEPT_BYTES",
}
PACE |= {"LOGITS", "MOST_TOKENS", "PART_BYTES", "ROWS", "SHARD_PASSES", "UNKNOWN", "WHOLE"}
"""Constants that say how much is done or kept at a time: time and memory hang on them, and no result."""
UNARY = ("UnaryOperator_Delete_USub", "UnaryOperator_Delete_Not", "UnaryOperator_Delete_Invert")
SLOW = ("organism_lake", "test_workers", "test_kill")
"""Test files that hold one of these words, or are named so, take minutes."""
LONGEST = 100.0
QUIETLY = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist")
TARGET = 0.85
OUTCOMES = ("killed", "survived", "not reached", "equivalent")
EQUIVALENT = Path(__file__).with_name("equivalent.json")
"""Mutants that do what the program does, or differ in no result: file -> the line as it is after the change -> the reason. They
are listed and do not count."""


class Tested(NamedTuple):
    """One test, run undisturbed."""

    name: str
    """As pytest names it."""
    seconds: float
    fixtures: Mapping[str, float]
    """What it asks for and others may share -> the seconds that each takes to make."""
    lines: Mapping[str, set[int]]
    """The lines that it and its fixtures reach, of every file of the packages."""


class Place(NamedTuple):
    """Where a module can be changed."""

    file: str
    start: tuple[int, int]
    changes: Sequence[tuple[str, int]]
    """Operators of Cosmic Ray that apply there, each with the occurrence that this place is in the file."""


class Mutant(NamedTuple):
    """A changed module and what became of it."""

    file: str
    line: int
    operator: str
    before: str
    after: str
    outcome: str
    """killed, survived, not reached or equivalent"""


@click.command(help=__doc__)
@click.option("--sample", default=200, show_default=True, help="Places in all.")
@click.option("--seed", default=0, show_default=True)
@click.option("--only", multiple=True, help="Only this package, or file.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="A folder for the copy; it is emptied first.")
@click.option("--workers", default=1, show_default=True, help="Mutants that are tried at a time.")
@click.option("--keep/--no-keep", default=False, help="Write the score into docs/benchmarks.md.")
def main(sample: int, seed: int, only: Sequence[str], work: Path, workers: int, keep: bool) -> None:
    report = Report("mutants", "Mutants that the tests notice", ("cosmic-ray", "pytest", "torch"), "make mutants")
    copy = _copied(work)
    _import_third_party()
    tested = [one for one in _measured(copy, _test_files(copy)) if one.lines]
    shared = {name: seconds for one in tested for name, seconds in one.fixtures.items()}
    report.line(f"{len(tested)} tests, {sum(shared.values()) + sum(one.seconds for one in tested):.0f} s one after the other")
    drawn: dict[str, list[Place]] = {}
    n_places: dict[str, int] = {}
    for package in PACKAGES:
        places = [place for file in sorted((copy / package).rglob("*.py")) for place in _places(copy, file)]
        places = [place for place in places if not only or place.file.startswith(tuple(only))]
        drawn[package] = random.Random(f"{seed} {package}").sample(places, min(len(places), sample // len(PACKAGES)))
        n_places[package] = len(places)
    tried = _all_tried(copy, [place for some in drawn.values() for place in some], tested, seed, workers)
    report.ratio("mutants_killed", _score(tried), f">= {TARGET}")
    for package, some in drawn.items():
        if some:
            report.line(f"{package}: {len(some)} of {n_places[package]} places, seed {seed}")
            _told(report, package, [tried.pop(0) for _ in some])
    if keep:
        report.keep()


def _copied(work: Path) -> Path:
    """The repository's files as they are now, in a folder of their own."""
    shutil.rmtree(work, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, work / name, follow_symlinks=False)
    return work.resolve()


def _test_files(copy: Path) -> list[str]:
    files = [
        file for name in TESTS for file in (sorted((copy / name).rglob("test_*.py")) if (copy / name).is_dir() else [copy / name])
    ]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    return [str(file.relative_to(copy)) for file, text in texts.items() if not any(w in text or w == file.stem for w in SLOW)]


def _import_third_party() -> None:
    import coverage  # noqa: F401
    import duckdb  # noqa: F401
    import hypothesis  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import sae_lens  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import torchfm.layer  # noqa: F401
    from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    torch.set_num_threads(1)


def _forked(copy: Path, work: Callable[[], int], seconds: float) -> int | None:
    """What `work` returns in a fork that sees the copy and nothing of this checkout; None if it took too long."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
        os.chdir(copy)
        sys.path[:] = [str(copy), *(one for one in sys.path if Path(one or ".").resolve() not in (ROOT, copy))]
        os.environ |= {"PYTHONPATH": os.pathsep.join(sys.path[:1]), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
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


def _pytest(tests: Sequence[str]) -> int:
    return int(pytest.main(["-x", *QUIETLY, *tests]))


def _measured(copy: Path, files: Sequence[str]) -> list[Tested]:
    """The tests of these files as they are.

    Those of a file that was measured before and is the same are not run again: of a module that has changed since, each line then
    counts as reached by what reached any of it.
    """
    kept = copy.with_name(f"{copy.name}-measured.json")
    known: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    modules = {str(file.relative_to(copy)): _hash(file) for package in PACKAGES for file in (copy / package).rglob("*.py")}
    missing = [file for file in files if known.get(file, {}).get("hash") != _hash(copy / file)]
    if missing:
        found = _run_and_seen(copy, missing)
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


def _run_and_seen(copy: Path, files: Sequence[str]) -> list[Any]:
    """Runs the test files in one process, so that what they share is made once. Tests that fail without a change are left out."""

    def work() -> int:
        seen = _Seen(copy)
        code = pytest.main([*QUIETLY, *files], plugins=[seen])
        (copy / ".reached").write_text(json.dumps([sorted(seen.failed), seen.reached()]))
        return int(code)

    code = _forked(copy, work, 3600)
    assert code in (0, 1), f"the tests did not run: {(copy / '.out').read_text()[-3000:]}"
    failed, found = json.loads((copy / ".reached").read_text())
    for name in failed:
        print(f"  left out, since it fails without a change: {name}", flush=True)
    return list(found)


class _Seen:
    """A plugin of pytest that keeps which test reaches which lines, and how long it takes alone.

    Fixtures that many tests share are made for the first one of them: their lines and seconds are those of every test that asks.
    """

    def __init__(self, copy: Path) -> None:
        import coverage

        self._copy = copy
        self._coverage = coverage.Coverage(data_file=None, source=[str(copy / package) for package in PACKAGES])
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


def _places(copy: Path, file: Path) -> Iterator[Place]:
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    source = file.read_text(encoding="utf-8")
    annotated = list(_left_out(source))
    found: dict[tuple[Any, Any], list[tuple[str, int]]] = {}
    nodes = list(ast_nodes(get_ast(source)))
    for name in plugins.operator_names():
        operator = plugins.get_operator(name)
        if operator.arguments() or not _is_sensible(name.split("/")[-1]):
            continue
        positions = [place for node in nodes for place in operator().mutation_positions(node)]
        for occurrence, (start, end) in enumerate(positions):
            if not any(first <= tuple(start) and tuple(end) <= last for first, last in annotated):
                found.setdefault((tuple(start), tuple(end)), []).append((name, occurrence))
    for (start, _end), changes in sorted(found.items()):
        yield Place(str(file.relative_to(copy)), start, changes)


def _is_sensible(operator: str) -> bool:
    kind, _, change = operator.partition("Operator_")
    if kind.endswith("Unary"):
        return f"UnaryOperator_{change}" in UNARY
    if kind.endswith(("Binary", "Comparison")):
        old, new = change.split("_")
        return new in LIKE.get(old, "").split("|")
    return operator != "NoOp"


def _left_out(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations and guards begin and end."""
    for node in ast.walk(ast.parse(source)):
        guard = node.value if isinstance(node, ast.keyword) and node.arg in GUARDS else None
        for noted in (getattr(node, "annotation", None), getattr(node, "returns", None), guard):
            if isinstance(noted, ast.expr):
                yield (noted.lineno, noted.col_offset), (noted.end_lineno or 0, noted.end_col_offset or 0)
    for statement in ast.parse(source).body:
        if not isinstance(statement, ast.Assign):
            continue
        names, noted = {getattr(one, "id", "") for one in statement.targets}, statement.value
        if names & PACE or "CODE_VERSION" in names or isinstance(noted, ast.BinOp | ast.Subscript):  # these name types
            yield (noted.lineno, noted.col_offset), (noted.end_lineno or 0, noted.end_col_offset or 0)


def _all_tried(copy: Path, places: Sequence[Place], tested: Sequence[Tested], seed: int, workers: int) -> list[Mutant]:
    """What becomes of each place's mutant; each worker has a copy of its own."""
    context = get_context("fork")
    found: dict[int, Mutant] = {}
    copies = [copy.with_name(f"{copy.name}-{number}") for number in range(workers)]

    def work(worker: int, end: Connection) -> None:
        for number in range(worker, len(places), workers):
            place = places[number]
            chance = random.Random(f"{seed} {place.file} {place.start}")
            end.send((number, _tried(copies[worker], place, tested, chance)))
        end.close()

    ends: list[Any] = []
    for worker, own in enumerate(copies):
        shutil.rmtree(own, ignore_errors=True)
        shutil.copytree(copy, own, symlinks=True)
        mine, theirs = context.Pipe(duplex=False)
        context.Process(target=work, args=(worker, theirs)).start()
        theirs.close()
        ends.append(mine)
    while ends:
        ready: list[Any] = wait(ends)
        for end in ready:
            try:
                number, mutant = end.recv()
                found[number] = mutant
            except EOFError:
                ends.remove(end)
    assert len(found) == len(places), "a worker has ended early"
    for own in copies:
        shutil.rmtree(own)
    return [found[number] for number in range(len(places))]


def _tried(copy: Path, place: Place, tested: Sequence[Tested], chance: random.Random) -> Mutant:
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    operator, occurrence = chance.choice(place.changes)
    file = copy / place.file
    source = file.read_text(encoding="utf-8")
    changed = mutate_code(source, plugins.get_operator(operator)(), occurrence)
    assert changed is not None, f"{operator} has no occurrence {occurrence} in {place.file}"
    before, after = _difference(source, changed, place.start[0])
    tests, seconds = _reaching(place, tested)
    is_known = after in _equivalent(place.file)
    if tests and not is_known:
        try:
            file.write_text(changed, encoding="utf-8")
            code = _forked(copy, lambda: _pytest(tests), 5 * seconds + 20)
        finally:
            file.write_text(source, encoding="utf-8")
        assert code not in (5, 70), f"the tests did not run: {(copy / '.out').read_text()[-2000:]}"
        outcome = "survived" if code == 0 else "killed"
    else:
        outcome = "equivalent" if is_known else "not reached"
    mutant = Mutant(place.file, place.start[0], operator.split("/")[-1], before, after, outcome)
    print(f"  {outcome:<9} {mutant.file}:{mutant.line} {mutant.operator}: {before} -> {after}", flush=True)
    return mutant


def _equivalent(file: str) -> Mapping[str, str]:
    known = json.loads(EQUIVALENT.read_text(encoding="utf-8")) if EQUIVALENT.exists() else {}
    return dict(known.get(file, {}))


def _difference(source: str, changed: str, line: int) -> tuple[str, str]:
    """The first line that differs, before and after."""
    for old, new in zip(source.splitlines(), changed.splitlines(), strict=False):
        if old != new:
            return old.strip(), new.strip()
    return source.splitlines()[line - 1].strip(), ""


def _reaching(place: Place, tested: Sequence[Tested]) -> tuple[list[str], float]:
    """The tests to run, those first that take least beside what is made already, and how long they take."""
    left = [one for one in tested if place.start[0] in one.lines.get(place.file, ())]
    tests: list[str] = []
    made: set[str] = set()
    seconds = 0.0
    while left:
        costs = [one.seconds + sum(cost for name, cost in one.fixtures.items() if name not in made) for one in left]
        cost, next_one = min(zip(costs, range(len(left)), strict=True))
        if tests and seconds + cost > LONGEST:
            break
        one = left.pop(next_one)
        seconds += cost
        tests.append(one.name)
        made |= set(one.fixtures)
    return tests, seconds


def _told(report: Report, package: str, mutants: Sequence[Mutant]) -> None:
    counts = Counter(one.outcome for one in mutants)
    report.line(", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome]))
    report.ratio(f"mutants_{package.rpartition('/')[2]}", _score(mutants), f">= {TARGET}")
    for one in mutants:
        if one.outcome != "killed":
            why = f" ({_equivalent(one.file)[one.after]})" if one.outcome == "equivalent" else ""
            report.line(f"  {one.outcome}: {one.file}:{one.line} `{one.before}` -> `{one.after}`{why}")


def _score(mutants: Sequence[Mutant]) -> float:
    """The share that some test noticed of those that could be."""
    counts = Counter(one.outcome for one in mutants)
    return counts["killed"] / max(len(mutants) - counts["equivalent"], 1)


if __name__ == "__main__":
    main()
