"""Edits as calls of an engine are given them: by name for all prompts, and as lists, one for all prompts or one for each."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saelake.analysis.engine.asked import EDITS, Ablate, Add, Clamp, Edit, Key, Positions, ProjectOut
from saelake.warehouse import arguments
from saelake.warehouse.errors import UserError


def named_edits(
    ablate: Mapping[Key, Sequence[int]] | None,
    clamp: Mapping[Key, Mapping[int, float]] | None,
    add: Mapping[Key, Any] | None,
    project_out: Any,
    positions: Positions,
    answering: bool | None,
) -> list[Edit]:
    """The edits that are given by name; raises UserError for what is not of the form of one, and for positions of none."""
    # A generator would be used up by the first edit.
    several = list(positions) if isinstance(positions, Iterator) else positions
    where: dict[str, Any] = {"positions": several, "answering": answering}
    found: list[Edit] = [Ablate(key, ids, **where) for key, ids in arguments.mapping("ablate", ablate, "{key: features}").items()]
    for key, given in arguments.mapping("clamp", clamp, "{key: {feature: value}}").items():
        held = arguments.mapping(f"clamp of {arguments.shown(key)}", given, "{feature: value}")
        found.append(Clamp(key, list(held), list(held.values()), **where))
    for key, given in arguments.mapping("add", add, "{key: (vector, scale)}").items():
        if isinstance(given, tuple) and len(given) != 2:
            raise UserError(f"add of {arguments.shown(key)} is {arguments.shown(given)}: give (vector, scale)")
        vector, scale = given if isinstance(given, tuple) else (given, 1.0)
        found.append(Add(key, vector, scale, **where))
    if project_out is not None:
        pairs = project_out.items() if isinstance(project_out, Mapping) else [("all", project_out)]
        found += [ProjectOut(key, vector, **where) for key, vector in pairs]
    if not found and (positions is not None or answering is not None):
        raise UserError("positions and answering are of the edits given by name, and none is given")
    return found


def edits_by_prompt(edits: Sequence[Any], n: int) -> list[tuple[Edit, ...]]:
    """One tuple of edits for each of n prompts; raises UserError for other numbers of lists, and for what is not an edit."""
    edits = arguments.listed("edits", () if edits is None else edits, "a list of edits, or one list per prompt")
    if all(isinstance(edit, EDITS) for edit in edits):
        return [tuple(edits)] * n
    if any(isinstance(edit, EDITS) for edit in edits):
        raise UserError("edits mixes edits and lists of edits: give one list for all prompts, or one list per prompt")
    if len(edits) != n:
        raise UserError(f"edits has {len(edits)} lists for {n} prompts")
    by_prompt = [tuple(arguments.listed("a prompt's edits", some, "a list of edits")) for some in edits]
    if not all(isinstance(edit, EDITS) for some in by_prompt for edit in some):
        raise UserError(f"edits are {', '.join(kind.__name__ for kind in EDITS)}")
    return by_prompt
