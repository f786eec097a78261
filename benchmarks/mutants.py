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

import json
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from benchmarks.harness import Report
from benchmarks.places import Place, places
from benchmarks.reached import QUIETLY, Tested, forked, measured, test_files

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("analysis/search", "analysis/interactions", "analysis/engine", "analysis/judges")
LONGEST = 100.0
TARGET = 0.85
OUTCOMES = ("killed", "survived", "not reached", "equivalent")
EQUIVALENT = Path(__file__).with_name("equivalent.json")
"""Mutants that do what the program does, or differ in no result: file -> the line as it is after the change -> the reason. They
are listed and do not count."""


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
    tested = [one for one in measured(copy, PACKAGES, test_files(copy)) if one.lines]
    shared = {name: seconds for one in tested for name, seconds in one.fixtures.items()}
    report.line(f"{len(tested)} tests, {sum(shared.values()) + sum(one.seconds for one in tested):.0f} s one after the other")
    drawn: dict[str, list[Place]] = {}
    n_places: dict[str, int] = {}
    for package in PACKAGES:
        found = [place for file in sorted((copy / package).rglob("*.py")) for place in places(copy, file)]
        found = [place for place in found if not only or place.file.startswith(tuple(only))]
        drawn[package] = random.Random(f"{seed} {package}").sample(found, min(len(found), sample // len(PACKAGES)))
        n_places[package] = len(found)
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


def _pytest(tests: Sequence[str]) -> int:
    return int(pytest.main(["-x", *QUIETLY, *tests]))


def _all_tried(copy: Path, drawn: Sequence[Place], tested: Sequence[Tested], seed: int, workers: int) -> list[Mutant]:
    """What becomes of each place's mutant; each worker has a copy of its own."""
    context = get_context("fork")
    found: dict[int, Mutant] = {}
    copies = [copy.with_name(f"{copy.name}-{number}") for number in range(workers)]

    def work(worker: int, end: Connection) -> None:
        for number in range(worker, len(drawn), workers):
            place = drawn[number]
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
    assert len(found) == len(drawn), "a worker has ended early"
    for own in copies:
        shutil.rmtree(own)
    return [found[number] for number in range(len(drawn))]


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
            code = forked(copy, lambda: _pytest(tests), 5 * seconds + 20)
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
