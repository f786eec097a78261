"""Engine answers as text with the oracle's verdict, and as rows of the lake.

The oracle is the judge that a recipe's searches go by. Its verdicts are stored with the answers; other judges read them later.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.requests import NO_FEATURES, Feature, FeatureSet, Request
from saelake.analysis.judges.protocol import Answer, Verdict
from saelake.analysis.search.edit_sets import EditSet
from saelake.analysis.stage import Condition
from saelake.analysis.study_context import StudyContext
from saelake.ingest.saes.refs import layer_of
from saelake.warehouse.durable import sha256_text
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import ABLATIONS, FEATURE_SETS, VERDICTS

Columns = Mapping[str, Sequence[object] | np.ndarray]


@dataclass(frozen=True)
class Judged:
    """An answer with the oracle's verdict."""

    p_refusal_token: float
    first_token: str
    completion: str
    verdict: Verdict
    judge: str
    """The judge whose verdict it is: the oracle, or that of prompts of no target label."""
    margin: float | None = None
    """By how much the largest logit of a target token was above that of any other first token."""


def answer_to(context: StudyContext, prompt: int, first_token: str, p_refusal_token: float, completion: str) -> Answer:
    """What a judge looks at: an answer to a prompt, by its number."""
    label, role = context.study.prompts[prompt].label, context.study.role(prompt)
    return Answer(context.study.prompts[prompt].text, first_token, p_refusal_token, completion, label=label, role=role)


def judged(
    context: StudyContext, requests: Sequence[Request], engine: AblationEngine | None = None, *, whole: bool = True
) -> list[Judged]:
    """Answers of the study's engine, or another, as long as the recipe's generation allows, judged by its oracle.

    Args:
        whole: otherwise an answer ends where the oracle knows it for a refusal, whatever would follow.
    """
    if not requests:
        return []

    def settled(request: Request, token_ids: Sequence[int]) -> bool:
        return not whole and context.settled(request.prompt, token_ids)

    answers = (engine or context.engine).answer(requests, context.recipe.generation.max_new_tokens, settled)
    first = context.subject.spelling.texts(answers.first.token_id.tolist())
    texts = [
        answer_to(context, r.prompt, token, float(p), context.text(tokens))
        for r, token, p, tokens in zip(requests, first, answers.first.p_target, answers.token_ids, strict=True)
    ]
    judges = [context.oracle_of(r.prompt) for r in requests]
    verdicts = {
        name: iter(context.judge(name)([t for t, by in zip(texts, judges, strict=True) if by == name])) for name in set(judges)
    }
    return [
        Judged(t.p_refusal_token, t.first_token, t.completion, next(verdicts[by]), by, float(margin))
        for t, by, margin in zip(texts, judges, answers.first.margin, strict=True)
    ]


def flipped(context: StudyContext, requests: Sequence[Request]) -> list[bool]:
    """Whether the oracle reads each answer as an answer: neither a refusal nor degenerate.

    An oracle that goes by the first token needs whole answers only of the prompts whose first token passes.
    """
    asked = np.ones(len(requests), dtype=bool)
    if _by_first_token(context, requests):
        asked = ~np.isin(context.engine.next_token(requests).token_id, context.subject.target_token_ids)
    return _read(context, requests, asked, lambda verdict: verdict.flipped is True).tolist()


class Shown(NamedTuple):
    """Whether answers show the behaviour."""

    p_target: np.ndarray
    """(n,) float32: probability that the first token is a target token."""
    shown: np.ndarray
    """(n,) bool: the oracle reads the answer so."""


def shown(context: StudyContext, requests: Sequence[Request]) -> Shown:
    """Whether the oracle reads each answer as showing the behaviour.

    An oracle that goes by the first token needs whole answers only of the prompts whose first token is a target token.
    """
    first = context.engine.next_token(requests)
    asked = np.ones(len(requests), dtype=bool)
    if _by_first_token(context, requests):
        asked = np.isin(first.token_id, context.subject.target_token_ids)
    return Shown(first.p_target, _read(context, requests, asked, lambda verdict: verdict.refused is True))


def _read(context: StudyContext, requests: Sequence[Request], asked: np.ndarray, says: Callable[[Verdict], bool]) -> np.ndarray:
    """(n,) bool: what the oracle says of the whole answers that are asked for, (n,) bool; False of all others."""
    found = np.zeros(len(requests), dtype=bool)
    answers = judged(context, [r for r, one in zip(requests, asked, strict=True) if one], whole=False)
    found[asked] = [says(a.verdict) for a in answers]
    return found


def _by_first_token(context: StudyContext, requests: Sequence[Request]) -> bool:
    """Whether the oracle knows a refusal by the first token alone."""
    return bool(requests) and (
        all(context.oracle_of(r.prompt) == "first_token" for r in requests)
        and not context.reasoning.may_begin_with(context.recipe.model.target_words)
    )


@dataclass(frozen=True)
class Ablation:
    """One asked intervention, as a row of `ablations` names it."""

    request: Request
    condition: Condition
    k: int | None = None
    draw: int | None = None
    seed: int | None = None
    tau: float | None = None
    n_uncertain: int | None = None
    about: str = ""
    """What else tells it from others of its condition on its prompt; a table of its own says so."""
    edits: EditSet | None = None
    """What a person listed, of which the request is made."""

    @property
    def held(self) -> FeatureSet | EditSet:
        """The features that it holds."""
        return self.request.features if self.edits is None else self.edits


def ablation_rows(
    context: StudyContext,
    stage: str,
    asked: Sequence[Ablation],
    more_sets: Iterable[FeatureSet] = (),
    answers: Sequence[Judged] | None = None,
) -> list[Rows]:
    """Answers what is asked: rows of `ablations`, `verdicts` (the oracle's) and `feature_sets` (with `more_sets` in it).

    The ids are content hashes, which publishing numbers. `answers` are those to what is asked, where they are known.
    """
    answers = judged(context, [a.request for a in asked]) if answers is None else answers
    sets = chain((a.held for a in asked), more_sets)
    prompts = [int(context.prompt_ids[a.request.prompt]) for a in asked]
    ablation_ids = [ablation_id(context, stage, a) for a in asked]
    ablations: Columns = {
        "ablation_id": ablation_ids,
        "prompt_id": prompts,
        "set_id": [a.held.key if len(a.held) else None for a in asked],
        "stage": [stage] * len(asked),
        **condition_columns([a.condition for a in asked]),
        "seed": [a.seed for a in asked],
        "draw": [a.draw for a in asked],
        "k": [a.k for a in asked],
        "tau": [a.tau for a in asked],
        "n_uncertain": [a.n_uncertain for a in asked],
        "p_refusal_token": [a.p_refusal_token for a in answers],
        "margin": [a.margin for a in answers],
        "first_token": [a.first_token for a in answers],
        "completion": [a.completion for a in answers],
    }
    return [
        Rows.of(ABLATIONS, ablations),
        verdict_rows(ablation_ids, [a.judge for a in answers], [a.verdict for a in answers]),
        set_rows(context, sets),
    ]


def ablation_id(context: StudyContext, stage: str, asked: Ablation) -> int:
    """What stands for an ablation until publishing numbers the rows."""
    a, prompt_id = asked, int(context.prompt_ids[asked.request.prompt])
    about = f"|{a.about}" if a.about else ""
    return content_id(f"{stage}|{tuple(a.condition)}|{a.k}|{a.tau}|{a.draw}|{a.seed}|{prompt_id}{about}")


def condition_columns(asked: Sequence[Condition]) -> dict[str, list[str | None]]:
    """The columns of `ablations` that name what is ablated."""
    return {
        "method": [one.method for one in asked],
        "part": [one.part for one in asked],
        "control": [one.control for one in asked],
    }


def feature_columns(context: StudyContext, features: Sequence[Feature | None], prefix: str = "") -> Columns:
    """The columns that name features; null for None."""
    return {
        f"{prefix}sae_id": [None if one is None else context.sae_ids[one[0]] for one in features],
        f"{prefix}layer": [None if one is None else layer_of(one[0]) for one in features],
        f"{prefix}feature_id": [None if one is None else one[1] for one in features],
    }


def content_id(name: str) -> int:
    """60 bits that stand for a name until publishing numbers the rows."""
    return int(sha256_text(name)[:15], 16)


def verdict_rows(ablation_ids: Sequence[int], judges: Sequence[str], verdicts: Sequence[Verdict]) -> Rows:
    """Rows of `verdicts`, and whose they are."""
    columns: Columns = {
        "ablation_id": ablation_ids,
        "judge": judges,
        "refused": [v.refused for v in verdicts],
        "degenerate": [v.degenerate for v in verdicts],
        "degenerate_rule": [v.rule for v in verdicts],
        "flipped": [v.flipped for v in verdicts],
        "score": [v.score for v in verdicts],
    }
    return Rows.of(VERDICTS, columns)


def set_rows(context: StudyContext, sets: Iterable[FeatureSet | EditSet]) -> Rows:
    """Rows of `feature_sets`; each set once, the empty one left out."""
    distinct = {s.key: s for s in sets if len(s)}
    features = np.concatenate([NO_FEATURES.rows, *(s.rows for s in distinct.values())])
    columns: Columns = {
        "set_id": np.repeat(np.array(list(distinct), dtype=np.int64), [len(s) for s in distinct.values()]),
        "sae_id": context.sae_id_column(features["sae"]),
        "layer": layer_of(features["sae"]),
        "feature_id": features["feature_id"],
        "value": features["value"],
        "positions": [place for s in distinct.values() for place in (s.places if isinstance(s, EditSet) else [None] * len(s))],
    }
    return Rows.of(FEATURE_SETS, columns)
