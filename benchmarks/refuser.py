"""Minimal sets from all that fires, on SmolLM2 taught to refuse: with that study's SAEs, or 12 of 16,384 random directions.

    python -m benchmarks.refuser [--random]

Part of `make bench-search`, with the study's own SAEs if `saelake train-saes smollm2-refusal` has made them. Random directions
mean nothing, and what fires on a prompt is then 23,000 features: a search may take ten minutes.
"""

import argparse
import json
import statistics
from collections.abc import Sequence

import torch

import saelake
from benchmarks.harness import Report
from benchmarks.subjects import random_saes
from saelake.analysis.judges.degenerate import is_degenerate
from saelake.analysis.judges.named.phrases import plain_phrases, refuses
from saelake.analysis.search.ranking import PASSES_OF_A_GRADIENT
from saelake.ingest.recipe import Compute, Recipe, load_recipe
from saelake.ingest.saes.refs import list_saes
from saelake.ingest.saes.sae import Sae, load_sae
from saelake.ingest.subject import Subject
from saelake.warehouse.errors import UserError

LAYERS = range(10, 22)
WIDTH = 16384
N_PROMPTS = 6
N_NEW = 16
PHRASES = plain_phrases()


def measure(report: Report, threads: int, n_prompts: int = N_PROMPTS, random: bool = False) -> None:
    """Answers that a search for a minimal set from all features that fire on a prompt asks for, and the set's size."""
    recipe = load_recipe("smollm2-refusal")
    subject = Subject.load(recipe.model, Compute(device="cpu", threads=threads))
    texts = test_prompts(recipe)
    try:
        saes = random_ones(subject, texts) if random else [load_sae(ref) for ref in list_saes(recipe)]
    except UserError:  # their folders are not there
        report.not_run("minimal sets from all that fires", "saelake train-saes smollm2-refusal makes the SAEs, in ten minutes")
        return
    engine = saelake.Engine(subject, saes)
    kind = "random directions" if random else "latents, its own"
    report.line(
        f"\nminimal sets from all features that fire: SmolLM2 taught to refuse (recipe smollm2-refusal), {len(saes)} SAEs of "
        f"{saes[0].width:,} {kind}, on layers {saes[0].layer} to {saes[-1].layer}; "
        f"an evaluation is an answer of at most {N_NEW} tokens"
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


def random_ones(subject: Subject, texts: Sequence[str]) -> list[Sae]:
    """JumpReLU SAEs of random directions, L0 60 on these prompts, orthogonal to the longest residual."""
    token_ids = [subject.encode(text).token_ids for text in texts]
    return list(random_saes(subject, token_ids, LAYERS, WIDTH, across_sink=True).values())


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
    parser.add_argument("--random", action="store_true", help=f"{len(LAYERS)} SAEs of {WIDTH:,} random directions")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measure(Report("refuser", "Minimal sets from all that fires"), arguments.threads, arguments.prompts, arguments.random)


if __name__ == "__main__":
    main()
