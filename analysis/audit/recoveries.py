"""The recovery audit: holds sets that flip prompts ablated, and searches for a small change that brings the behaviour back.

Did ablating the set remove the cause, or one route to it? What is found is answered by the engine, with the set held at every
token and the change at the prompt's last ones, and read by the oracle. Beside the sets stand as many random active features,
prompts that never show the behaviour, unmodified and under the sets of others, and changes by chance of the same length.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, groupby
from typing import NamedTuple

import duckdb
import numpy as np
import torch

from saelake import queries
from saelake.analysis.audit.search import Found, Row, Searched
from saelake.analysis.engine.memory import Batches, Size
from saelake.analysis.engine.requests import NO_FEATURES, DirectionEdit, FeatureSet, Intervention, Request
from saelake.analysis.engine.slices import SliceCache
from saelake.analysis.search.answers import Shown, shown
from saelake.analysis.search.critical import refused_prompts
from saelake.analysis.search.directions import stored_direction
from saelake.analysis.stage import Stage, Work, searched_split
from saelake.analysis.study_context import StudyContext
from saelake.ingest.runs import prompt_shards
from saelake.ingest.saes.sae import Sae
from saelake.ingest.sites import Site
from saelake.ingest.study import Study
from saelake.warehouse.errors import UserError
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import RECOVERIES
from saelake.warehouse.schema.audit import KINDS


class Set(NamedTuple):
    """What is held ablated, and where it comes from."""

    source: str
    control: str | None
    set_id: int | None
    held: FeatureSet


NOTHING = Set("none", None, None, NO_FEATURES)
SHARD_PROMPTS = 16
"""That a shard takes at most: each costs thousands of passes."""
Prompted = tuple[int, Set]
"""A prompt's number, and what is held on it."""


def _shards(study: Study) -> dict[str, Sequence[int]]:
    recipe = study.recipe
    return prompt_shards(study.prompts_of(recipe.candidates.split), min(recipe.capture.shard_prompts, SHARD_PROMPTS))


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context, shards = work.context, _shards(work.context.study)
    with work.sql() as con:
        asked = _asked(work, con)
        chosen = stored_direction(con)
    direction = None if chosen is None else chosen[1].astype(np.float64)
    saes = _changed(context)
    slices = {n: SliceCache(sae, context.subject.device) for n, sae in context.saes.items()}
    for name in missing:
        mine = [(prompt, one) for prompt in shards[name] for one in asked.get(prompt, ())]
        before = shown(context, [Request(prompt, one.held) for prompt, one in mine])
        rows = [rows for number in saes for rows in _of_site(work, mine, before, number, slices, direction)]
        yield name, rows


def _changed(context: StudyContext) -> list[int]:
    """Numbers of the SAEs at whose sites changes are made; raises UserError where none can be."""
    recipe = context.recipe
    layers = set(recipe.audit.layers or recipe.sae_layers) - (
        set() if recipe.audit.layers else set(recipe.candidates.exclude_layers)
    )
    found = [n for n, sae in context.saes.items() if sae.layer in layers and sae.reads == sae.writes]
    if not found:
        raise UserError(
            "audit.layers names no layer with an SAE that writes where it reads, so that no site can be changed there"
        )
    return found


def _asked(work: Work, con: duckdb.DuckDBPyConnection) -> dict[int, list[Set]]:
    """Prompt -> what is held on it, one after another: target prompts their own sets, control prompts those of one of them."""
    context, recipe = work.context, work.context.recipe
    refused = refused_prompts(work, con)
    rows = queries.run(
        con,
        "audit_sets",
        judge=recipe.verdicts.oracle,
        direction=recipe.minimal.direction,
        prompts=[int(context.prompt_ids[prompt]) for prompt in refused],
    ).fetchall()
    sets: dict[int, list[Set]] = {}
    for (prompt_id, source, control, set_id), features in groupby(rows, key=lambda row: row[:4]):
        _, _, _, _, sae_ids, ids = zip(*features, strict=True)
        held = FeatureSet.of(context.sae_numbers(sae_ids), np.array(ids))
        sets.setdefault(context.number_of[prompt_id], []).append(Set(source, control, set_id, held))
    audited = [prompt for prompt in refused if prompt in sets][: recipe.audit.prompts or None]
    asked = {prompt: [NOTHING, *sets[prompt]] for prompt in audited}
    controls = context.study.prompts_of(recipe.candidates.split, "control")[: recipe.audit.controls]
    for prompt, donor in zip(controls, cycle(audited), strict=False):
        asked[prompt] = [NOTHING, *sets[donor]]
    return asked


def _of_site(
    work: Work,
    asked: Sequence[Prompted],
    before: Shown,
    number: int,
    slices: Mapping[int, SliceCache],
    direction: np.ndarray | None,
) -> Iterator[Rows]:
    """Rows of the changes at the site of one SAE."""
    context, settings = work.context, work.context.recipe.audit
    sae, tokens = context.saes[number], context.token_ids
    # One search for what several sources have found, and none where nothing is to be brought back.
    places: dict[tuple[int, int], list[int]] = {}
    for place, (prompt, one) in enumerate(asked):
        places.setdefault((prompt, one.held.key), []).append(place)
    there = [same for same in places.values() if before.shown[same[0]]]
    if there:
        yield _rows_of_shown(context, [asked[place] for same in there for place in same], before, there, sae)

    on_processor = context.subject.device.type == "cpu"

    def alike(same: Sequence[int]) -> tuple[int, int]:
        """How many tokens are changed, and about how large the set is: rows of a batch read as much as its largest set.

        A GPU waits for its host at every pass, so that few full batches are faster there.
        """
        prompt, one = asked[same[0]]
        return min(settings.last_tokens, len(tokens[prompt]) - 1), len(one.held).bit_length() if on_processor else 0

    gone = sorted(
        (same for same in places.values() if not before.shown[same[0]]),
        key=lambda same: (alike(same), len(tokens[asked[same[0]][0]])),
    )
    for (n, _), group in groupby(gone, key=alike):
        members = list(group)
        firsts = [asked[same[0]] for same in members]
        sizes = [Size(len(tokens[prompt]), 0, len(one.held), max(one.held.widest, 1)) for prompt, one in firsts]

        def search(part: slice, n: int = n, firsts: Sequence[Prompted] = firsts) -> list[Found]:
            rows = [
                Row(tokens[prompt], one.held, (work.spec.seed, int(context.places[prompt]), number, one.held.key))
                for prompt, one in firsts[part]
            ]
            return Searched(context.subject, context.saes, slices, sae, rows, n, settings).found()

        for part, found in Batches(context.subject).run(sizes, search):
            yield _rows(context, asked, before, members[part], found, sae, n, direction)


def _rows_of_shown(
    context: StudyContext, asked: Sequence[Prompted], before: Shown, there: Sequence[Sequence[int]], sae: Sae
) -> Rows:
    """Rows of prompts that show the behaviour though a set is held: nothing is searched."""
    settings = context.recipe.audit
    p_before = [float(before.p_target[place]) for same in there for place in same]
    rows = [
        (prompt, one, kind, budget, p)
        for (prompt, one), p in zip(asked, p_before, strict=True)
        for kind in KINDS
        for budget in settings.budgets
    ]
    n = len(rows)
    nothing: list[None] = [None] * n
    return Rows.of(
        RECOVERIES,
        {
            **_named(context, [(prompt, one) for prompt, one, *_ in rows], sae),
            "kind": [kind for _, _, kind, *_ in rows],
            "budget": [budget for *_, budget, _ in rows],
            "shown_before": [True] * n,
            "shown": [True] * n,
            "p_before": [p for *_, p in rows],
            "p_target": [p for *_, p in rows],
            "norm": [0.0] * n,
            "n_evaluations": [0] * n,
            **dict.fromkeys(("drift", "cosine", "in_features", "in_error", "pos", "at_pos"), nothing),
        },
    )


def _named(context: StudyContext, rows: Sequence[Prompted], sae: Sae) -> dict[str, object]:
    """The columns that say whose row it is."""
    return {
        "prompt_id": [int(context.prompt_ids[prompt]) for prompt, _ in rows],
        "source": [one.source for _, one in rows],
        "control": [one.control for _, one in rows],
        "set_id": [one.set_id for _, one in rows],
        "sae_id": [sae.sae_id] * len(rows),
        "layer": [sae.layer] * len(rows),
    }


def _rows(
    context: StudyContext,
    asked: Sequence[Prompted],
    before: Shown,
    members: Sequence[Sequence[int]],
    found: Sequence[Found],
    sae: Sae,
    n: int,
    direction: np.ndarray | None,
) -> Rows:
    """Rows of what a batch has found, answered by the engine."""
    requests: dict[tuple[int, bytes], Request] = {}
    of_row: list[Request] = []
    for one in found:
        for row, same in enumerate(members):
            change_td = one.change_btd[row].numpy()
            key = (row, change_td.tobytes())  # what stands for several budgets is answered once
            prompt, what = asked[same[0]]
            requests.setdefault(key, changed(prompt, what.held, sae, change_td, len(context.token_ids[prompt]) - n))
            of_row.append(requests[key])
    after = shown(context, of_row)
    columns: dict[str, list[object]] = {}
    places: list[Prompted] = []
    for at, one in enumerate(found):
        size_bt = one.change_btd.norm(dim=-1)
        pos_b, whole_b = size_bt.argmax(-1), size_bt.square().sum(-1)
        for row, same in enumerate(members):
            answered, is_changed, t = at * len(members) + row, bool(whole_b[row] > 0), int(pos_b[row])
            values = {
                "kind": one.kind,
                "budget": one.budget,
                "shown_before": False,
                "shown": bool(after.shown[answered]),
                "p_target": float(after.p_target[answered]),
                "norm": float(one.norm_b[row]),
                "drift": None if one.drift_b[row].isnan() else float(one.drift_b[row]),
                "cosine": _cosine(sae.reads, one.change_btd[row, t], direction) if is_changed else None,
                "in_features": float(one.in_features_b[row]) if is_changed else None,
                "in_error": float(one.in_error_b[row]) if is_changed else None,
                "at_pos": float(size_bt[row, t] ** 2 / whole_b[row]) if is_changed else None,
                "n_evaluations": int(one.n_evaluations_b[row]),
            }
            for place in same:
                prompt = asked[place][0]
                places.append(asked[place])
                pos = len(context.token_ids[prompt]) - n + t if is_changed else None
                own = {"p_before": float(before.p_target[place]), "pos": pos}
                for name, value in {**values, **own}.items():
                    columns.setdefault(name, []).append(value)
    return Rows.of(RECOVERIES, {**_named(context, places, sae), **columns})


def changed(prompt: int, held: FeatureSet, sae: Sae, change_td: np.ndarray, first: int) -> Request:
    """A set held at every token, and behind it, at the site of an SAE, a change of the tokens from `first` on."""
    edits = [
        Intervention(
            direction=DirectionEdit(row, (sae.reads,), project_out=False, add=1.0),
            positions=(first + t,),
            answering=False,
        )
        for t, row in enumerate(change_td)
        if row.any()
    ]
    return Request(prompt, held, then=tuple(edits))


def _cosine(site: Site, change_d: torch.Tensor, direction: np.ndarray | None) -> float | None:
    if direction is None or site.kind == "z":  # the heads' outputs: of another space, however wide
        return None
    return float(change_d.double().numpy() @ direction / change_d.double().norm() / np.linalg.norm(direction))


STAGE = Stage(
    name="audit",
    parents=("direction", "baseline", "candidates", "minimal", "algorithm1", "controls", "prompts"),
    splits=searched_split,
    sections=("audit", "candidates", "minimal", "generation", "verdicts", "capture"),
    tables=("recoveries",),
    shards=lambda study: list(_shards(study)),
    compute=_compute,
    code_version=3,
)
