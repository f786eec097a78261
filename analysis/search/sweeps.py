"""A dose response: features' decoder rows, a direction or a vector, added to the residual stream ever more strongly, or clamps.

Every strength answers all prompts that the analysis ablates on, the strength 0 (of a clamp: nothing) among them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from saelake.analysis.engine.asked import Add, Edit, SaeTable, direction_of, interventions
from saelake.analysis.engine.requests import DirectionEdit, FeatureSet, Request
from saelake.analysis.search.answers import Ablation, ablation_id, ablation_rows
from saelake.analysis.search.candidates import shards_of_split
from saelake.analysis.search.edit_sets import EditSet, read_positions
from saelake.analysis.stage import Condition, Stage, Work, searched_split
from saelake.analysis.study_context import StudyContext
from saelake.ingest.saes.refs import layer_of
from saelake.ingest.sites import Site
from saelake.warehouse.arguments import LARGEST
from saelake.warehouse.durable import sha256_text
from saelake.warehouse.errors import UserError
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import DOSES

MOST_STRENGTHS = 100
CHOSEN = "chosen"
"""The name of the study's one direction."""


@dataclass(frozen=True)
class Sweep:
    """What a person asks for."""

    name: str
    strengths: tuple[float, ...]
    clamp: bool = False
    """Features are held at the strengths; else what is given is added, so many times as long."""
    direction: str | None = None
    """chosen, or the layer whose direction it is."""
    vector: Path | None = None
    """A file that holds one vector: .npy, .safetensors or .pt."""
    site: str | None = None
    """The hook, or layer, at which a vector is added."""
    positions: str | None = None


@dataclass(frozen=True)
class Source:
    """What a sweep adds or holds, found."""

    name: str
    """As `doses.source` calls it."""
    edits: EditSet | None = None
    vector: np.ndarray | None = None
    site: Site | None = None

    @property
    def content(self) -> str:
        """A hash of it."""
        vector = "" if self.vector is None else self.vector.tobytes().hex()
        return sha256_text(f"{self.edits.content if self.edits else ''} {vector} {self.site}")


def check_sweep(sweep: Sweep, n_sources: int) -> None:
    """Raises UserError for strengths that are none, and for what does not go together."""
    if n_sources != 1:
        raise UserError("steer needs one of --features, --direction and --vector, which it adds or holds")
    if not sweep.strengths or len(sweep.strengths) > MOST_STRENGTHS or not all(abs(one) <= LARGEST for one in sweep.strengths):
        raise UserError(f"strengths are 1 to {MOST_STRENGTHS} finite numbers, as 0,10,20")
    if len(set(sweep.strengths)) < len(sweep.strengths):
        raise UserError("a strength is named twice")
    if not sweep.clamp and not any(sweep.strengths):
        raise UserError("what is added needs a strength beside 0: that is the unmodified model, which is asked in any case")
    if sweep.clamp and (sweep.direction or sweep.vector):
        raise UserError("only features can be clamped: a direction or a vector is added")
    if (sweep.site is None) != (sweep.vector is None):
        raise UserError("a vector needs a site, and only a vector does: features and directions have theirs")
    read_positions(sweep.positions)


def doses(sweep: Sweep) -> list[float | None]:
    """The strengths in rising order, with the unmodified model: 0 of what is added, None beside what is clamped."""
    return [None, *sorted(sweep.strengths)] if sweep.clamp else [*sorted({0.0, *sweep.strengths})]


def _compute(sweep: Sweep, source: Source, work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context, shards = work.context, shards_of_split(work.context.study)
    acting = _clamps(sweep, source) if sweep.clamp else _additions(sweep, source, context)
    sites, norm = _sites_and_norm(sweep, source, context, acting)
    for name in missing:
        asked, strengths = [], []
        for draw, strength in enumerate(doses(sweep)):
            for prompt in shards[name]:
                asked.append(_asked(sweep, acting.get(strength), context, prompt, draw))
                strengths.append(strength)
        rows = {
            "ablation_id": [ablation_id(context, work.spec.stage, one) for one in asked],
            "edit": ["clamp" if sweep.clamp else "add"] * len(asked),
            "source": [source.name] * len(asked),
            "sites": [sites] * len(asked),
            "positions": [sweep.positions] * len(asked),
            "strength": strengths,
            "norm": [norm] * len(asked),
        }
        yield name, [*ablation_rows(context, work.spec.stage, asked), Rows.of(DOSES, rows)]


Acting = EditSet | list[tuple[Edit, FeatureSet | DirectionEdit]]


def _clamps(sweep: Sweep, source: Source) -> Mapping[float | None, Acting]:
    assert source.edits is not None, "only features are clamped"
    rows = source.edits.rows
    return {
        value: EditSet.of([(n, i, value, sweep.positions) for n, i in zip(rows["sae"], rows["feature_id"], strict=True)])
        for value in sweep.strengths
    }


def _additions(sweep: Sweep, source: Source, context: StudyContext) -> Mapping[float | None, Acting]:
    positions = read_positions(sweep.positions)
    table = SaeTable({n: context.saes[n] for n in source.edits.features.saes} if source.edits else {})
    adds = []
    if source.edits is None:
        assert source.site is not None, "a vector has a site"
        adds.append(Add(source.site, source.vector, 1.0, positions))
    else:
        for number in source.edits.features.saes:
            ids = source.edits.features.at(number)["feature_id"].astype(np.int64)
            adds.append(Add(context.saes[number].writes, context.saes[number].W_dec[ids].sum(0), 1.0, positions))
    along = [(add, direction_of(add, table, context.subject)) for add in adds]
    return {
        strength: [(add, replace(direction, add=strength)) for add, direction in along]
        for strength in sweep.strengths
        if strength
    }


def _asked(sweep: Sweep, acting: Acting | None, context: StudyContext, prompt: int, draw: int) -> Ablation:
    if acting is None:
        return Ablation(Request(prompt), Condition(sweep.name), draw=draw)
    if isinstance(acting, EditSet):
        return Ablation(acting.request(prompt, context.encoded), Condition(sweep.name), draw=draw, edits=acting)
    return Ablation(
        Request(prompt, then=interventions(acting, context.encoded(prompt), prompt)), Condition(sweep.name), draw=draw
    )


def _sites_and_norm(
    sweep: Sweep, source: Source, context: StudyContext, acting: Mapping[float | None, Acting]
) -> tuple[str, float | None]:
    """The hooks at which a sweep acts, and the length of what strength 1 adds at its one site."""
    if sweep.clamp:
        assert source.edits is not None, "only features are clamped"
        return ", ".join(dict.fromkeys(context.saes[n].writes.hook for n in source.edits.features.saes)), None
    first = next((one for one in acting.values() if isinstance(one, list)), [])
    along = [direction for _, direction in first if isinstance(direction, DirectionEdit)]
    sites = ", ".join(dict.fromkeys(site.hook for direction in along for site in direction.sites))
    return sites, float(np.linalg.norm(along[0].vector)) if len(along) == 1 else None


def check_swept(edits: EditSet, sweep: Sweep) -> None:
    """Raises UserError where rows say a value or positions of their own, which the sweep's would take the place of."""
    if edits.rows["value"].any():
        raise UserError("features of a sweep have no value of their own: the strengths are their values")
    if any(place != sweep.positions for place in edits.places):
        raise UserError("features of a sweep have no positions of their own: --positions is for all of them")


def features_source(edits: EditSet, sae_ids: Mapping[int, str]) -> Source:
    """Features by the names that people give them."""
    alone = [layer_of(n) for n in sae_ids]
    names = [
        f"{layer_of(n) if alone.count(layer_of(n)) == 1 else sae_ids[n]}:{i}"
        for n, i in zip(edits.rows["sae"].tolist(), edits.rows["feature_id"].tolist(), strict=True)
    ]
    return Source(", ".join(names), edits=edits)


def stage(sweep: Sweep, source: Source) -> Stage:
    """The stage of a sweep; each name is a stage of its own."""
    content = {
        "condition": sweep.name,
        "edit": "clamp" if sweep.clamp else "add",
        "source": source.name,
        "content": source.content,
        "strengths": sorted(sweep.strengths),
        "positions": sweep.positions,
    }
    return Stage(
        name=f"steer_{sweep.name}",
        parents=("prompts", "activations"),
        splits=searched_split,
        sections=("generation", "verdicts", "capture"),
        tables=("feature_sets", "ablations", "verdicts", "doses"),
        shards=lambda study: list(shards_of_split(study)),
        compute=partial(_compute, sweep, source),
        identity=lambda study: content | {"split": study.recipe.candidates.split},
    )
