"""A minimal set of features that flips one prompt, from Python: the search of the recipe's stage `minimal`, asked directly."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saelake.analysis.engine.asked import Ablate, Key
from saelake.analysis.engine.attribution import attribution
from saelake.analysis.engine.library import Engine, check_engine
from saelake.analysis.engine.prompts import Prompt
from saelake.analysis.search.minimal import Members, drawn_set, ranked_set, run_together
from saelake.analysis.search.ranking import log_odds
from saelake.warehouse import arguments
from saelake.warehouse.errors import UserError


@dataclass(frozen=True)
class MinimalSet:
    """A set whose ablation flips a prompt, and of which no feature can be left out."""

    features: tuple[tuple[str, int], ...]
    """(sae_id, feature_id), in the order of the pool; none where the prompt flips by itself, or where `flips` is False."""
    flips: bool
    """Whether ablating `features` flips the prompt; False only where no set that was tried does."""
    n_evaluations: int
    """Different answers that were asked for."""


def minimal_set(
    engine: Engine,
    prompt: Prompt,
    pool: Iterable[tuple[Key, int]] | None,
    flips: Callable[[str], bool],
    *,
    max_new_tokens: int = 32,
    seed: int = 0,
) -> MinimalSet:
    """A 1-minimal subset of a pool of features: ablating it flips the prompt, and without any one of its features it does not.

    Without a pool, all features that fire on the prompt are searched, in the order of how much the target tokens depend on them,
    by `attribution`. Where a given pool does not flip as a whole (ablating too much can leave no sensible answer), the search
    begins with the fewest of those tried, in that order or its reverse, that flip together.

    Args:
        pool: pairs of which SAE (sae_id, hook, Site, or layer) and feature_id, or None.
        flips: whether an answer's text counts.
        seed: of the order in which features of a pool are tried; other orders may find other sets.
    Raises UserError for an empty pool, and for features that do not exist.
    """
    check_engine(engine)
    arguments.function("flips", flips, "a function of an answer's text")
    max_new_tokens, seed = arguments.whole("max_new_tokens", max_new_tokens, 1), arguments.whole("seed", seed, 0)
    named = _active(engine, prompt) if pool is None else [_feature(engine, one) for one in _pairs(pool)]
    features = list(dict.fromkeys(named))
    if not features:
        raise UserError("the pool has no feature")
    known: dict[Members, bool] = {}

    def asked(sets: Sequence[Members]) -> list[bool]:
        new = [members for members in dict.fromkeys(sets) if members not in known]
        if new:
            edits = [_ablated([features[i] for i in members]) for members in new]
            texts = engine.answer([prompt] * len(new), edits=edits, max_new_tokens=max_new_tokens).texts
            known.update(zip(new, (bool(flips(text)) for text in texts), strict=True))
        return [known[members] for members in sets]

    if pool is None:
        if asked([()])[0]:
            return MinimalSet((), True, len(known))
        along = run_together({0: ranked_set(range(len(features)))}, lambda trials: asked([members for _, members in trials]))[0]
        return MinimalSet(tuple(features[i] for i in along.members), bool(along.members), len(known))
    whole: Members = tuple(range(len(features)))
    by_itself, together = asked([(), whole])
    start = whole if together else None
    if start is None and not by_itself:
        steps = [step for order in _orders(engine, prompt, features) for step in _steps(order)]
        start = min((step for step, flip in zip(steps, asked(steps), strict=True) if flip), key=len, default=None)
    if by_itself or start is None:
        return MinimalSet((), by_itself, len(known))
    search = drawn_set(len(start), np.random.default_rng(seed))
    found = run_together({0: search}, lambda trials: asked([tuple(start[i] for i in members) for _, members in trials]))[0]
    return MinimalSet(tuple(features[start[i]] for i in found.members), True, len(known))


def _active(engine: Engine, prompt: Prompt) -> list[tuple[str, int]]:
    """The features that fire on a prompt, those first without which the target tokens' log-odds fall most."""
    table = attribution(engine, [prompt], log_odds(engine.subject)).group_by(["sae_id", "feature_id"], use_threads=False)
    rows = table.aggregate([("effect", "sum")]).to_pylist()
    rows.sort(key=lambda row: (row["effect_sum"], row["sae_id"], row["feature_id"]))
    return [(row["sae_id"], row["feature_id"]) for row in rows]


def _pairs(pool: Any) -> list[Any]:
    form = "pairs of an SAE and a feature, as [(5, 177), (4, 256)]"
    return arguments.listed("pool", list(pool) if isinstance(pool, set | frozenset) else pool, form)


def _feature(engine: Engine, pair: Any) -> tuple[str, int]:
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise UserError(f"the pool has {arguments.shown(pair)}: give pairs of an SAE and a feature, as [(5, 177), (4, 256)]")
    sae_id = engine.sae_id(pair[0])
    width = engine.saes[sae_id].width
    return sae_id, arguments.whole(f"a feature of {sae_id} in the pool", pair[1], 0, width - 1)


def _orders(engine: Engine, prompt: Prompt, features: Sequence[tuple[str, int]]) -> list[list[int]]:
    """Places of the features that fire on a prompt, by their effect on the target tokens: what holds these up first, or last."""
    place = {feature: i for i, feature in enumerate(features)}
    effect = dict.fromkeys(range(len(features)), 0.0)
    active: set[int] = set()
    table = attribution(engine, [prompt])
    for sae_id, feature_id, change in zip(*(table[name].to_pylist() for name in ("sae_id", "feature_id", "effect")), strict=True):
        if (i := place.get((sae_id, feature_id))) is not None:
            effect[i] += change
            active.add(i)
    rising = sorted(active, key=lambda i: (effect[i], i))
    return [rising, rising[::-1]]


def _steps(order: Sequence[int]) -> list[Members]:
    """The first 1, 2, 3, ... of an order, by a quarter more at a time from 16 on."""
    sizes, n = [], 1
    while n <= len(order):
        sizes.append(n)
        n += max(1, n // 4) if n >= 16 else 1
    return [tuple(sorted(order[:n])) for n in sizes]


def _ablated(features: Sequence[tuple[str, int]]) -> list[Ablate]:
    by_sae: dict[str, list[int]] = {}
    for sae_id, feature_id in features:
        by_sae.setdefault(sae_id, []).append(feature_id)
    return [Ablate(sae_id, ids) for sae_id, ids in by_sae.items()]
