"""Does what wakes restore the behaviour (R13)? Every source is ablated alone, and again with what wakes when it goes.

A backup is what wakes and whose removal flips: the source alone does not flip the prompt, the source with what wakes does.
Whatever else wakes is a side effect. Beside it as many features of the same SAEs are ablated with the source that fire on the
prompt anyway: fewer, or none, where it has no more. Where what wakes is a backup as a whole, each woken feature is tried by
itself with the source, and a smallest part of them is searched that still flips.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import duckdb
import numpy as np

from saelake import queries
from saelake.analysis.engine.requests import Feature, FeatureSet, Request
from saelake.analysis.search.answers import Ablation, Columns, ablation_id, ablation_rows, feature_columns, flipped, judged
from saelake.analysis.search.candidates import shards_of_split
from saelake.analysis.search.minimal import Members, drawn_set, run_together
from saelake.analysis.stage import Condition, Stage, Work, searched_split
from saelake.warehouse.durable import sha256_text
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import BACKUP_TESTS, BACKUPS

ALONE, WITH_WOKEN = Condition("woken", "without"), Condition("woken", "with")
WITH_OTHERS = Condition("woken", "with", "matched")
ALONE_UNMATCHED, WITH_UNMATCHED = Condition("woken", "without_unmatched"), Condition("woken", "with_unmatched")
"""Sources beside whose woken features no others fire. They are named apart, and so are those that wake nothing: what is compared
is over the same sources, not over those alone that happen to have an answer."""
NOTHING_WOKEN = Condition("woken", "nothing")


@dataclass(frozen=True)
class Source:
    """One critical feature, or what fires of one critical set, on one prompt; and what wakes while it is ablated there."""

    prompt: int
    method: str | None
    start: int | None
    features: tuple[Feature, ...]
    woken: tuple[Feature, ...]
    others: tuple[Feature, ...]
    """As many as wake, of the same SAEs, that fire on the prompt; fewer where it has no more."""

    @property
    def name(self) -> str:
        """What tells it from the others of its prompt."""
        return f"{self.method}|{self.start}|{self.features if self.method is None else ''}"

    def ablated(self, more: Sequence[Feature] = ()) -> Request:
        """The source ablated on its prompt, and more with it."""
        return Request(self.prompt, FeatureSet.ablating([*self.features, *more]))


def sources(work: Work, con: duckdb.DuckDBPyConnection, prompt_ids: Sequence[int]) -> list[Source]:
    """The sources of some prompts."""
    context = work.context
    drawn = queries.run(
        con, "random_active", prompts=prompt_ids, pool=context.recipe.candidates.cap, draws=1, seed=work.spec.seed
    ).fetchall()
    active: dict[tuple[int, int], list[int]] = {}
    for prompt_id, _, _, sae_id, feature_id, _ in drawn:  # in the order of their ranks
        active.setdefault((prompt_id, context.sae_number[sae_id]), []).append(feature_id)
    found = []
    for prompt_id, method, start, _, _, source, woken in con.execute(
        queries.step("waking_sources"), {"prompts": list(prompt_ids)}
    ).fetchall():
        mine, awake = (tuple((context.sae_number[sae_id], f) for sae_id, f in members or ()) for members in (source, woken))
        firing = {sae: active.get((prompt_id, sae), ()) for sae, _ in awake}
        found.append(Source(context.number_of[prompt_id], method, start, mine, awake, others_of(firing, mine, awake)))
    return found


def others_of(firing: Mapping[int, Sequence[int]], source: Sequence[Feature], woken: Sequence[Feature]) -> tuple[Feature, ...]:
    """What is ablated with a source in place of what wakes: of each SAE as many as wake, or all that it has beside the source.

    Args:
        firing: SAE -> its features that may be taken, the first ones first.
    """
    taken = ([(sae, f) for f in firing[sae] if (sae, f) not in source][:n] for sae, n in Counter(sae for sae, _ in woken).items())
    return tuple(chain.from_iterable(taken))


def tests(source: Source, seed: int) -> Iterator[tuple[Source, str, Ablation]]:
    """What is asked about one source: (source, what is ablated, the ablation)."""
    alone, woken = (ALONE, WITH_WOKEN) if source.others else (ALONE_UNMATCHED, WITH_UNMATCHED)
    yield source, "source", Ablation(source.ablated(), alone if source.woken else NOTHING_WOKEN, about=source.name)
    if source.woken:
        yield source, "woken", Ablation(source.ablated(source.woken), woken, about=source.name)
    if source.others:
        others = source.ablated(source.others)
        yield source, "random", Ablation(others, WITH_OTHERS, draw=0, seed=seed, about=source.name)


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context, shards = work.context, shards_of_split(work.context.study, "backups")
    with work.sql() as con:
        for name in missing:
            found = sources(work, con, [int(context.prompt_ids[p]) for p in shards[name]])
            asked = [one for source in found for one in tests(source, work.spec.seed)]
            answers = judged(context, [ablation.request for *_, ablation in asked])
            flips = {(id(source), what): a.verdict.flipped for (source, what, _), a in zip(asked, answers, strict=True)}
            backed_up = [s for s in found if flips[id(s), "source"] is False and flips.get((id(s), "woken"))]
            ablations = [ablation for *_, ablation in asked]
            yield (
                name,
                [
                    *ablation_rows(context, work.spec.stage, ablations, answers=answers),
                    _test_rows(work, asked),
                    _backup_rows(work, backed_up),
                ],
            )


def _named(work: Work, some: Sequence[Source]) -> Columns:
    """The columns that name sources."""
    return {
        "prompt_id": work.context.prompt_ids[[s.prompt for s in some]],
        "method": [s.method for s in some],
        "start": [s.start for s in some],
        **feature_columns(work.context, [s.features[0] if s.method is None else None for s in some], "source_"),
    }


def _test_rows(work: Work, asked: Sequence[tuple[Source, str, Ablation]]) -> Rows:
    ablations = [ablation for *_, ablation in asked]
    columns = {
        "ablation_id": [ablation_id(work.context, work.spec.stage, one) for one in ablations],
        "ablated": [what for _, what, _ in asked],
        "n_woken": [len(source.woken) for source, *_ in asked],
    }
    return Rows.of(BACKUP_TESTS, columns | dict(_named(work, [source for source, *_ in asked])))


def _backup_rows(work: Work, backed_up: Sequence[Source]) -> Rows:
    """Every woken feature by itself with its source, and whether it is in a smallest part of the woken ones that flips."""
    context = work.context
    pairs = [(i, feature) for i, source in enumerate(backed_up) for feature in source.woken]
    alone = [backed_up[i].ablated([feature]) for i, feature in pairs]
    by_itself, first = flipped(context, alone), context.engine.next_token(alone)
    all_of = [tuple(range(len(source.woken))) for source in backed_up]
    tried: dict[tuple[int, Members], bool] = {
        (i, (backed_up[i].woken.index(feature),)): flip for (i, feature), flip in zip(pairs, by_itself, strict=True)
    }
    tried |= dict.fromkeys(enumerate(all_of), True)  # which is why they are here

    def flips(trials: Sequence[tuple[int, Members]]) -> list[bool]:
        new = [one for one in dict.fromkeys(trials) if one not in tried]
        requests = [backed_up[i].ablated([backed_up[i].woken[m] for m in members]) for i, members in new]
        tried.update(zip(new, flipped(context, requests), strict=True))
        return [tried[one] for one in trials]

    seed = work.spec.seed
    searches = {
        i: drawn_set(len(s.woken), np.random.default_rng([seed, int(context.places[s.prompt]), int(sha256_text(s.name)[:8], 16)]))
        for i, s in enumerate(backed_up)
    }
    smallest = {i: {backed_up[i].woken[m] for m in end.members} for i, end in run_together(searches, flips).items()}
    columns = {
        **feature_columns(context, [feature for _, feature in pairs]),
        "p_refusal_token": first.p_target,
        "flips": by_itself,
        "is_needed": [feature in smallest[i] for i, feature in pairs],
    }
    return Rows.of(BACKUPS, columns | dict(_named(work, [backed_up[i] for i, _ in pairs])))


STAGE = Stage(
    name="backups",
    parents=("candidates", "minimal", "waking", "waking_graph", "alignments", "prompts", "activations"),
    splits=searched_split,
    sections=("candidates", "generation", "verdicts", "capture"),
    tables=("feature_sets", "ablations", "verdicts", "backup_tests", "backups"),
    shards=lambda study: list(shards_of_split(study, "backups")),
    compute=_compute,
    code_version=2,
    conditions=("woken",),
    compared=((WITH_WOKEN, ALONE), (WITH_WOKEN, WITH_OTHERS), (WITH_UNMATCHED, ALONE_UNMATCHED)),
)
