"""Toy runs that go through the same door as real ones: an ingest of a few hundred rows and a stage that builds on it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow.compute as pc

from saelake.warehouse.lake import Lake
from saelake.warehouse.records import INDEX_MASK, RunRecord, RunSpec
from saelake.warehouse.runs import Plan, Rows, ensure_run
from saelake.warehouse.schema import ABLATIONS, FEATURE_SETS, VERDICTS
from saelake.warehouse.synth import CODE_VERSION, Shape, plan

SHAPE = Shape(n_prompts=24, tokens_per_prompt=6, n_layers=2, width=128, l0=6, shard_prompts=6)
ANSWER_TABLES = (FEATURE_SETS.name, ABLATIONS.name, VERDICTS.name)
SHARDS = ("a", "b", "c")


def ingest_spec(seed: int = 0) -> RunSpec:
    return RunSpec("ingest", f"toy{seed}", {"code": CODE_VERSION, "device": "cpu"}, seed=seed)


def answers_spec(seed: int = 0) -> RunSpec:
    return RunSpec("candidates", f"toy{seed}", {"device": "cpu"}, (ingest_spec(seed).run_id,), seed)


def ingest(lake: Lake, seed: int = 0, **options: Any) -> RunRecord:
    """A synthetic ingest run."""
    return ensure_run(lake, ingest_spec(seed), plan(SHAPE, ingest_spec(seed)), **options)


def ingest_with_two_saes(lake: Lake, shape: Shape = SHAPE, **options: Any) -> RunRecord:
    """A synthetic ingest run in which every layer has two SAEs, the second half as wide as the first."""
    spec = RunSpec("ingest", "two", {"code": CODE_VERSION, "device": "cpu", "shape": asdict(shape)})
    other = replace(shape, width=max(shape.width // 2, 1), l0=shape.l0 / 2)
    plans = [plan(shape, spec), plan(other, replace(spec, seed=1))]

    def compute(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        both = ([*one.compute(missing)] for one in plans)
        for (name, rows), (_, more) in zip(*both, strict=True):
            of_prompts = {"prompts", "tokens"}
            yield name, [*rows, *(_renumbered(one, spec) for one in more if one.table not in of_prompts)]

    return ensure_run(lake, spec, replace(plans[0], compute=compute), **options)


def _renumbered(part: Rows, spec: RunSpec) -> Rows:
    """The rows with prompt ids of this run."""
    if "prompt_id" not in part.rows.column_names:
        return part
    ids = pc.add(pc.bit_wise_and(part.rows["prompt_id"], INDEX_MASK), spec.tag << 32)
    return replace(part, rows=part.rows.set_column(part.rows.column_names.index("prompt_id"), "prompt_id", ids))


def answers(lake: Lake, seed: int = 0, **options: Any) -> RunRecord:
    """A run of ablations with their sets and verdicts, on the prompts of the ingest run."""
    return ensure_run(lake, answers_spec(seed), answers_plan(seed), **options)


def answers_plan(seed: int = 0, shards: Sequence[str] = SHARDS) -> Plan:
    def compute(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        for name in missing:
            yield name, answer_rows(seed, SHARDS.index(name))

    return Plan(shards, compute, ANSWER_TABLES)


def answer_rows(seed: int, shard: int) -> list[Rows]:
    """Eight ablations of each shard; the shards share some of their feature sets. Ids are made-up content hashes."""
    first = ingest_spec(seed).tag << 32
    asked = [(8 * shard + i, (8 * shard + i) % 5) for i in range(8)]
    sets = sorted({number for _, number in asked})
    members = [(number, layer, feature) for number in sets for layer in (0, 1) for feature in range(number + 1)]
    ablations = {
        "ablation_id": [10**15 + 7919 * prompt % 10007 for prompt, _ in asked],
        "prompt_id": [first + prompt for prompt, _ in asked],
        "set_id": [10**14 - number if number else None for _, number in asked],
        "stage": ["candidates"] * len(asked),
        "method": ["top_k" if number else "none" for _, number in asked],
        "part": ["own" if number else None for _, number in asked],
        "control": [None] * len(asked),
        "seed": [None] * len(asked),
        "draw": [None] * len(asked),
        "k": [number or None for _, number in asked],
        "p_refusal_token": [prompt / 24 for prompt, _ in asked],
        "first_token": ["I"] * len(asked),
        "completion": [f"answer {prompt}" for prompt, _ in asked],
    }
    feature_sets = {
        "set_id": [10**14 - number for number, *_ in members],
        "sae_id": [f"synth{seed}/layer-{layer:02d}" for _, layer, _ in members],
        "layer": [layer for _, layer, _ in members],
        "feature_id": [feature for *_, feature in members],
        "value": [0.0] * len(members),
    }
    verdicts = {
        "ablation_id": ablations["ablation_id"],
        "judge": ["first_token"] * len(asked),
        "refused": [prompt % 2 == 0 for prompt, _ in asked],
        "degenerate": [False] * len(asked),
        "degenerate_rule": [None] * len(asked),
        "flipped": [prompt % 2 == 1 for prompt, _ in asked],
        "score": [0.5] * len(asked),
    }
    return [Rows.of(ABLATIONS, ablations), Rows.of(FEATURE_SETS, feature_sets), Rows.of(VERDICTS, verdicts)]
