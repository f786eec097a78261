"""What the candidates are held against: nothing, the direction projected out (R3), as many random active features (R15)."""

from collections.abc import Iterator, Sequence

import duckdb
import numpy as np

import queries
from analysis.engine.requests import DirectionEdit, FeatureSet, Request
from analysis.search.answers import Ablation, ablation_rows
from analysis.search.candidates import ks, shards_of_split
from analysis.stage import Stage, Work
from warehouse.runs import Rows


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    bench, shards = work.bench, shards_of_split(work.bench.study)
    with bench.sql([work.parents[stage] for stage in ("ingest", "direction", "alignments")]) as con:
        vector = con.execute("select vector from directions where chosen").fetchone()
        assert vector is not None, "a direction run without a chosen layer"
        direction = DirectionEdit(np.array(vector[0], dtype=np.float32), tuple(range(bench.subject.n_layers)))
        for name in missing:
            asked = [Ablation(Request(p), "none") for p in shards[name]]
            asked += [Ablation(Request(p, direction=direction), "direction") for p in shards[name]]
            asked += _random_draws(work, con, shards[name])
            yield name, ablation_rows(bench, work.spec.stage, asked)


def _random_draws(work: Work, con: duckdb.DuckDBPyConnection, prompts: Sequence[int]) -> list[Ablation]:
    """Random features that fire on the prompt and are no candidate: K a layer, as many as the prompt has if fewer."""
    bench, settings = work.bench, work.bench.recipe.candidates
    seed, n_draws = bench.recipe.compute.seed, bench.recipe.controls.random_draws
    asked = []
    for prompt in prompts if n_draws else ():
        drawn = queries.run(
            con,
            "random_active",
            prompt_id=int(bench.prompt_ids[prompt]),
            pool=settings.cap,
            exclude_layers=list(settings.exclude_layers),
            directions=",".join(settings.directions),
            draws=n_draws,
            seed=seed,
        ).fetchnumpy()
        for draw in range(n_draws):
            for k in ks(settings):
                chosen = (drawn["draw"] == draw) & (drawn["rank"] <= k)
                features = FeatureSet.of(drawn["layer"][chosen], drawn["feature_id"][chosen])
                asked.append(Ablation(Request(prompt, features), "random", k=k, draw=draw, seed=seed))
    return asked


STAGE = Stage(
    name="controls",
    parents=("direction", "alignments", "ingest"),
    sections=("candidates", "controls", "generation", "capture"),
    tables=("feature_sets", "ablations"),
    shards=lambda study: list(shards_of_split(study)),
    compute=_compute,
)
