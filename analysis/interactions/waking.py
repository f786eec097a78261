"""What wakes while critical features are ablated (R13): activations captured in ablated passes, beside matched controls.

On every prompt with a critical set, each feature of its minimal sets that fires is ablated alone, and all that fire of each set
together. The same is done with other features of the same SAEs, which fire where these do and about as strongly; a feature for
which none is left that comes near enough has no control. Only SAEs that read above the lowest ablated one are recorded, since the
pass is the clean one up to there. Whether what wakes restores the behaviour is another question (backups.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import duckdb
import numpy as np
import pyarrow as pa

from saelake import queries
from saelake.analysis.engine.requests import Feature, FeatureSet, Request
from saelake.analysis.engine.watch import Watched
from saelake.analysis.interactions.matching import Controls, matched
from saelake.analysis.search.answers import Columns, condition_columns, content_id, feature_columns, set_rows
from saelake.analysis.search.candidates import pool_by_sae, shards_of_split
from saelake.analysis.stage import Condition, Stage, Work, searched_split
from saelake.ingest.saes.refs import layer_of
from saelake.warehouse.landing import repeated
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import ABLATIONS, REACTIVATIONS, WAKING_PASSES

CAPTURED_TOKENS = 1 << 14
"""Tokens whose activations exist at a time, before what is kept of them is chosen: with a thousand firing features a token about
1.4 GB."""


@dataclass(frozen=True)
class Pass:
    """One ablated pass, as a row of `waking_passes` names it."""

    prompt: int
    features: FeatureSet
    method: str | None = None
    start: int | None = None
    source: Feature | None = None
    control: int | None = None

    @property
    def condition(self) -> Condition:
        return Condition("waking", "set" if self.source is None else "one", None if self.control is None else "matched")


def passes(critical: Sequence[tuple[int, str, int, int, int]], controls: Controls, number: Mapping[int, int]) -> Iterator[Pass]:
    """All passes of some prompts, from their critical features that fire: (prompt_id, method, start, SAE, feature_id).

    A whole set has controls only where each of its features has one; only the first minimal set has any, so that prompts count
    once.
    """
    sets: dict[tuple[int, str, int], list[Feature]] = {}
    for prompt_id, method, start, sae, feature_id in critical:
        sets.setdefault((prompt_id, method, start), []).append((sae, feature_id))
    ones = dict.fromkeys((prompt_id, f) for (prompt_id, method, _), found in sets.items() if method == "minimal" for f in found)
    for prompt_id, source in ones:
        yield Pass(number[prompt_id], FeatureSet.ablating([source]), source=source)
        for n, other in enumerate(controls.get((prompt_id, source), ())):
            yield Pass(number[prompt_id], FeatureSet.ablating([other]), source=source, control=n)
    for (prompt_id, method, start), found in sets.items():
        yield Pass(number[prompt_id], FeatureSet.ablating(found), method, start)
        if (method, start) == ("minimal", 0):
            for n, others in enumerate(zip(*(controls.get((prompt_id, f), ()) for f in found), strict=False)):
                yield Pass(number[prompt_id], FeatureSet.ablating(others), method, start, control=n)


def watched(work: Work, con: duckdb.DuckDBPyConnection) -> dict[int, np.ndarray | None]:
    """Number of an SAE -> which of its features are recorded, by the recipe; None: all."""
    candidates, sae_ids = work.context.recipe.candidates, work.context.sae_ids
    if work.context.recipe.waking.watched == "all":
        return dict.fromkeys(sae_ids)
    return {number: ids for number, ids in pool_by_sae(con, candidates, sae_ids).items() if len(ids)}


def capture(work: Work, asked: Sequence[Pass], recorded: Watched) -> Iterator[pa.Table]:
    """What fires in the passes, some of them at a time, with columns number (of the pass), prompt_id, is_control and those of
    `activations`.
    """
    saes = work.context.saes
    numbers = sorted(saes)
    names = pa.array([work.context.sae_ids[n] for n in numbers], pa.string())
    by_depth: dict[tuple[int, int], list[int]] = {}
    for i, one in enumerate(asked):
        by_depth.setdefault(min(saes[n].writes.depth for n in one.features.saes), []).append(i)
    for lowest, alike in sorted(by_depth.items()):
        above = {number: ids for number, ids in recorded.items() if saes[number].reads.depth > lowest}
        for members in _some(alike, [len(work.context.token_ids[asked[i].prompt]) for i in alike]):
            found = work.context.engine.activations([Request(asked[i].prompt, asked[i].features) for i in members], above)
            number = np.array(members, dtype=np.int64)[found.request]
            prompts = np.array([asked[i].prompt for i in members], dtype=np.int64)[found.request]
            is_control = np.array([asked[i].control is not None for i in members], dtype=bool)[found.request]
            columns = {"number": number, "prompt_id": work.context.prompt_ids[prompts], "is_control": is_control}
            columns["sae_id"] = pa.DictionaryArray.from_arrays(np.searchsorted(numbers, found.sae).astype(np.int32), names)
            columns |= {"layer": layer_of(found.sae)} | {
                name: getattr(found, name) for name in ("feature_id", "pos", "activation")
            }
            yield pa.table(columns)


def _some(members: Sequence[int], n_tokens: Sequence[int]) -> Iterator[Sequence[int]]:
    """The members, so many at a time as have CAPTURED_TOKENS together."""
    parts = (np.cumsum(n_tokens) - 1) // CAPTURED_TOKENS
    for _, part in groupby(zip(parts.tolist(), members, strict=True), key=itemgetter(0)):
        yield [member for _, member in part]


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context, shards = work.context, shards_of_split(work.context.study, "waking")
    with work.sql() as con:
        recorded = watched(work, con)
        for name in missing:
            prompt_ids = [int(context.prompt_ids[p]) for p in shards[name]]
            rows = con.execute(queries.step("waking_sets"), {"prompts": prompt_ids}).fetchall()
            critical = [(*one[:3], context.sae_number[one[4]], one[5]) for one in rows]
            controls = matched(context, con, prompt_ids, work.spec.seed)
            asked = list(passes(critical, controls, context.number_of))
            if not asked:
                yield name, []
                continue
            con.execute(queries.step("waking_firing"), {"prompts": prompt_ids})
            kept = []
            for part in capture(work, asked, recorded):
                con.register("captured", part)
                kept.append(con.sql(queries.step("waking_kept")).to_arrow_table())
                con.unregister("captured")
            yield name, [*_pass_rows(work, asked), *_reactivation_rows(work, asked, pa.concat_tables(kept))]


def _ids(work: Work, asked: Sequence[Pass]) -> np.ndarray:
    names = (f"{work.spec.stage}|{tuple(p.condition)}|{p.prompt}|{p.method}|{p.start}|{p.source}|{p.control}" for p in asked)
    return np.array([content_id(name) for name in names], dtype=np.int64)


def _pass_rows(work: Work, asked: Sequence[Pass]) -> Iterator[Rows]:
    context, n = work.context, len(asked)
    first = context.engine.next_token([Request(p.prompt, p.features) for p in asked])
    prompt_ids = context.prompt_ids[[p.prompt for p in asked]]
    ablations: Columns = {
        "ablation_id": _ids(work, asked),
        "prompt_id": prompt_ids,
        "set_id": [p.features.key for p in asked],
        "stage": [work.spec.stage] * n,
        **condition_columns([p.condition for p in asked]),
        "seed": [None if p.control is None else work.spec.seed for p in asked],
        "draw": [p.control for p in asked],
        "k": [None] * n,
        "tau": [None] * n,
        "p_refusal_token": first.p_target,
        "margin": first.margin,
        "first_token": context.subject.spelling.texts(first.token_id.tolist()),
        "completion": [""] * n,  # nothing is generated in these passes
    }
    named: Columns = {
        "ablation_id": ablations["ablation_id"],
        "prompt_id": prompt_ids,
        "method": [p.method for p in asked],
        "start": [p.start for p in asked],
        **feature_columns(context, [p.source for p in asked], "source_"),
        "control": [p.control for p in asked],
    }
    yield Rows.of(ABLATIONS, ablations)
    yield set_rows(context, [p.features for p in asked])
    yield Rows.of(WAKING_PASSES, named)


def _reactivation_rows(work: Work, asked: Sequence[Pass], kept: pa.Table) -> Iterator[Rows]:
    ids, sae_ids = _ids(work, asked), kept["sae_id"].to_numpy()
    for ref in work.context.study.saes:
        here = kept.filter(sae_ids == ref.sae_id)
        columns = {name: here[name].to_numpy() for name in ("layer", "feature_id", "pos", "activation")}
        columns |= {"ablation_id": ids[here["number"].to_numpy()]}
        sae_id = repeated(ref.sae_id, len(here)).cast(pa.string())
        yield Rows.of(REACTIVATIONS, columns | {"sae_id": sae_id}, ref.layer)


STAGE = Stage(
    name="waking",
    parents=("candidates", "inert", "alignments", "prompts", "activations"),
    splits=searched_split,
    sections=("waking", "candidates", "capture"),
    tables=("feature_sets", "ablations", "waking_passes", "reactivations"),
    shards=lambda study: list(shards_of_split(study, "waking")),
    compute=_compute,
    code_version=3,
    conditions=("waking",),
)
