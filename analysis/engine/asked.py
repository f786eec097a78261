"""Edits as they are asked for from Python, and what they come to for one prompt.

Edits can be combined, but for two that hold the same feature at the same position. Features of one SAE that are held at the same
position are taken out of the same reading, whichever edits name them. At a site features come first, SAE by SAE, then directions
in their order.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saelake.analysis.engine.prompts import Prompt
from saelake.analysis.engine.requests import DirectionEdit, FeatureSet, Intervention
from saelake.ingest.saes.sae import Sae
from saelake.ingest.sites import Site
from saelake.ingest.subject import Subject
from saelake.ingest.tokenized import Tokenized
from saelake.warehouse import arguments
from saelake.warehouse.errors import UserError

Key = str | int | Site
"""Which SAE, or which site: an sae_id, a hook's name, a Site, or a layer."""
Positions = int | str | Iterable[int | str] | None
"""Positions of a prompt, from either end, and roles of tokens: bos, template, system, user, assistant; answer stands for all
generated tokens. None: all of these."""
ANSWER = "answer"


class _Asked:
    """What all edits share: an iterator in one is read here, once, since the edit may serve several prompts and calls."""

    def __post_init__(self) -> None:
        for name, given in vars(self).items():
            if isinstance(given, Iterator):
                object.__setattr__(self, name, list(given))


@dataclass(frozen=True, eq=False)
class Ablate(_Asked):
    """Takes features out: h' = h - sum of z_i d_i."""

    sae: Key
    ids: Sequence[int]
    positions: Positions = None
    answering: bool | None = None
    """Whether it stays on for generated tokens; None: if `positions` is not given, or names "answer"."""


@dataclass(frozen=True, eq=False)
class Clamp(_Asked):
    """Holds features at values, one for all or one each: h' = h + sum of (v_i - z_i) d_i."""

    sae: Key
    ids: Sequence[int]
    values: float | Sequence[float]
    positions: Positions = None
    answering: bool | None = None


@dataclass(frozen=True, eq=False)
class MeanAblate(_Asked):
    """Holds features at their mean activation over the tokens of some prompts, BOS left out."""

    sae: Key
    ids: Sequence[int]
    over: Sequence[Prompt]
    positions: Positions = None
    answering: bool | None = None


@dataclass(frozen=True, eq=False)
class Add(_Asked):
    """Adds a vector, not normalised, times a scale: h' = h + scale v."""

    site: Key
    vector: Any
    scale: float = 1.0
    positions: Positions = None
    answering: bool | None = None


@dataclass(frozen=True, eq=False)
class ProjectOut(_Asked):
    """Takes the part along a vector out: h' = h - (h.r) r with r = v / |v|. "all": of the residual stream after every block."""

    site: Key
    vector: Any
    positions: Positions = None
    answering: bool | None = None


Edit = Ablate | Clamp | MeanAblate | Add | ProjectOut
EDITS = (Ablate, Clamp, MeanAblate, Add, ProjectOut)


class SaeTable:
    """The SAEs of an engine by number, and which one a key means."""

    def __init__(self, saes: Mapping[int, Sae]) -> None:
        self.saes = dict(saes)
        ids = [sae.sae_id for sae in self.saes.values()]
        if twice := next((one for one in ids if ids.count(one) > 1), None):
            raise UserError(f"the SAE {twice} is given twice")

    def number(self, key: Key) -> int:
        """The number of the one SAE that a key means; raises UserError where it means none or several."""
        _check_key(key)
        found = [n for n, sae in self.saes.items() if sae.sae_id == key]
        if not found and isinstance(key, Site | str):
            site = key if isinstance(key, Site) else _site(key, self._names())
            found = [n for n, sae in self.saes.items() if sae.reads == site]
        elif not found and _is_int(key):
            found = [n for n, sae in self.saes.items() if sae.layer == key]
        if len(found) == 1:
            return found[0]
        if not found:
            raise UserError(f"there is no SAE {key!r}: the engine's are {self._names()}")
        several = ", ".join(self.saes[n].sae_id for n in found)
        raise UserError(f"{key!r} has several SAEs, {several}: name one by its sae_id")

    def site(self, key: Key, subject: Subject) -> Site:
        """The site that a key means: where an SAE writes; of a layer that of its SAEs, or resid_post."""
        _check_key(key)
        if isinstance(key, Site):
            return key
        if by_id := [sae.writes for sae in self.saes.values() if sae.sae_id == key]:
            return by_id[0]
        if not _is_int(key):
            return _site(str(key), self._names())
        found = {sae.writes for sae in self.saes.values() if sae.layer == key}
        if len(found) > 1:
            raise UserError(f"layer {key} has SAEs at several sites: name one of {', '.join(sorted(s.hook for s in found))}")
        return next(iter(found), Site(int(key)))

    def _names(self) -> str:
        return ", ".join(f"{sae.sae_id} ({sae.reads.hook})" for sae in self.saes.values()) or "none"


def _is_int(key: object) -> bool:
    return isinstance(key, int | np.integer) and not isinstance(key, bool)


def _check_key(key: object) -> None:
    if not isinstance(key, Site | str) and not _is_int(key):
        raise UserError(f"{arguments.shown(key)} names no SAE: give an sae_id, a hook, a Site or a layer")


def _site(name: str, known: str) -> Site:
    try:
        return Site.parse(name)
    except UserError as error:
        raise UserError(f"{name!r} is not an SAE of the engine ({known}), and no hook: {error}") from error


@dataclass(frozen=True)
class Where:
    """What positions come to for one prompt."""

    prompt: frozenset[int]
    answer: bool


def resolved(positions: Positions, answering: bool | None, prompt: Tokenized, place: int) -> Where:
    """The positions of one prompt; raises UserError for a position or a role that it does not have."""
    n = len(prompt.token_ids)
    if answering is not None:
        answering = arguments.switch("answering", answering)
    if positions is None:
        return Where(frozenset(range(n)), answering is not False)
    found: set[int] = set()
    on_answer = False
    for one in _each(positions):
        if isinstance(one, str):
            mine = {pos for pos, role in enumerate(prompt.roles) if role == one}
            if one == ANSWER:
                on_answer = True
            elif not mine:
                roles = ", ".join(dict.fromkeys((*prompt.roles, ANSWER)))
                raise UserError(f"positions: prompt {place} has no token of the role {one!r}; its roles are {roles}")
            found |= mine
        elif _is_int(one) and -n <= one < n:
            found.add(int(one) % n)
        else:
            has = f"it has {n} tokens, from 0 to {n - 1}"
            raise UserError(f"positions: prompt {place} has no position {arguments.shown(one)}: {has}")
    on_answer = on_answer if answering is None else answering
    if not found and not on_answer:
        raise UserError("positions and answering leave an edit no position: it would act nowhere")
    return Where(frozenset(found), on_answer)


def _each(positions: Any) -> Iterable[Any]:
    if hasattr(positions, "tolist"):
        positions = positions.tolist()
    return [positions] if _is_one(positions) else positions


def _is_one(value: Any) -> bool:
    """Whether this is one thing: texts and mappings are not read part by part either."""
    return isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable)


def features_of(edit: Edit, table: SaeTable, means: Mapping[int, np.ndarray]) -> FeatureSet:
    """What a feature edit holds; raises UserError for invalid ids and values.

    Args:
        means: id(edit) -> values, of the MeanAblates.
    """
    assert isinstance(edit, Ablate | Clamp | MeanAblate), "no feature edit"
    number = table.number(edit.sae)
    sae = table.saes[number]
    ids = feature_ids(edit.ids, sae)
    if len(np.unique(ids)) < len(ids):
        raise UserError(f"a feature of {sae.sae_id} is named twice in one edit")
    value: np.ndarray = np.zeros(len(ids))
    if isinstance(edit, Clamp):
        is_one = _is_one(edit.values) or getattr(edit.values, "shape", None) == ()
        values = [edit.values] if is_one else arguments.listed("values", edit.values, "a number, or one for each feature")
        if not is_one and isinstance(edit.ids, set | frozenset):
            raise UserError("features that are held at one value each are a list: a set has no order")
        if not is_one and len(values) != len(ids):
            raise UserError(f"{len(ids)} features of {sae.sae_id} are to be held at {len(values)} values: give one, or one each")
        held = [arguments.single(f"the value that a feature of {sae.sae_id} is to be held at", one) for one in values]
        value = np.broadcast_to(np.array(held), ids.shape)
    elif isinstance(edit, MeanAblate):
        value = means[id(edit)]
    if not np.isfinite(value).all():
        raise UserError(f"a feature of {sae.sae_id} is to be held at a value that is not a finite number")
    return FeatureSet.of(np.full(len(ids), number), ids, value.tolist())


def feature_ids(given: Any, sae: Sae) -> np.ndarray:
    """Features of an SAE, (k,) int64; raises UserError for anything but a list of numbers, and for features it does not have."""
    given = given.tolist() if hasattr(given, "tolist") else given
    listed = None if _is_one(given) else list(given)
    if listed is None or not all(map(_is_int, listed)):
        raise UserError(f"the features of {sae.sae_id} are a list of numbers, not {arguments.shown(given)}")
    if outside := [one for one in listed if not 0 <= one < sae.width]:
        raise UserError(f"{sae.sae_id} has no feature {outside[0]}: its features are 0 to {sae.width - 1}")
    return np.array(listed, dtype=np.int64)


def direction_of(edit: Edit, table: SaeTable, subject: Subject) -> DirectionEdit:
    """What an edit by a vector does; raises UserError for a vector that does not fit its site, or has no direction."""
    assert isinstance(edit, Add | ProjectOut), "no edit by a vector"
    everywhere = isinstance(edit, ProjectOut) and isinstance(edit.site, str) and edit.site == "all"
    sites = tuple(map(Site, range(subject.n_layers))) if everywhere else (table.site(edit.site, subject),)
    given = edit.vector
    if hasattr(given, "detach"):
        dense = given.detach().to_dense().cpu()
        given = (dense.double() if dense.is_floating_point() else dense).numpy()
    vector = arguments.array(given, "iuf")
    if vector is None:
        raise UserError(f"a vector is an array of numbers, not {arguments.shown(edit.vector)}")
    vector = vector.astype(np.float64)
    for site in sites:
        subject.sites.check(site, write=True)
        if vector.shape != (subject.width(site),):
            raise UserError(f"a vector of shape {vector.shape} does not fit {site}, which is {subject.width(site)} wide")
    if not np.isfinite(vector).all():
        raise UserError("a vector has entries that are not finite numbers")
    largest = float(np.abs(vector).max(initial=0))
    if isinstance(edit, Add):
        arguments.single("the largest entry of a vector", largest)
        scale = arguments.single("the scale of a vector", edit.scale)
        arguments.single("the largest entry of a vector, times its scale,", scale * largest)
        return DirectionEdit(vector.astype(np.float32), sites, project_out=False, add=scale)
    if largest == 0:
        raise UserError("a vector of zeros has no direction to project out")
    vector /= largest  # the norm of numbers near the ends of float64 would be 0, or none
    return DirectionEdit((vector / np.linalg.norm(vector)).astype(np.float32), sites)


def interventions(
    edits: Sequence[tuple[Edit, FeatureSet | DirectionEdit]], prompt: Tokenized, place: int
) -> tuple[Intervention, ...]:
    """What edits do to one prompt: held features, once for all positions that hold the same, then directions."""
    n = len(prompt.token_ids)
    held = [(edit, what, resolved(edit.positions, edit.answering, prompt, place)) for edit, what in edits]
    features = [(what, where) for _, what, where in held if isinstance(what, FeatureSet) and len(what)]
    alike: dict[tuple[int, ...], list[int]] = {}
    for pos in [*range(n), n]:  # n stands for the answer
        acting = tuple(i for i, (_, where) in enumerate(features) if (where.answer if pos == n else pos in where.prompt))
        alike.setdefault(acting, []).append(pos)
    found = [_held(_joined([features[i][0] for i in acting]), positions, n) for acting, positions in alike.items() if acting]
    for _, what, where in held:
        if isinstance(what, DirectionEdit):
            found.append(Intervention(direction=what, positions=_positions(where.prompt, n), answering=where.answer))
    return tuple(found)


def _held(features: FeatureSet, positions: Sequence[int], n: int) -> Intervention:
    return Intervention(features, None, _positions([pos for pos in positions if pos < n], n), n in positions)


def _positions(found: Iterable[int], n: int) -> tuple[int, ...] | None:
    positions = tuple(sorted(found))
    return None if len(positions) == n else positions


def _joined(sets: Sequence[FeatureSet]) -> FeatureSet:
    if len(sets) == 1:
        return sets[0]
    rows = np.concatenate([one.rows for one in sets])
    if len(np.unique(rows[["sae", "feature_id"]])) < len(rows):
        raise UserError("two edits hold the same feature at the same position")
    return FeatureSet.of(rows["sae"].astype(np.int64), rows["feature_id"].astype(np.int64), rows["value"].tolist())
