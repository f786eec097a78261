"""Commands killed at random moments, each then given again: it must complete, and the lake be that of an undisturbed one.

    python -m benchmarks.torture --kills 0 --damages 0 --seconds 0 --commands 60

Commands run in forks of one process that has imported everything, since importing takes longer than a tiny study. Nothing is
opened before a fork: a child is what a new process would be.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.planted import write_planted

FEW = "\n[algorithm1]\nseeds = 1\ntaus = [0.5]\nblock_size = 2\n[minimal]\nstarts = 2\n"
CHEAP = ("share", "add", "drop", "gc", "report", "create", "close")
COMPUTED = ("ingest", "analyze")


@dataclass(frozen=True)
class Case:
    """One command: what is there before, its arguments, and what must be there in the end."""

    name: str
    prepare: Callable[[Path], None]
    """Fills an empty folder."""
    arguments: Callable[[Path], Sequence[str]]
    outcome: Callable[[Path], object]
    """What a folder holds that counts, as JSON; equal for equal lakes."""
    is_over: Callable[[Path], bool] = field(default=lambda _folder: False)
    """Whether a killed command had done all: it cannot be given again where it makes something new."""


def tiny_recipe(folder: Path) -> Path:
    """A planted study that is analysed in seconds."""
    file = write_planted(folder).recipe
    text = file.read_text().replace("shard_prompts = 16", "shard_prompts = 4").replace("random_draws = 3", "random_draws = 1")
    file.write_text(text.replace("cap = 4", "cap = 2") + FEW)
    return file


def kill_commands(folder: Path, count: int, chance: random.Random, computed_every: int = 6) -> list[str]:
    """Kills `count` commands, one in `computed_every` of them one that computes; what went wrong.

    Each is timed undisturbed first, and killed at a random moment of that time.
    """
    _import_all()
    folder.mkdir()
    recipe = tiny_recipe(folder / "recipe")
    cases = {case.name: case for case in _cases(folder, recipe)}
    misses = [miss for case in ("ingest", "analyze") if (miss := _undisturbed(folder, cases[case]))]
    if misses:
        return misses
    _base(folder, recipe)
    misses += [miss for name in CHEAP if (miss := _undisturbed(folder, cases[name]))]
    n_killed = dict.fromkeys(cases, 0)
    for number in range(count):
        name = COMPUTED[number // computed_every % 2] if number % computed_every == 0 else CHEAP[number % len(CHEAP)]
        was_killed, miss = _kill(folder, cases[name], number, chance)
        n_killed[name] += was_killed
        misses += [miss] if miss else []
    counted = ", ".join(f"{name} {n}" for name, n in n_killed.items())
    print(f"     {sum(n_killed.values())} of {count} commands were killed before they ended: {counted}")
    return misses


def _cases(folder: Path, recipe: Path) -> list[Case]:
    base, shared, open_study, whole = folder / "base", folder / "set", folder / "with-study", folder / "analyze"
    lake = ("--lake", "lake")

    def copied(source: Path) -> Callable[[Path], None]:
        def copy(to: Path) -> None:
            shutil.copytree(source / "lake", to / "lake", dirs_exist_ok=True)

        return copy

    def nothing(_to: Path) -> None:
        pass

    def leaf(_folder: Path) -> str:
        """A run that no other is computed from."""
        parents = {p.stem: json.loads(p.read_text())["parents"] for p in (base / "lake" / "runs").glob("*.json")}
        return min(parents.keys() - {parent for some in parents.values() for parent in some})

    def garbage(to: Path) -> None:
        copied(base)(to)
        (to / "lake" / "data" / f"{leaf(to)}-2").mkdir()
        for i in range(200):
            (to / "lake" / "data" / f"{leaf(to)}-2" / f"x{i}").write_text("x" * 1000)
        (to / "lake" / "landing" / "ingest_000000000000" / "a").mkdir(parents=True)

    report = ("report", *lake, "--output", "report.html")
    create = (
        "study",
        "create",
        "pilot",
        "--population",
        "critical",
        "--annotator",
        "ann",
        "--random",
        "2",
        "--silent",
        "1",
        *lake,
    )
    gc = ("gc", "--older-than", "0", "--landings", *lake)
    return [
        Case("ingest", nothing, lambda _: ("ingest", str(recipe), *lake), _contents),
        Case("analyze", nothing, lambda _: ("analyze", str(recipe), *lake), _contents),
        Case("share", copied(base), lambda _: ("share", "set", *lake), _files_of("set"), lambda f: (f / "set").exists()),
        Case("add", nothing, lambda _: ("add", str(shared / "set"), *lake), _contents),
        Case("drop", copied(base), lambda f: ("drop", leaf(f), *lake), _contents),
        Case("gc", garbage, lambda _: gc, _contents_and_garbage),
        Case("report", copied(whole), lambda _: report, _files_of("report.html", sizes=False)),
        Case("create", copied(base), lambda _: create, _study),
        Case("close", copied(open_study), lambda _: ("study", "close", "pilot", "--unfinished", *lake), _contents),
    ]


def _base(folder: Path, recipe: Path) -> None:
    """What the cheap commands start from: an analysed lake, a shared set of it, and a lake with a study and an answer."""
    shutil.copytree(folder / "analyze" / "lake", folder / "base" / "lake")
    for name in ("set", "with-study"):
        (folder / name).mkdir()
    shutil.copytree(folder / "base" / "lake", folder / "with-study" / "lake")
    _run(folder / "base", ("share", str(folder / "set" / "set"), "--lake", "lake"))
    create = next(case for case in _cases(folder, recipe) if case.name == "create").arguments(folder)
    _run(folder / "with-study", create)
    _in_child(folder / "with-study", _answer_once)


def _answer_once(folder: Path) -> object:
    from saelake.analysis.meaning import annotation_study as studies
    from saelake.warehouse.lake import Lake

    lake = Lake.existing(folder / "lake")
    made = studies.load(lake, "pilot")
    studies.answer(lake, made, "ann", 0, [made.answers[0]])
    return None


_DURATIONS: dict[str, float] = {}
_EXPECTED: dict[str, object] = {}


def _undisturbed(folder: Path, case: Case) -> str:
    """Runs a command once, and keeps how long it took and what it made; what went wrong."""
    place = folder / case.name
    place.mkdir()
    case.prepare(place)
    started = time.monotonic()
    status, said = _run(place, case.arguments(place))
    _DURATIONS[case.name] = time.monotonic() - started
    if status != 0:
        return f"{case.name} undisturbed: {said}"
    _EXPECTED[case.name] = _in_child(place, case.outcome)
    return ""


def _kill(folder: Path, case: Case, number: int, chance: random.Random) -> tuple[bool, str]:
    """Kills a command once and gives it again; whether it was killed before it ended, and what went wrong."""
    place = folder / f"{case.name}-{number}"
    place.mkdir()
    case.prepare(place)
    child = _fork(place, case.arguments(place))
    time.sleep(chance.uniform(0, _DURATIONS[case.name]))
    os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    was_killed = os.WIFSIGNALED(status)
    what = f"kill {number}, {case.name}"
    if not case.is_over(place):
        status, said = _run(place, case.arguments(place))
        if status != 0:
            return was_killed, f"{what}: the same command again fails: {said}"
    found = _in_child(place, case.outcome)
    wrong = f"{what}: the lake is not the undisturbed one: {_difference(found, _EXPECTED[case.name])}"
    miss = "" if found == _EXPECTED[case.name] else wrong
    shutil.rmtree(place)
    return was_killed, miss


def _difference(found: object, expected: object) -> str:
    return f"{json.dumps(found)[:300]} instead of {json.dumps(expected)[:300]}"


def _import_all() -> None:
    import pyarrow.parquet  # noqa: F401
    import sae_lens  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    import saelake.analysis.report.page
    import saelake.analysis.verbs
    import saelake.commands.compute
    import saelake.commands.followup
    import saelake.ingest.shards
    import saelake.ingest.subject
    import saelake.warehouse.sharing.add
    import saelake.warehouse.sharing.share  # noqa: F401


def _fork(place: Path, arguments: Sequence[str]) -> int:
    """Starts a command in a folder, in a process group of its own; its words go to the file `said` there."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        with suppress(OSError):  # the child has done so, or is over
            os.setpgid(child, child)
        return child
    status = 70
    try:
        os.setpgid(0, 0)
        os.chdir(place)
        said = os.open("said", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        os.dup2(said, 1)
        os.dup2(said, 2)
        from saelake.cli import main

        main(args=list(arguments), prog_name="saelake")
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(place: Path, arguments: Sequence[str]) -> tuple[int, str]:
    """The exit code of a command, and its last line."""
    _, status = os.waitpid(_fork(place, arguments), 0)
    lines = (place / "said").read_text(errors="replace").strip().splitlines() or [""]
    return os.waitstatus_to_exitcode(status), lines[-1]


def _in_child(place: Path, ask: Callable[[Path], object]) -> object:
    """What a function says of a folder, asked in a child: no file of a lake is opened in the process that forks."""
    answers, answer = os.pipe()
    child = os.fork()
    if not child:
        try:
            with os.fdopen(answer, "w") as out:
                json.dump(ask(place), out)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(answer)
    with os.fdopen(answers) as said:
        text = said.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else "no answer"


def _contents(place: Path) -> object:
    """run_id -> content hash, what plain names show, what the catalog lists, and the damage; empty drafts and landings."""
    import duckdb

    from saelake.warehouse.check import check
    from saelake.warehouse.lake import Lake

    lake = Lake.existing(place / "lake")
    records = {r.run_id: r.content_hash for r in lake.records()}
    with duckdb.connect(lake.catalog, read_only=True) as con:
        listed = sorted(run_id for (run_id,) in con.execute("select run_id from all_runs.runs").fetchall())
    damage = [str(finding) for finding in check(lake) if not finding.note]
    current = sorted(f"{recipe}/{stage}: {run_ids}" for (recipe, stage), run_ids in lake.current().items())
    return [records, current, listed == sorted(records), lake.stale.exists(), damage]


def _contents_and_garbage(place: Path) -> object:
    return [_contents(place), sorted(p.relative_to(place).as_posix() for p in place.glob("lake/*/*"))]


def _files_of(name: str, sizes: bool = True) -> Callable[[Path], object]:
    """What lies at a name and beside it; a draft that is left is found."""

    def files(place: Path) -> object:
        from saelake.warehouse.durable import sha256_file

        paths = [p for p in sorted([*place.rglob(f"{name}/**/*"), place / name]) if p.is_file()]
        beside = sorted(p.name for p in place.iterdir() if p.name not in ("lake", "said"))
        return [beside, {p.relative_to(place).as_posix(): sha256_file(p) if sizes else p.stat().st_size > 0 for p in paths}]

    return files


def _study(place: Path) -> object:
    """The study that was drawn, without its secret links, and whether a draft is left beside it."""
    made = json.loads((place / "lake" / "studies" / "pilot" / "study.json").read_text())
    return [made | {"tokens": sorted(made["tokens"])}, _contents(place)]
