"""What gradients say of every active feature of the refused prompts, to be held against what ablating it alone does."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from saelake.analysis.engine.attribution import attribution
from saelake.analysis.engine.library import Engine
from saelake.analysis.search.candidates import shards_of_split
from saelake.analysis.search.critical import refused_prompts
from saelake.analysis.search.ranking import engine_of
from saelake.analysis.stage import Stage, Work, searched_split
from saelake.ingest.saes.refs import layer_of
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import ATTRIBUTIONS


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context, shards = work.context, shards_of_split(work.context.study)
    with work.sql() as con:
        refused = set(refused_prompts(work, con))
    engine = engine_of(context)
    for name in missing:
        prompts = [prompt for prompt in shards[name] if prompt in refused]
        methods = {"gradient": 0, "integrated_gradients": context.recipe.atlas.steps}
        yield name, [_rows(work, engine, prompt, method, steps) for prompt in prompts for method, steps in methods.items()]


def _rows(work: Work, engine: Engine, prompt: int, method: str, steps: int) -> Rows:
    """Each feature's effects, summed over the tokens."""
    by_token = attribution(engine, [work.context.token_ids[prompt]], steps=steps).combine_chunks()
    summed = by_token.group_by(["sae_id", "feature_id"], use_threads=False).aggregate([("effect", "sum")])
    sae_ids = summed["sae_id"].cast(pa.string()).to_pylist()
    columns = {
        "method": [method] * len(sae_ids),
        "prompt_id": np.full(len(sae_ids), work.context.prompt_ids[prompt]),
        "sae_id": sae_ids,
        "layer": layer_of(work.context.sae_numbers(sae_ids)),
        "feature_id": summed["feature_id"],
        "effect": summed["effect_sum"],
    }
    return Rows.of(ATTRIBUTIONS, columns)


STAGE = Stage(
    name="atlas_attributions",
    parents=("baseline", "prompts", "activations"),
    splits=searched_split,
    sections=("candidates", "atlas", "verdicts", "capture"),
    tables=("attributions",),
    shards=lambda study: list(shards_of_split(study)),
    compute=_compute,
)
