"""What growth costs: a set of prompts or an SAE added to a study, beside the new part alone, and larger pools of candidates.

    make bench-growth

The study is the embedded one: a model of 1.04M parameters with six SAEs, here of 4,096 latents each, which are its own 512 eight
times over (the first of them as they are, the others with higher thresholds), so that the work is not all start-up. The seventh
SAE is another on layer 3. Its own prompts are 600; the 100 new ones are reworded from the first of these. Measured is `ingest`,
from reading the prompts to the published runs.

Pools are features of six SAEs of 11,264 random directions on the same model, in one evaluation of the search for causes: as many
prompts as a batch, each with the whole pool ablated.
"""

import argparse
import json
import shutil
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.harness import Report, alternated
from benchmarks.subjects import random_saes
from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.ingest.job import ingest, open_study
from saelake.ingest.recipe import RECIPES, Compute, Recipe, load_recipe
from saelake.ingest.subject import Subject
from saelake.warehouse.lake import Lake

ORGANISM = RECIPES.parent / "ingest" / "organism"
COPIES = 8
"""Times that an SAE's 512 latents are repeated."""
NEW_PROMPTS = 100
POOLS = {"1k": 1_024, "16k": 16_384, "65k": 65_536}
POOL_PROMPTS = 16
POOL_WIDTH = 11_264
"""Latents of each SAE that pools are drawn from: all six have a few more than the largest pool."""


def write_sae(source: Path, target: Path, seed: int) -> None:
    """A wider SAE: the latents of another, again and again, with higher thresholds, shuffled by the seed."""
    target.mkdir(parents=True)
    config = json.loads((source / "cfg.json").read_text("utf-8"))
    weights = load_file(source / "sae_weights.safetensors")
    d_sae = config["d_sae"]
    order = torch.randperm(COPIES * d_sae, generator=torch.Generator().manual_seed(seed))
    rows = {"W_enc": 1, "W_dec": 0, "b_enc": 0, "threshold": 0}
    wide = {}
    for name, values in weights.items():
        if name not in rows:
            wide[name] = values
            continue
        parts = [values + 0.5 * n if name == "threshold" else values for n in range(COPIES)]
        wide[name] = torch.cat(parts, dim=rows[name]).index_select(rows[name], order).contiguous()
    save_file(wide, target / "sae_weights.safetensors")
    (target / "cfg.json").write_text(json.dumps(config | {"d_sae": COPIES * d_sae}), "utf-8")


def write_studies(folder: Path) -> dict[str, Recipe]:
    """The study as it was, with more prompts, and with another SAE; and what is new about these, alone."""
    for layer in range(6):
        write_sae(ORGANISM / "saes" / f"layer_{layer}", folder / "saes" / f"layer_{layer}", seed=layer)
    write_sae(ORGANISM / "saes" / "layer_3", folder / "seventh", seed=99)
    rows = [json.loads(line) for line in (ORGANISM / "prompts.jsonl").read_text("utf-8").splitlines()]
    new = [row | {"instruction": f"{row['instruction']} now"} for row in rows[:NEW_PROMPTS]]
    (folder / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new), "utf-8")
    shipped = load_recipe("organism")
    content = shipped.model_dump(exclude_unset=True)
    (prompts,) = content["prompts"]
    more = prompts | {"set": "new", "file": folder / "new.jsonl"}
    six: dict[str, Any] = {"path": folder / "saes" / "layer_{layer}", "layers": range(6)}
    seventh: dict[str, Any] = {"path": folder / "seventh", "layers": [3]}

    def study(sets: list[dict[str, Any]], saes: list[dict[str, Any]]) -> Recipe:
        changed = {"prompts": sets, "saes": saes, "compute": {"device": "cpu", "threads": 1}}
        kept = {name: content[name] for name in ("name", "model", "capture") if name in content}
        return Recipe.model_validate(kept | changed)

    return {
        "as it was": study([prompts], [six]),
        "a set added": study([prompts, more], [six]),
        "the set alone": study([more], [six]),
        "an SAE added": study([prompts], [six, seventh]),
        "the SAE alone": study([prompts], [seventh]),
    }


def pools(report: Report, rounds: int) -> None:
    """One evaluation of pools of several sizes."""
    study = open_study(load_recipe("organism"))
    subject = Subject.load(study.recipe.model, Compute(device="cpu", threads=1))
    prompts = [subject.encode(prompt.text).token_ids for prompt in study.prompts[:POOL_PROMPTS]]
    saes = random_saes(subject, prompts, range(subject.n_layers), POOL_WIDTH)
    engine = AblationEngine(subject, saes, prompts)
    layer, feature_id = np.divmod(np.random.default_rng(0).permutation(len(saes) * POOL_WIDTH), POOL_WIDTH)

    def evaluated(n: int) -> None:
        ablated = FeatureSet.of(layer[:n], feature_id[:n])
        engine.next_token([Request(row, ablated) for row in range(POOL_PROMPTS)])

    times = alternated({name: partial(evaluated, n) for name, n in POOLS.items()}, rounds, clock=time.process_time)
    report.line(f"\none evaluation of {POOL_PROMPTS} prompts, so many features ablated in each, of {len(saes)} SAEs")
    report.line(times.table())
    for few, many in pairwise(POOLS):
        report.ratio(f"growth_pool_{few}_to_{many}_x{POOLS[many] // POOLS[few]}", times.ratio(many, few), "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="do not write docs/benchmarks.md")
    options = parser.parse_args()
    report = Report("growth", "Growth of a lake", ("torch", "transformers", "sae-lens", "duckdb", "pyarrow"))
    with tempfile.TemporaryDirectory() as folder:
        studies, root = write_studies(Path(folder)), Path(folder)
        before = Lake.create(root / "before")
        ingest(studies["as it was"], before)
        lakes: dict[str, list[Lake]] = {}
        for name in studies:
            places = [root / f"{name} {number}" for number in range(options.rounds + 1)]
            grows = name.endswith("added")
            lakes[name] = [Lake(Path(shutil.copytree(before.root, p))) if grows else Lake.create(p) for p in places]
        contenders = {name: lambda name=name: ingest(studies[name], lakes[name].pop()) for name in studies}
        # Processor time of all threads: on a shared machine the wall clock says more about the others.
        times = alternated(contenders, options.rounds, clock=time.process_time)
    report.line("the embedded model, six SAEs of 4,096 latents, 600 prompts; 100 more prompts, or a seventh SAE")
    report.line(times.table())
    report.ratio("growth_prompt_set", times.ratio("a set added", "the set alone"), "<= 1.30")
    report.ratio("growth_sae", times.ratio("an SAE added", "the SAE alone"), "<= 1.50")
    report.ratio("growth_prompt_set_over_whole", times.ratio("a set added", "as it was"), "none")
    report.ratio("growth_sae_over_whole", times.ratio("an SAE added", "as it was"), "none")
    pools(report, options.rounds)
    if not options.dry:
        report.keep()


if __name__ == "__main__":
    main()
