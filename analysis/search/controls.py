"""What the candidates are held against: as many random features that fire on the prompt (R15)."""

from collections.abc import Iterator, Sequence
from itertools import product

import duckdb

import queries
from analysis.engine.requests import FeatureSet, Request
from analysis.search.answers import Ablation, ablation_rows
from analysis.search.candidates import ks, shards_of_split
from analysis.stage import Stage, Work
from warehouse.runs import Rows


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    bench, shards = work.bench, shards_of_split(work.bench.study)
    with bench.sql([work.parents[stage] for stage in ("ingest", "alignments")]) as con:
        for name in missing:
            yield name, ablation_rows(bench, work.spec.stage, _random_draws(work, con, shards[name]))


def _random_draws(work: Work, con: duckdb.DuckDBPyConnection, prompts: Sequence[int]) -> list[Ablation]:
    """Random features that fire on the prompt and are no candidate: K a layer, or all that the prompt has if fewer."""
    bench, settings = work.bench, work.bench.recipe.candidates
    seed, n_draws = bench.recipe.compute.seed, bench.recipe.controls.random_draws
    drawn = queries.run(
        con,
        "random_active",
        prompts=[int(bench.prompt_ids[p]) for p in prompts],
        pool=settings.cap,
        exclude_layers=list(settings.exclude_layers),
        draws=n_draws,
        seed=seed,
    ).fetchnumpy()
    asked = []
    for prompt, draw in product(prompts, range(n_draws)):
        mine = (drawn["prompt_id"] == bench.prompt_ids[prompt]) & (drawn["draw"] == draw)
        layer, feature_id, rank = (drawn[name][mine] for name in ("layer", "feature_id", "rank"))
        for k in ks(settings):
            features = FeatureSet.of(layer[rank <= k], feature_id[rank <= k])
            asked.append(Ablation(Request(prompt, features), "random", k=k, draw=draw, seed=seed))
    return asked


STAGE = Stage(
    name="controls",
    parents=("alignments", "ingest"),
    sections=("candidates", "controls", "generation", "verdicts", "capture"),
    tables=("feature_sets", "ablations", "verdicts"),
    shards=lambda study: list(shards_of_split(study)),
    compute=_compute,
)
