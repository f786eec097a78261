"""Features held at positive values on control prompts (R14): at the first token only, as the paper does, and at every token."""

from collections.abc import Iterator, Sequence

from saelake import queries
from saelake.analysis.engine.requests import Request
from saelake.analysis.search.answers import Ablation, ablation_rows
from saelake.analysis.stage import Condition, Stage, Work, prompt_shards, searched_split
from saelake.ingest.study import Study
from saelake.warehouse.runs import Rows

FIRST_TOKEN = (0,)
AT_FIRST_TOKEN, AT_ALL_TOKENS = Condition("clamp", "first_token"), Condition("clamp", "all_tokens")


def _shards(study: Study) -> dict[str, Sequence[int]]:
    controls = study.numbers(study.recipe.candidates.split, "control")[: study.recipe.steering.prompts]
    return prompt_shards(controls, study.recipe.capture.shard_prompts)


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    bench, settings, shards = work.bench, work.bench.recipe.steering, _shards(work.bench.study)
    with work.sql("inert", "waking", "waking_graph") as con:
        chosen = queries.run(con, "steering_features", features_are=settings.features, n=settings.n_features).fetchnumpy()
    for name in missing:
        asked: list[Ablation] = []
        for draw, value in enumerate(settings.values if len(chosen["layer"]) else ()):
            held = bench.feature_set(chosen, value=value)
            for prompt in shards[name]:
                asked.append(Ablation(Request(prompt, held, positions=FIRST_TOKEN), AT_FIRST_TOKEN, draw=draw))
                asked.append(Ablation(Request(prompt, held), AT_ALL_TOKENS, draw=draw))
        yield name, ablation_rows(bench, work.spec.stage, asked)


STAGE = Stage(
    name="steering",
    parents=("inert", "waking", "waking_graph", "prompts"),
    splits=searched_split,
    sections=("steering", "candidates", "generation", "verdicts", "capture"),
    tables=("feature_sets", "ablations", "verdicts"),
    shards=lambda study: list(_shards(study)),
    compute=_compute,
    names=("clamp",),
)
