"""Edits as a person writes them into the explorer, one per line, and what they are in Python and on the command line.

    ablate 5:177, 4:256            features, as the explorer names them
    clamp 5:177 = 3.5
    add 4:256 * 10                 a decoder row; or a direction of the study: add direction 3 * 8, add chosen * 8
    project out chosen             after every block; or project out direction 3, project out 4:256

Each may end in `at POSITIONS`, as of `saelake ablate --positions`: at -1, at user,template.
"""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from saelake.analysis.engine.asked import Ablate, Add, Clamp, Edit, ProjectOut
from saelake.analysis.search.edit_sets import read_positions
from saelake.warehouse.errors import UserError
from saelake.warehouse.literals import literal

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
FEATURE = r"[\w.-]+:\d+"
VECTOR = rf"{FEATURE}|chosen|direction \d+"
PLACES = r"(?: at (?P<places>[\w, -]+))?"
FORMS = {
    "ablate": re.compile(rf"ablate (?P<what>{FEATURE}(?: ?, ?{FEATURE})*){PLACES}"),
    "clamp": re.compile(rf"clamp (?P<what>{FEATURE}) ?= ?(?P<number>{NUMBER}){PLACES}"),
    "add": re.compile(rf"add (?P<what>{VECTOR})(?: ?\* ?(?P<number>{NUMBER}))?{PLACES}"),
    "project": re.compile(rf"project out (?P<what>{VECTOR}){PLACES}"),
}
FORM = "write it as `ablate 5:177`, `clamp 5:177 = 3.5`, `add 5:177 * 10`, `add chosen * 8` or `project out chosen`"
MOST_LINES = 50


@dataclass(frozen=True)
class Line:
    """One edit that a person wrote."""

    verb: str
    """ablate, clamp, add or project"""
    what: tuple[str, ...]
    """features, as SAE:ID; or one of chosen and direction N"""
    number: float | None
    """what is held at, or the scale of what is added"""
    places: str | None
    """positions, as read_positions takes them"""

    @property
    def features(self) -> list[tuple[str, int]]:
        """(layer or sae_id, feature_id) of those that are named"""
        pairs = [one.rpartition(":")[::2] for one in self.what if ":" in one]
        return [(sae, int(feature_id)) for sae, feature_id in pairs]


@dataclass(frozen=True)
class Vectors:
    """Where the vectors come from that lines name: both raise UserError for what is not there."""

    row: Callable[[str | int, int], np.ndarray]
    """the decoder row of a feature of an SAE"""
    direction: Callable[[int | None], tuple[int, np.ndarray]]
    """the study's direction of a layer, or the chosen one: its layer, and the vector"""


def read_lines(text: str) -> list[Line]:
    """What a person wrote; raises UserError for a line that is not an edit. Empty lines and comments (#) say nothing."""
    written = [" ".join(line.split()) for line in text.splitlines()]
    lines = [line for line in written if line and not line.startswith("#")]
    if len(lines) > MOST_LINES:
        raise UserError(f"there are {len(lines)} edits: give at most {MOST_LINES}")
    return [_read(line) for line in lines]


def _read(text: str) -> Line:
    for verb, form in FORMS.items():
        if told := form.fullmatch(text):
            groups = told.groupdict()
            what = tuple(part.strip() for part in groups["what"].split(","))
            places = groups["places"] and groups["places"].replace(" ", "")
            read_positions(places)
            number = groups.get("number")
            return Line(verb, what, None if number is None else float(number), places)
    raise UserError(f"{text[:60]!r} is not an edit: {FORM}")


def edits_of(lines: Sequence[Line], vectors: Vectors) -> list[Edit]:
    """The edits of the library."""
    return [edit for line in lines for edit in _edits(line, vectors)]


def _edits(line: Line, vectors: Vectors) -> list[Edit]:
    where = read_positions(line.places)
    if line.verb == "ablate":
        return [Ablate(_key(sae), ids, where) for sae, ids in _by_sae(line).items()]
    if line.verb == "clamp":
        ((sae, feature_id),) = line.features
        return [Clamp(_key(sae), [feature_id], line.number or 0.0, where)]
    if line.features:
        ((sae, feature_id),) = line.features
        site, vector = _key(sae), vectors.row(_key(sae), feature_id)
    else:
        layer = None if line.what[0] == "chosen" else int(line.what[0].split()[1])
        site, vector = vectors.direction(layer)
    if line.verb == "add":
        return [Add(site, vector, 1.0 if line.number is None else line.number, where)]
    return [ProjectOut("all" if line.what[0] == "chosen" else site, vector, where)]


def _by_sae(line: Line) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for sae, feature_id in line.features:
        found.setdefault(sae, []).append(feature_id)
    return found


def _key(sae: str) -> str | int:
    return int(sae) if sae.isdecimal() else sae


def in_python(lines: Sequence[Line], prompt: str, max_new_tokens: int) -> str:
    """The line of Python that answers so, with an `engine` of saelake and vectors by their names."""
    parts = [part for line in lines for part in _in_python(line)]
    edits = f", edits=[{', '.join(parts)}]" if parts else ""
    return f"engine.answer([{prompt!r}], max_new_tokens={max_new_tokens}{edits})"


def _in_python(line: Line) -> list[str]:
    where = read_positions(line.places)
    positions = "" if where is None else f", positions={where!r}"
    if line.verb == "ablate":
        return [f"saelake.Ablate({_key(sae)!r}, {ids}{positions})" for sae, ids in _by_sae(line).items()]
    if line.verb == "clamp":
        ((sae, feature_id),) = line.features
        return [f"saelake.Clamp({_key(sae)!r}, [{feature_id}], {line.number}{positions})"]
    if line.features:
        ((sae, feature_id),) = line.features
        site, vector = repr(_key(sae)), f"decoder_row({_key(sae)!r}, {feature_id})"
    elif line.what[0] == "chosen":
        site, vector = "'all'" if line.verb == "project" else "chosen_layer", "chosen"
    else:
        site, vector = line.what[0].split()[1], f"direction[{line.what[0].split()[1]}]"
    if line.verb == "add":
        return [f"saelake.Add({site}, {vector}, {1.0 if line.number is None else line.number}{positions})"]
    return [f"saelake.ProjectOut({site}, {vector}{positions})"]


def check_kept(lines: Sequence[Line]) -> None:
    """Raises UserError for edits that `saelake ablate` does not have: a run of theirs holds features."""
    if not lines:
        raise UserError("there is no edit to keep as a run")
    if any(line.verb not in ("ablate", "clamp") for line in lines):
        raise UserError("only features that are ablated or clamped can be kept here: `saelake steer` makes runs of vectors")


def selected(lines: Sequence[Line]) -> str:
    """What `saelake ablate --features` takes: a list where features are ablated everywhere, else a select of rows."""
    check_kept(lines)
    if all(line.verb == "ablate" and line.places is None for line in lines):
        return ",".join(f"{sae}:{feature_id}" for line in lines for sae, feature_id in line.features)
    is_layer = all(sae.isdecimal() for line in lines for sae, _ in line.features)
    rows = [
        f"({sae if is_layer else literal(sae)}, {feature_id}, {line.number or 0.0}, {_literal(line.places)})"
        for line in lines
        for sae, feature_id in line.features
    ]
    return f"select * from (values {', '.join(rows)}) as edits(sae, feature, value, positions)"


def _literal(places: str | None) -> str:
    return "null::varchar" if places is None else literal(places)


def in_shell(lines: Sequence[Line], recipe: str, condition: str) -> str:
    """The command that keeps the edits as a run, over the prompts of the recipe's analysis."""
    return f"saelake ablate {shlex.quote(recipe)} --features {shlex.quote(selected(lines))} --condition {shlex.quote(condition)}"
