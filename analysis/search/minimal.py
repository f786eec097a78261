"""A 1-minimal flipping set: ablating it flips the prompt, and no single one of its features can be left out.

Algorithm 1 (algorithm1.py) guarantees neither. Such a set is found by delta debugging from a random order, or, in fewer trials,
along an order that puts first what matters most (attribution).

A search is a generator that yields trials (sets to ablate) and is sent back which of them flip; many searches advance together,
so that the engine sees all pending trials as one batch.
"""

import math
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np

from saelake.analysis.engine.requests import Request
from saelake.analysis.search.answers import Ablation, ablation_rows, flipped
from saelake.analysis.search.candidates import shards_of_split
from saelake.analysis.search.critical import Pool, active_pools, controls_by_donor, falls_of, on_controls, pools, search_rows
from saelake.analysis.search.ranking import PASSES_OF_A_GRADIENT, drawn_order, engine_of
from saelake.analysis.stage import Condition, Stage, Work, searched_split
from saelake.analysis.study_context import StudyContext
from saelake.warehouse.runs import Rows

FOUND = Condition("minimal")
Members = tuple[int, ...]
"""A set of candidates, as sorted places in the candidate pool."""
Search = Generator[list[Members], list[bool], Members]
Key = TypeVar("Key", bound=Hashable)
ALONE = 64
"""Candidates that are tried one by one where no beginning of a ranking that is tried flips."""
AT_ONCE = {"cpu": 32, "cuda": 128}
"""Trials of a round, for each start of a prompt, by device kind. A step of a few answers takes as long as one of many: both read
all of the model's weights, and a GPU waits for its host. But the searches that have not ended are what a kill costs."""


def drawn_set(n_candidates: int, rng: np.random.Generator) -> Search:
    """Searches for a 1-minimal flipping subset of a pool that flips as a whole.

    Blocks are tried for leaving out, from halves down to single features. Of the blocks that can each be left out alone, as many
    together as still flip are left out (flipping is not monotone, so that is tried, not assumed). Ends when no single feature
    can be left out. The order of the candidates is drawn: other starts find other sets.
    """
    kept = rng.permutation(n_candidates)
    n_blocks = 2
    while len(kept) > 1:
        n_blocks = min(n_blocks, len(kept))
        blocks = np.array_split(kept, n_blocks)
        flips = yield [_members(blocks, leave_out={i}) for i in range(n_blocks)]
        spare = [i for i in range(n_blocks) if flips[i]]
        if spare:
            prefixes = [set(spare[:n]) for n in range(2, len(spare) + 1)]
            together = (yield [_members(blocks, leave_out=p) for p in prefixes]) if prefixes else []
            longest = max((len(p) for p, flip in zip(prefixes, together, strict=True) if flip), default=1)
            gone = set(spare[:longest])
            kept = np.concatenate([b for i, b in enumerate(blocks) if i not in gone] or [np.empty(0, dtype=np.int64)])
            n_blocks = max(n_blocks - len(gone), 2)
        elif n_blocks == len(kept):
            break
        else:
            n_blocks *= 2
    return tuple(sorted(int(i) for i in kept))


def ranked_set(order: Sequence[int]) -> Search:
    """Searches for a 1-minimal flipping subset along an order of the candidates, what matters most first.

    Empty if nothing that is tried flips.

    The shortest beginning of the order that flips is found by doubling and halving, and its last candidate is kept; then the
    shortest one that flips together with what is kept, until that flips by itself (as QuickXplain, Junker 2004). Flipping is not
    monotone, so that is not relied on: of what is kept, one after another is left out as long as one can be. The whole pool need
    not flip; where no beginning that is tried does, the first candidates are tried alone.
    """
    tried: dict[Members, bool] = {}

    def trials(sets: Sequence[Members]) -> Generator[list[Members], list[bool], list[bool]]:
        new = [one for one in dict.fromkeys(sets) if one not in tried]
        if new:
            tried.update(zip(new, (yield new), strict=True))
        return [tried[one] for one in sets]

    kept: list[int] = []
    bound = len(order)
    while bound:
        shortest, longest = (0, 0) if kept else (0, 1)
        while True:
            (flips,) = yield from trials([_sorted([*kept, *order[:longest]])])
            if flips or longest == bound:
                break
            shortest, longest = longest, min(max(2 * longest, 1), bound)
        if not flips:  # what one of them does, others may wake up to undo
            return (yield from _alone(order, trials))
        while longest - shortest > 1:
            middle = (shortest + longest) // 2
            (flips,) = yield from trials([_sorted([*kept, *order[:middle]])])
            shortest, longest = (shortest, middle) if flips else (middle, longest)
        if not longest:
            break
        kept.append(order[longest - 1])
        bound = longest - 1
    while len(kept) > 1:
        without = [_sorted(one for one in kept if one != left_out) for left_out in kept]
        flips_without = yield from trials(without)
        if not any(flips_without):
            break
        kept = list(without[flips_without.index(True)])
    return _sorted(kept)


def _alone(
    order: Sequence[int], trials: Callable[[Sequence[Members]], Generator[list[Members], list[bool], list[bool]]]
) -> Search:
    """The first of the order's candidates that flips by itself, tried in growing groups; empty if none of the first ones does."""
    start, size = 0, 4
    while group := order[start : min(start + size, ALONE)]:
        flips = yield from trials([(one,) for one in group])
        if any(flips):
            return (group[flips.index(True)],)
        start, size = start + size, 2 * size
    return ()


def _sorted(members: Iterable[int]) -> Members:
    return tuple(sorted(members))


def _members(blocks: Sequence[np.ndarray], leave_out: set[int]) -> Members:
    return tuple(sorted(int(i) for n, block in enumerate(blocks) if n not in leave_out for i in block))


@dataclass
class Found:
    """What one search found, and what it took."""

    members: Members
    n_evaluations: int
    """Trials that this search asked for, those included that another search had already paid for."""


def run_together(
    searches: Mapping[Key, Search], flips: Callable[[Sequence[tuple[Key, Members]]], Sequence[bool]]
) -> dict[Key, Found]:
    """Runs searches in lockstep: every round is one call of `flips` with the pending trials of all."""
    return dict(as_they_end(searches.items(), flips, math.inf))


def as_they_end(
    searches: Iterable[tuple[Key, Search]], flips: Callable[[Sequence[tuple[Key, Members]]], Sequence[bool]], n: float
) -> Iterator[tuple[Key, Found]]:
    """Runs searches side by side, and yields each when it ends.

    Every round is one call of `flips`, with n trials or a few more, where so many are pending. Searches that began first go
    first, so that they end early; others begin, and go on, only as far as rounds would not be full without them.
    """
    waiting, running = iter(searches), dict[Key, Search]()
    pending: dict[Key, list[Members]] = {}
    asked: Counter[Key] = Counter()

    def advance(key: Key, answer: list[bool] | None) -> Iterator[tuple[Key, Found]]:
        try:
            pending[key] = next(running[key]) if answer is None else running[key].send(answer)
            asked[key] += len(pending[key])
        except StopIteration as end:
            pending.pop(key, None)
            del running[key]
            yield key, Found(end.value, asked.pop(key, 0))

    while True:
        while sum(map(len, pending.values())) < n and (new := next(waiting, None)) is not None:
            key, running[key] = new
            yield from advance(key, None)
        if not running:
            return
        n_before = accumulate(map(len, pending.values()), initial=0)
        asked_now = [key for key, before in zip(pending, n_before, strict=False) if before < n]
        trials = [(key, members) for key in asked_now for members in pending[key]]
        answers = iter(flips(trials))
        for key in asked_now:
            yield from advance(key, [next(answers) for _ in pending[key]])


class Trials:
    """Answers trials of (prompt, start) searches, and never asks the engine about one state twice."""

    def __init__(self, context: StudyContext, by_prompt: Mapping[int, Pool]) -> None:
        self._context = context
        self._by_prompt = by_prompt
        self._tried: dict[int, dict[Members, bool]] = {}

    def flips(self, trials: Sequence[tuple[tuple[int, int], Members]]) -> list[bool]:
        states = [(prompt, members) for (prompt, _), members in trials]
        tried = {prompt: self._tried.setdefault(prompt, {}) for prompt, _ in states}
        new = [(prompt, members) for prompt, members in dict.fromkeys(states) if members not in tried[prompt]]
        requests = [Request(prompt, self._by_prompt[prompt].at(members)) for prompt, members in new]
        for (prompt, members), flip in zip(new, flipped(self._context, requests), strict=True):
            tried[prompt][members] = flip
        return [tried[prompt][members] for prompt, members in states]

    def forget(self, prompts: Iterable[int]) -> None:
        """Prompts that nothing more will be asked about: what is known of pools of thousands fills the memory."""
        for prompt in prompts:
            self._tried.pop(prompt, None)


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context, settings = work.context, work.context.recipe.minimal
    by_prompt = pools(work, settings.direction) if settings.pool == "candidates" else active_pools(work)
    controls = controls_by_donor(context, by_prompt)
    shards = {name: [p for p in ids if p in by_prompt] for name, ids in shards_of_split(context.study, "minimal").items()}
    shard_of = {p: name for name in missing for p in shards[name]}
    ended: dict[str, dict[tuple[int, int], Found]] = {name: {} for name in missing}
    yield from ((name, _rows(work, by_prompt, controls, {})) for name in missing if not shards[name])
    trials = Trials(context, by_prompt)
    n_trials = AT_ONCE.get(context.subject.device.type, AT_ONCE["cpu"]) * settings.starts
    for (prompt, start), found in as_they_end(_searches(work, by_prompt, shard_of), trials.flips, n_trials):
        name = shard_of[prompt]
        ended[name][prompt, start] = found
        if len(ended[name]) == len(shards[name]) * settings.starts:
            yield name, _rows(work, by_prompt, controls, ended.pop(name))
            trials.forget(shards[name])


def _searches(work: Work, by_prompt: Mapping[int, Pool], prompts: Iterable[int]) -> Iterator[tuple[tuple[int, int], Search]]:
    """The searches of each prompt in turn; its pool is ranked when the first of them begins."""
    context, settings = work.context, work.context.recipe.minimal
    engine = engine_of(context) if settings.order == "attribution" else None
    for prompt in prompts:
        falls = falls_of(context, engine, by_prompt[prompt]) if engine else None
        for start in range(settings.starts):
            yield (prompt, start), _search(work, by_prompt[prompt], start, falls)


def _rows(
    work: Work, by_prompt: Mapping[int, Pool], controls: Mapping[int, Sequence[int]], ended: Mapping[tuple[int, int], Found]
) -> list[Rows]:
    """What a shard lands."""
    settings = work.context.recipe.minimal
    asked = [
        Ablation(Request(p, by_prompt[p].at(found.members)), FOUND, draw=start, seed=work.spec.seed)
        for (p, start), found in ended.items()
        if found.members
    ]
    asked += list(on_controls(asked, controls))
    ranked = PASSES_OF_A_GRADIENT if settings.order == "attribution" else 0
    evaluations = {
        (p, start): (by_prompt[p], found.n_evaluations + (ranked if start == 0 else 0)) for (p, start), found in ended.items()
    }
    return [*ablation_rows(work.context, work.spec.stage, asked), search_rows(work.context, "minimal", evaluations)]


def _search(work: Work, pool: Pool, start: int, falls: np.ndarray | None) -> Search:
    """The search of a pool from one start: in a ranked pool the first follows the ranking, and the others draw by its falls."""
    rng = np.random.default_rng([work.spec.seed, start, work.context.places[pool.prompt]])
    if falls is None:
        return drawn_set(len(pool), rng)
    return ranked_set((drawn_order(falls, rng) if start else np.argsort(-falls, kind="stable")).tolist())


STAGE = Stage(
    name="minimal",
    parents=("candidates", "baseline", "alignments", "prompts"),
    splits=searched_split,
    sections=("minimal", "candidates", "generation", "verdicts", "capture"),
    tables=("feature_sets", "ablations", "verdicts", "searches"),
    shards=lambda study: list(shards_of_split(study, "minimal")),
    compute=_compute,
    code_version=2,
    conditions=("minimal",),
)
