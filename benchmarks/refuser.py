"""Minimal sets from all that fires, at a real model's shape: SmolLM2 taught to refuse, with 12 SAEs of 16,384 random directions.

    python -m benchmarks.refuser

Part of `make bench-search`. Random directions mean nothing; what is measured is how many answers a search asks for.
"""

import argparse
import json
import statistics
from collections.abc import Sequence

import torch

import saelake
from benchmarks.harness import Report
from benchmarks.subjects import L0, random_saes
from saelake.analysis.judges.degenerate import is_degenerate
from saelake.analysis.judges.named.phrases import plain_phrases, refuses
from saelake.analysis.search.ranking import PASSES_OF_A_GRADIENT
from saelake.ingest.recipe import Compute, Recipe, load_recipe
from saelake.ingest.subject import Subject

LAYERS = range(10, 22)
WIDTH = 16384
N_PROMPTS = 6
N_NEW = 16
PHRASES = plain_phrases()


def measure(report: Report, threads: int, n_prompts: int = N_PROMPTS) -> None:
    """Answers that a search for a minimal set from all features that fire on a prompt asks for, and the set's size."""
    recipe = load_recipe("smollm2-refusal")
    subject = Subject.load(recipe.model, Compute(device="cpu", threads=threads))
    texts = test_prompts(recipe)
    saes = random_saes(subject, [subject.encode(text).token_ids for text in texts], LAYERS, WIDTH, across_sink=True)
    engine = saelake.Engine(subject, list(saes.values()))
    report.line(
        f"\nminimal sets from all features that fire: SmolLM2 taught to refuse (recipe smollm2-refusal), random JumpReLU SAEs of "
        f"{WIDTH:,} latents, L0 {L0}, on layers {LAYERS[0]} to {LAYERS[-1]}; an evaluation is an answer of at most {N_NEW} tokens"
    )
    spent, sizes = [], []
    for text in refused(engine, texts)[:n_prompts]:
        found = saelake.minimal_set(engine, text, None, flips, max_new_tokens=N_NEW)
        n_active = len(set(zip(*engine.activations([text]).select(["sae_id", "feature_id"]).to_pydict().values(), strict=True)))
        result = f"a set of {len(found.features)}" if found.flips else "no set"
        spent.append(found.n_evaluations + PASSES_OF_A_GRADIENT)
        report.line(f"  {n_active:,} features fire: {result} after {spent[-1]} evaluations, those of a gradient among them")
        sizes += [len(found.features)] if found.flips else []
    report.ratio("minimal_from_all_found", len(sizes) / len(spent), "none")
    report.ratio("minimal_from_all_evaluations", statistics.mean(spent), "<= 300")
    report.ratio("minimal_from_all_evaluations_largest", max(spent), "none")
    if sizes:
        report.ratio("minimal_from_all_size", statistics.median(sizes), "none")


def test_prompts(recipe: Recipe) -> list[str]:
    """One harmful prompt of the test split in each of its wordings."""
    file = recipe.prompts[0].file
    assert file is not None, "it is in the repository"
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    mine = [row for row in rows if (row["label"], row["split"]) == ("harmful", "test")]
    return list({row["wording"]: row["instruction"] for row in reversed(mine)}.values())


def refused(engine: saelake.Engine, texts: Sequence[str]) -> list[str]:
    """Those of some prompts that the model refuses."""
    answers = engine.answer(texts, max_new_tokens=N_NEW).texts
    return [text for text, answer in zip(texts, answers, strict=True) if refuses(answer, PHRASES)]


def flips(answer: str) -> bool:
    """As the study's oracle says: neither a refusal nor nonsense."""
    return not refuses(answer, PHRASES) and not is_degenerate(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=N_PROMPTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measure(Report("refuser", "Minimal sets from all that fires"), arguments.threads, arguments.prompts)


if __name__ == "__main__":
    main()
