"""The measured rows of docs/comparison.md, from the ratios that docs/benchmarks.md shows."""

import re

from tests.conftest import ROOT
from tests.documents.made_blocks import with_blocks

PAGE = ROOT / "docs" / "comparison.md"
ROWS = (
    ("search", "faster_than_saelens", "SAELens", "a pass with features ablated, beside its encode and decode on every layer"),
    ("search", "faster_than_saelens_error_term", "SAELens", "the same with its error term, which is what makes it exact"),
    ("search", "greedy_speedup_over_hooks", "SAELens", "answers under ablation, beside hooks one prompt at a time"),
    ("library", "faster_than_saelens", "SAELens", "the same edits on 8 layers, equal logits, beside its bridge"),
    ("library", "faster_than_transformerlens", "TransformerLens", "the same edits, by its hooks"),
    ("library", "faster_than_nnsight", "nnsight", "the same edits, in a trace"),
    ("ingest", "ingest_over_delphi_time", "delphi", "capturing the same activations: processor time"),
    ("ingest", "ingest_over_delphi_memory", "delphi", "... peak memory"),
    ("ingest", "ingest_over_delphi_bytes", "delphi", "... bytes on disk"),
    (
        "lake",
        "captured_to_statistics_vs_delphi",
        "delphi",
        "from captured rows to the statistics of every feature, published and hashed",
    ),
    ("lake", "top_samples_vs_delphi", "delphi", "top samples of 200 features, with contexts and texts, beside its own reader"),
    ("lake", "top_samples_vs_delphi_by_hand", "delphi", "... beside the quickest NumPy that we could write for its files"),
    ("lake", "cofiring_vs_delphi", "delphi", "which of 200 features per layer fire together"),
    ("lake", "cofiring_vs_best_peer_csr", "SciPy", "the same, by a product of sparse matrices"),
    ("lake", "one_prompt_vs_delphi", "delphi", "everything of one prompt, from the copy by prompt"),
    (
        "fm",
        "fm_speed_up",
        "myfm",
        "training a factorisation machine; a lower bound, since myfm's is not as accurate after 160 iterations",
    ),
)
"""Section of the benchmarks, ratio, whom it is beside, and what was done."""


def page() -> str:
    """The page with its table made anew."""
    benchmarks = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    lines = ["| beside | what was done | ratio |", "|---|---|--:|"]
    for section, name, other, what in ROWS:
        text = benchmarks.split(f"<!-- {section}: begin -->")[1].split(f"<!-- {section}: end -->")[0]
        found = re.search(rf"^ratio {name} (\S+)", text, re.MULTILINE)
        assert found, f"docs/benchmarks.md has no ratio {name} in {section}"
        ratio = 1 / float(found[1]) if "_over_delphi_" in name else float(found[1])
        lines.append(f"| {other} | {what} | {ratio:.2g} |")
    return with_blocks(PAGE.read_text("utf-8"), {"measured": "\n".join(lines)})
