"""What fires on the model's own answers (capture.answer_tokens): clean, and with the direction of the behaviour projected out.

An ablation of a person's own (`saelake ablate`) covers its answers too. Rows stand in tables of their own, so that no question
about prompts changes with them.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from saelake import queries
from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.requests import Request, with_answer
from saelake.analysis.search.candidates import shards_of_split
from saelake.analysis.search.directions import chosen_everywhere
from saelake.analysis.stage import Stage, Work, searched_split
from saelake.analysis.study_context import StudyContext
from saelake.ingest.recipe import Recipe
from saelake.ingest.saes.refs import layer_of
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import ANSWER_ACTIVATIONS, ANSWER_TOKENS

TABLES = ("answer_tokens", "answer_activations")
ROLE = "answer"
AT_ONCE = 64
"""Answers whose activations are held at a time."""


def tables_of(recipe: Recipe) -> tuple[str, ...]:
    """The tables of a stage that covers its answers, where the recipe asks for it."""
    return TABLES if recipe.capture.answer_tokens else ()


def answer_rows(context: StudyContext, asked: Sequence[Request], ablation_ids: Sequence[int]) -> list[Rows]:
    """The tokens of the answers to what is asked, as many as the recipe says at most, and what fires on them."""
    n_most = context.recipe.capture.answer_tokens
    found: list[Rows] = []
    for start in range(0, len(asked) if n_most else 0, AT_ONCE):
        some = asked[start : start + AT_ONCE]
        context.engine.check_positions(some, n_most)
        answers = context.engine.answer(some, n_most).token_ids
        found += _rows(context, some, ablation_ids[start : start + AT_ONCE], answers)
    return found


def _rows(
    context: StudyContext, asked: Sequence[Request], ablation_ids: Sequence[int], answers: Sequence[Sequence[int]]
) -> list[Rows]:
    lengths = np.array([len(context.token_ids[one.prompt]) for one in asked])
    whole = [[*context.token_ids[one.prompt], *answer] for one, answer in zip(asked, answers, strict=True)]
    requests = [with_answer(one, i, n, answers[i]) for i, (one, n) in enumerate(zip(asked, lengths.tolist(), strict=True))]
    engine = AblationEngine(context.subject, context.saes, whole)
    fired = engine.activations(requests, dict.fromkeys(context.saes))
    kept = fired.pos >= lengths[fired.request]
    request, sae = fired.request[kept], fired.sae[kept]
    ids, prompts = np.array(ablation_ids, dtype=np.int64), context.prompt_ids[[one.prompt for one in asked]]
    activations = {
        "sae_id": context.sae_id_column(sae),
        "layer": layer_of(sae),
        "feature_id": fired.feature_id[kept],
        "ablation_id": ids[request],
        "prompt_id": prompts[request],
        "pos": fired.pos[kept],
        "activation": fired.activation[kept],
    }
    n_of = [len(answer) for answer in answers]
    flat = [token for answer in answers for token in answer]
    tokens = {
        "ablation_id": np.repeat(ids, n_of),
        "prompt_id": np.repeat(prompts, n_of),
        "pos": np.concatenate([np.arange(n, n + m) for n, m in zip(lengths, n_of, strict=True)]),
        "token_id": flat,
        "token": context.subject.spelling.texts(flat),
        "piece": context.subject.spelling.pieces(flat),
        "role": [ROLE] * len(flat),
    }
    return [Rows.of(ANSWER_TOKENS, tokens), Rows.of(ANSWER_ACTIVATIONS, activations)]


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context, shards = work.context, shards_of_split(work.context.study)
    with work.sql("direction", "baseline", "prompts") as con:
        direction = chosen_everywhere(context, con)
        assert direction is not None, "without one the analysis ended before this stage"
        found = con.execute(queries.step("first_answers")).fetchall()
        known = {(prompt_id, condition): ablation_id for prompt_id, condition, ablation_id in found}
    for name in missing:
        asked = [Request(p, direction=edit) for edit in (None, direction) for p in shards[name]]
        ids = [known[int(context.prompt_ids[p]), condition] for condition in ("none", "direction") for p in shards[name]]
        yield name, answer_rows(context, asked, ids)


STAGE = Stage(
    name="answer_tokens",
    parents=("baseline", "direction", "prompts", "activations"),
    splits=searched_split,
    sections=("generation",),
    tables=TABLES,
    shards=lambda study: list(shards_of_split(study)),
    compute=_compute,
    identity=lambda study: {"answer_tokens": study.recipe.capture.answer_tokens},
)
