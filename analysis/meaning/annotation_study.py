"""An annotation study (R19): features drawn blind and shuffled, people's answers durable at once, a run when it is closed.

lake/studies/<name>/
  study.json     which features, in which order, and the secret of each annotator's link
  answers.jsonl  the append log of answers

An answer to a feature replaces that person's answer before; one that is withdrawn is gone.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from saelake import queries
from saelake.analysis.meaning.explanations import current_runs
from saelake.ingest.runs import STAGES
from saelake.warehouse.append_log import AppendLog, Entry
from saelake.warehouse.catalog import connect
from saelake.warehouse.durable import canonical_json, folder_atomic, make_private, open_regular, sha256_text, utc_now
from saelake.warehouse.errors import UserError, one_line, storage_errors
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunRecord, RunSpec
from saelake.warehouse.runs import Plan, Rows, ensure_run
from saelake.warehouse.schema import ANNOTATIONS

CODE_VERSION = 1
NONE = "None"
"""The answer that no category fits."""
LARGEST = 2**24
"""Bytes of an annotation study's file: one of a thousand features takes a hundredth."""
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
ANNOTATOR = re.compile(r"[\w .@-]{1,60}")


@dataclass(frozen=True)
class Item:
    """One feature of an annotation study."""

    stratum: str
    """critical, random or silent: never shown to annotators"""
    n_categories: int
    sae_id: str
    layer: int
    feature_id: int


@dataclass(frozen=True)
class Sampling:
    """What an annotation study draws: the paper's numbers by default."""

    population: str = "stage3"
    mapping: str = "literal"
    per_group: int = 10
    n_random: int = 23
    n_silent: int = 7
    seed: int = 0


@dataclass(frozen=True)
class AnnotationStudy:
    """An annotation study that was created; its answers are in its log."""

    name: str
    recipe: str
    parents: tuple[str, ...]
    """The runs of prompts, activations and taxonomy, which it is about, and of the populations that it was drawn from."""
    sampling: Sampling
    categories: tuple[str, ...]
    items: tuple[Item, ...]
    tokens: Mapping[str, str]
    """annotator -> the secret in their link"""

    @property
    def answers(self) -> tuple[str, ...]:
        """What can be chosen: every category, or None alone."""
        return (*self.categories, NONE)

    def order(self, annotator: str) -> list[int]:
        """The items in the order in which one person sees them, shuffled by the annotation study's seed and their name."""
        return sorted(range(len(self.items)), key=lambda i: sha256_text(f"{self.sampling.seed}/{annotator}/{i}"))

    def annotator(self, token: str) -> str | None:
        """Whose link it is."""
        # every token is compared, in constant time, so that the time shows nothing about a guess
        found = [name for name, own in self.tokens.items() if secrets.compare_digest(own.encode(), token.encode())]
        return found[0] if found else None


@dataclass(frozen=True)
class State:
    """What the log says so far."""

    answers: Mapping[str, Mapping[int, tuple[str, ...]]]
    """annotator -> item -> what was chosen"""
    latest: Mapping[str, Sequence[int]]
    """annotator -> items with an answer, the latest last"""
    is_closed: bool


def create(lake: Lake, recipe: str, name: str, annotators: Sequence[str], sampling: Sampling) -> AnnotationStudy:
    """Draws an annotation study's features and writes it into the lake; asked again, as after a kill, it finds it.

    Raises UserError for a name that another annotation study has, and for no features.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} is not a name for an annotation study: use lower-case letters, digits and _, a letter first")
    if wrong := [one for one in annotators if not ANNOTATOR.fullmatch(one) or annotators.count(one) > 1]:
        raise UserError(f"{wrong[0]!r} is not a name for one annotator: use letters, digits, space and . @ - _, each name once")
    if not annotators:
        raise UserError("an annotation study needs at least one annotator: give --annotator NAME")
    computed = [run_id for stage in ("taxonomy", "populations") for run_id in current_runs(lake, recipe, stage)]
    ingested = [run_id for stage in STAGES for run_id in lake.current().get((recipe, stage), ())]
    parents = (*ingested, *computed)
    if _folder(lake, name).exists():
        there = load(lake, name)
        if (there.recipe, there.parents, there.sampling, [*there.tokens]) == (recipe, parents, sampling, [*annotators]):
            return there
        raise UserError(f"the lake {lake} has another annotation study {name} already: give the new one another name")
    with connect(lake, recipe, alone=True) as con:
        drawn = queries.run(con, "study_sample", **asdict(sampling)).fetchall()
        categories = [category for (category,) in con.execute("select distinct category from taxonomy order by all").fetchall()]
    items = tuple(Item(*row[1:]) for row in drawn)
    if not any(item.stratum == "critical" for item in items):
        raise UserError(
            f"no feature of {sampling.population} in {recipe} fires on a labelled prompt: choose another --population"
        )
    tokens = {one: secrets.token_urlsafe(16) for one in annotators}
    study = AnnotationStudy(name, recipe, parents, sampling, tuple(categories), items, tokens)
    with storage_errors(lake), folder_atomic(_folder(lake, name), is_same=False) as draft:
        file = draft / "study.json"
        make_private(file)  # it holds the links
        file.write_text(json.dumps(asdict(study), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return study


def load(lake: Lake, name: str) -> AnnotationStudy:
    """An annotation study of the lake; raises UserError if there is none, or its file is damaged."""
    folders = sorted(p.name for p in (lake.root / "studies").glob("[!.]*"))
    if name not in folders:
        raise UserError(f"the lake {lake} has no annotation study {name!r}; it has {', '.join(folders) or 'none yet'}")
    file = _folder(lake, name) / "study.json"
    try:
        with open_regular(file) as stream:
            content = stream.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST:,} bytes")
        fields = json.loads(content)
        sampling, items = Sampling(**fields.pop("sampling")), tuple(Item(**item) for item in fields.pop("items"))
        parents, categories = tuple(fields.pop("parents")), tuple(fields.pop("categories"))
        return AnnotationStudy(**fields, parents=parents, sampling=sampling, categories=categories, items=items)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({one_line(error)}): restore it from a copy") from error


def state(lake: Lake, study: AnnotationStudy) -> State:
    """Everybody's answers so far."""
    return _state(study, _log(lake, study).entries())


def _state(study: AnnotationStudy, entries: Sequence[Entry]) -> State:
    answers: dict[str, dict[int, tuple[str, ...]]] = {annotator: {} for annotator in study.tokens}
    for entry in entries:
        if "annotator" not in entry:
            continue
        mine = answers[entry["annotator"]]
        mine.pop(entry["item"], None)  # an answer that replaces another is the latest
        if "chosen" in entry:
            mine[entry["item"]] = tuple(entry["chosen"])
    return State(answers, {one: list(mine) for one, mine in answers.items()}, any("closed" in entry for entry in entries))


def answer(lake: Lake, study: AnnotationStudy, annotator: str, item: int, chosen: Sequence[str]) -> None:
    """Stores one answer, durably. Raises UserError for an answer that is none, or a closed annotation study."""
    if not chosen or set(chosen) - set(study.answers):
        raise UserError(f"choose at least one of {', '.join(study.answers)}")
    if NONE in chosen and len(set(chosen)) > 1:
        raise UserError(f"choose either {NONE} or categories, not both")
    ordered = [one for one in study.answers if one in chosen]
    _append(lake, study, {"annotator": annotator, "item": item, "chosen": ordered})


def withdraw(lake: Lake, study: AnnotationStudy, annotator: str) -> int | None:
    """Takes back a person's latest answer, durably; returns its item, or None if there is none. Raises UserError if closed."""
    latest = state(lake, study).latest[annotator]
    if not latest:
        return None
    _append(lake, study, {"annotator": annotator, "item": latest[-1]})
    return latest[-1]


def _append(lake: Lake, study: AnnotationStudy, entry: Entry) -> None:
    def timed(entries: Sequence[Entry]) -> Entry:
        if any("closed" in one for one in entries):
            raise UserError(f"the annotation study {study.name} is closed: it takes no answers any more")
        return {**entry, "at": utc_now()}

    with storage_errors(lake):
        _log(lake, study).append(timed)


def close(lake: Lake, study: AnnotationStudy, *, unfinished: bool = False) -> RunRecord:
    """Publishes the answers as a run; from then on the annotation study takes none. Closing again finds the run.

    Raises UserError where answers are missing, unless `unfinished`, and where there are none at all.
    """
    now = state(lake, study)
    missing = {one: len(study.items) - len(now.answers[one]) for one in study.tokens}
    if not any(now.answers.values()):
        raise UserError(f"the annotation study {study.name} has no answers yet: `saelake annotate {study.name}` gives the links")
    if not now.is_closed and not unfinished and any(missing.values()):
        listed = ", ".join(f"{one} {n}" for one, n in missing.items() if n)
        raise UserError(f"answers are missing ({listed}): wait for them, or close with --unfinished")
    if not now.is_closed:
        _append(lake, study, {"closed": True})
    final = state(lake, study).answers
    parents, items = study.parents, [asdict(item) for item in study.items]
    content = {"code": CODE_VERSION, "study": study.name, "sampling": asdict(study.sampling)}
    content["items"] = sha256_text(canonical_json(items))
    content["answers"] = sha256_text(canonical_json({one: sorted(mine.items()) for one, mine in final.items()}))
    spec = RunSpec(stage(study.name), study.recipe, content, parents, study.sampling.seed)
    return ensure_run(lake, spec, Plan.of([_rows(study, final)], [ANNOTATIONS.name]))


def stage(name: str) -> str:
    """The stage of an annotation study's run: each has its own, so that closing one does not hide another."""
    return f"study_{name}"


def _rows(study: AnnotationStudy, answers: Mapping[str, Mapping[int, tuple[str, ...]]]) -> Rows:
    rows = [
        (annotator, number, category, category in chosen)
        for annotator, mine in answers.items()
        for number, chosen in mine.items()
        for category in study.answers
    ]
    items = [study.items[number] for _, number, _, _ in rows]
    columns: dict[str, list[object]] = {
        name: [row[i] for row in rows] for i, name in enumerate(("annotator", "item", "category", "chosen"))
    }
    columns |= {name: [getattr(item, name) for item in items] for name in ("stratum", "sae_id", "layer", "feature_id")}
    columns["study"] = [study.name] * len(rows)
    return Rows.of(ANNOTATIONS, columns)


def _folder(lake: Lake, name: str) -> Path:
    return lake.root / "studies" / name


def _log(lake: Lake, study: AnnotationStudy) -> AppendLog:
    return AppendLog(_folder(lake, study.name) / "answers.jsonl", lake.lock(f"study_{study.name}.answers"))
