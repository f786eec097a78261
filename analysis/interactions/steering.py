"""Features held at positive values on control prompts (R14): at the first token only, as the paper does, and at every token.

The values are the recipe's, the same for all features as in the paper, and levels of what each feature's own activations are: one
value may be far beyond what a feature ever does and nothing much for another. The answers are read whole: an oracle that goes by
the first token takes "Sure, but I cannot" for an answer, so that phrases reads them beside it.
"""

from collections.abc import Iterator, Mapping, Sequence

import duckdb
import numpy as np

from saelake import queries
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.search.answers import Ablation, ablation_id, ablation_rows, answer_to, judged, verdict_rows
from saelake.analysis.stage import Condition, Stage, Work, searched_split
from saelake.ingest.runs import prompt_shards
from saelake.ingest.study import Study
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import CLAMPS

FIRST_TOKEN = (0,)
VALUES, LEVELS = "clamp", "clamp_scaled"
FULL = "phrases"
"""Who reads answers whole where the oracle does not."""


def _shards(study: Study) -> dict[str, Sequence[int]]:
    controls = study.prompts_of(study.recipe.candidates.split, "control")[: study.recipe.steering.prompts]
    return prompt_shards(controls, study.recipe.capture.shard_prompts)


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context, settings, shards = work.context, work.context.recipe.steering, _shards(work.context.study)
    with work.sql() as con:
        chosen = queries.run(con, "steering_features", features_are=settings.features, n=settings.n_features).fetchnumpy()
        levels = [_at_level(work, con, chosen, level) for level in settings.levels] if len(chosen["layer"]) else []
    held = {(VALUES, draw): context.feature_set(chosen, value=value) for draw, value in enumerate(settings.values)}
    held |= {(LEVELS, draw): features for draw, features in enumerate(levels)}
    for name in missing:
        asked = [
            one
            for (method, draw), features in held.items()
            if len(features)
            for prompt in shards[name]
            for one in (
                Ablation(Request(prompt, features, positions=FIRST_TOKEN), Condition(method, "first_token"), draw=draw),
                Ablation(Request(prompt, features), Condition(method, "all_tokens"), draw=draw),
            )
        ]
        yield name, _rows(work, asked)


def _at_level(work: Work, con: duckdb.DuckDBPyConnection, chosen: Mapping[str, np.ndarray], level: float) -> FeatureSet:
    asked = {"sae_ids": list(map(str, chosen["sae_id"])), "feature_ids": chosen["feature_id"].tolist(), "level": level}
    found = con.execute(queries.step("own_levels"), asked).fetchnumpy()
    # Four digits, because the last ones of an activation depend on the batch it was captured in, and a set's id on its values.
    values = [float(f"{value:.4g}") for value in found["value"].tolist()]
    return FeatureSet.of(work.context.sae_numbers(found["sae_id"]), found["feature_id"], values)


def _rows(work: Work, asked: Sequence[Ablation]) -> list[Rows]:
    context, stage = work.context, work.spec.stage
    answers = judged(context, [one.request for one in asked])
    rows = ablation_rows(context, stage, asked, answers=answers)
    ids = [ablation_id(context, stage, one) for one in asked]
    scaled = [(i, one.draw) for i, one in zip(ids, asked, strict=True) if one.condition.method == LEVELS]
    levels = [context.recipe.steering.levels[draw] for _, draw in scaled if draw is not None]
    rows.append(Rows.of(CLAMPS, {"ablation_id": [i for i, _ in scaled], "level": levels}))
    if asked and context.oracles["control"] == "first_token":
        said = [
            answer_to(context, one.request.prompt, a.first_token, a.p_refusal_token, a.completion)
            for one, a in zip(asked, answers, strict=True)
        ]
        rows.append(verdict_rows(ids, [FULL] * len(ids), context.judge(FULL)(said)))
    return rows


STAGE = Stage(
    name="steering",
    parents=("inert", "waking", "waking_graph", "prompts", "activations"),
    splits=searched_split,
    sections=("steering", "candidates", "generation", "verdicts", "capture"),
    tables=("feature_sets", "ablations", "verdicts", "clamps"),
    shards=lambda study: list(_shards(study)),
    compute=_compute,
    code_version=2,
    conditions=(VALUES, LEVELS),
)
