"""Stage 1 (R5): the top K features of each SAE by cosine with a refusal direction, ablated together, for growing K.

Where the recipe asks for it, each prompt's own top K by attribution too.
"""

from collections.abc import Iterator, Mapping, Sequence

import duckdb
import numpy as np

from saelake import queries
from saelake.analysis.engine.library import Engine
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.search.answers import Ablation, ablation_rows
from saelake.analysis.search.ranking import engine_of, ranked
from saelake.analysis.stage import Condition, Stage, Work, searched_split
from saelake.analysis.study_context import StudyContext
from saelake.ingest.plan.work import passes_a_prompt
from saelake.ingest.recipe import Candidates
from saelake.ingest.runs import prompt_shards
from saelake.ingest.saes.refs import layer_of
from saelake.ingest.study import Study
from saelake.warehouse.runs import Rows

SHARD_PASSES = 1 << 16
"""That a shard takes at most, as far as the recipe tells: at the paper's sizes some minutes of a GPU, and eight prompts of the
search for minimal sets. A kill loses no more, but of that search what has begun (`minimal.AT_ONCE`): what has landed is the
journal of what the oracle has answered."""
OWN, CHOSEN, ATTRIBUTED = (Condition("top_k", by) for by in ("own", "chosen", "attribution"))


def pool(con: duckdb.DuckDBPyConnection, settings: Candidates, direction: str) -> dict[str, np.ndarray]:
    """The candidates up to the recipe's cap: columns layer, sae_id, feature_id and rank (from 1, in each SAE)."""
    found = queries.run(con, "candidates", k=settings.cap, exclude_layers=list(settings.exclude_layers), direction=direction)
    return found.fetchnumpy()


def pool_by_sae(con: duckdb.DuckDBPyConnection, settings: Candidates, sae_ids: Mapping[int, str]) -> dict[int, np.ndarray]:
    """Number of an SAE -> ids of its candidates up to the cap, by any of the recipe's directions; sorted."""
    pools = [pool(con, settings, direction) for direction in settings.directions]
    return {n: np.unique(np.concatenate([p["feature_id"][p["sae_id"] == one] for p in pools])) for n, one in sae_ids.items()}


def ks(settings: Candidates) -> range:
    """The numbers of features per SAE that are tried."""
    return range(settings.step, settings.cap + 1, settings.step)


def shards_of_split(study: Study, stage: str = "") -> dict[str, Sequence[int]]:
    """The prompts to ablate on, in slices; of a stage that computes much for each prompt in smaller ones."""
    passes = passes_a_prompt(study.recipe).get(stage, 1)
    size = min(study.recipe.capture.shard_prompts, max(int(SHARD_PASSES / passes), 1) if passes else SHARD_PASSES)
    return prompt_shards(study.prompts_of(study.recipe.candidates.split), size)


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context, settings = work.context, work.context.recipe.candidates
    sets: dict[tuple[str, int], FeatureSet] = {}
    with work.sql("alignments") as con:
        for direction in settings.directions:
            found = pool(con, settings, direction)
            for k in ks(settings):
                chosen = found["rank"] <= k
                sets[direction, k] = context.feature_set(found, chosen)
    shards = shards_of_split(context.study, "candidates")
    engine = engine_of(context) if settings.attribution else None
    for name in missing:
        asked = [
            Ablation(Request(prompt, features), Condition("top_k", direction), k=k)
            for (direction, k), features in sets.items()
            for prompt in shards[name]
        ]
        asked += [one for prompt in shards[name] for one in (_attributed(context, engine, prompt) if engine else ())]
        yield name, ablation_rows(context, work.spec.stage, asked)


def _attributed(context: StudyContext, engine: Engine, prompt: int) -> Iterator[Ablation]:
    """What fires on a prompt and holds its target tokens up, to first order: the first K features of each SAE, for growing K."""
    settings = context.recipe.candidates
    saes, ids, falls = ranked(context, engine, prompt)
    searched = ~np.isin(layer_of(saes), settings.exclude_layers) & (falls > 0)
    saes, ids, falls = saes[searched], ids[searched], falls[searched]
    order = np.lexsort((ids, -falls, saes))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.searchsorted(saes[order], saes[order])
    for k in ks(settings):
        features = FeatureSet.of(saes[rank < k], ids[rank < k])
        yield Ablation(Request(prompt, features), ATTRIBUTED, k=k)


STAGE = Stage(
    name="candidates",
    parents=("alignments", "prompts"),
    splits=searched_split,
    sections=("candidates", "generation", "verdicts", "capture"),
    tables=("feature_sets", "ablations", "verdicts"),
    shards=lambda study: list(shards_of_split(study, "candidates")),
    compute=_compute,
    conditions=("top_k",),
    compared=((OWN, CHOSEN),),
)
