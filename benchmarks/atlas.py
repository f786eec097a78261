"""make bench-atlas: the atlas's passes beside a literal loop on SAELens, and what each method scores on the embedded study.

    python -m benchmarks.atlas --lake lake

The lake is one that `make atlas` wrote. Contenders alternate in one process. The section "atlas" of docs/benchmarks.md is
replaced.
"""

import argparse
import contextlib
import io
from itertools import combinations

import duckdb
import numpy as np
import torch

import saelake
from benchmarks.harness import Report, alternated, clock_of
from benchmarks.organism import Organism, load
from benchmarks.published import bridge_hooks, decode_plus_error, saelens_bridge
from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.queries.output import show

PACKAGES = ("torch", "transformers", "sae-lens", "duckdb")
N_LITERAL = 50
N_BARE = 100
LAST_TOKENS = 5
SAME = 1e-3
"""Difference of logits up to which two contenders have done the same."""
RUNS = "select stage, tables[1].n_rows as n_passes from runs where stage in ('atlas', 'atlas_joint') order by stage"


def pairs(organism: Organism, prompt: int) -> list[FeatureSet]:
    """All pairs of the features that fire on a prompt's last tokens."""
    context = organism.context
    found = context.engine.activations([Request(prompt)], dict.fromkeys(context.saes))
    late = found.pos >= len(context.token_ids[prompt]) - LAST_TOKENS
    features = np.unique(np.stack([found.sae[late], found.feature_id[late]], axis=1), axis=0).tolist()
    return [FeatureSet.of([a, c], [b, d]) for (a, b), (c, d) in combinations(features, 2)]


def as_text(relation: duckdb.DuckDBPyRelation) -> str:
    """The table that `saelake sql` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        show(relation, "table")
    return out.getvalue().rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", required=True, help="the embedded study with its atlas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="do not write docs/benchmarks.md")
    options = parser.parse_args()
    report = Report("atlas", "The atlas", PACKAGES)
    organism, (clock, counted) = load(), clock_of(1)
    context, prompt = organism.context, organism.pools[0].prompt
    sets = pairs(organism, prompt)
    token_ids = context.token_ids[prompt]

    assert context.recipe.model.path is not None, "it is in the repository"
    bridge = saelens_bridge(context.recipe.model.path, context.saes)
    batch = context.subject.batch([token_ids])

    def bridged(n: int = N_LITERAL) -> torch.Tensor:
        with torch.no_grad():
            for features in sets[:n]:
                logits = bridge.run_with_hooks(
                    batch.input_ids_bt, attention_mask=batch.attention_mask_bt, fwd_hooks=bridge_hooks(features)
                )
        return logits[0, -1]

    def literal(n: int = N_LITERAL) -> torch.Tensor:
        with torch.no_grad():
            for features in sets[:n]:
                with decode_plus_error(context.subject, context.saes, features):
                    logits = context.subject.forward(batch)
        return logits[0]

    assert torch.allclose(bridged(1), literal(1), atol=SAME), "the contenders do not do the same"

    def atlas() -> None:  # a fresh engine: nothing is remembered from the round before
        engine = AblationEngine(context.subject, context.saes, context.token_ids)
        engine.next_token([Request(prompt, features) for features in sets])

    many = context.subject.batch([token_ids] * N_BARE)

    def bare() -> None:
        with torch.inference_mode():
            context.subject.forward(many)

    times = alternated({"bridge": bridged, "literal": literal, "bare": bare, "atlas": atlas}, options.rounds, clock=clock)
    report.line(
        f"{counted}; one prompt of {len(token_ids)} tokens, all {len(sets)} pairs of what fires on its last {LAST_TOKENS}"
    )
    report.line(f"  SAELens' SAETransformerBridge, {N_LITERAL} pairs: {1e3 * times.median('bridge') / N_LITERAL:.2f} ms a pass")
    report.line(f"  hooks around SAELens' encode and decode: {1e3 * times.median('literal') / N_LITERAL:.2f} ms a pass")
    report.line(f"  here: {1e3 * times.median('atlas') / len(sets):.3f} ms a pass")
    report.line(f"  the unmodified model, {N_BARE} prompts in a batch: {1e3 * times.median('bare') / N_BARE:.3f} ms a pass")
    scale = len(sets) / N_LITERAL
    report.ratio("atlas_faster_than_saelens", scale / times.ratio("atlas", "bridge"), ">= 100")
    report.ratio("atlas_faster_than_bare_hooks", scale / times.ratio("atlas", "literal"), "none")
    report.ratio("atlas_pass_over_unmodified_pass", times.ratio("atlas", "bare") * N_BARE / len(sets), "none")
    with saelake.open(options.lake) as lake:
        report.line("\nthe whole atlas, by its runs:")
        report.line(as_text(lake.sql(RUNS)))
        report.line("\nwhat each method names (`saelake query atlas_scores`):")
        report.line(as_text(lake.query("atlas_scores")))
    if not options.dry:
        report.keep()


if __name__ == "__main__":
    main()
