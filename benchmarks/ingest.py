"""The whole ingest job beside the same forward and encode without anything written. Run by `make bench-ingest`.

    python -m benchmarks.ingest --cache ~/.cache/saelake-bench

SmolLM2-135M-Instruct with 12 SAEs of 16,384 latents. Both contenders load the model and the SAEs, which users pay for too; the
job also finds the non-zeros, lands, sorts, publishes and sums them up.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import torch

from benchmarks import caching
from benchmarks.harness import Report, alternated
from benchmarks.subjects import random_saes, save_sae, smollm2
from saelake.ingest.capture import CHUNK_VALUES, length_batches
from saelake.ingest.job import ingest_study
from saelake.ingest.recipe import RECIPES, Recipe, load_recipe
from saelake.ingest.runs import Ingested
from saelake.ingest.saes.sae import Sae, load_sae
from saelake.ingest.study import Study, open_study
from saelake.ingest.subject import Subject
from saelake.warehouse.lake import Lake

WIDTH = 16_384


def write_study(cache: Path, n_prompts: int, threads: int) -> Recipe:
    """The shipped recipe on the unpacked model, SAEs made once into `cache`, and prompts of the organism."""
    shipped = load_recipe("smollm2-135m")
    layers = shipped.saes.layers
    rows = (RECIPES / "../ingest/organism/prompts.jsonl").read_text("utf-8").splitlines()[:n_prompts]
    prompts = cache / f"prompts-{n_prompts}.jsonl"
    prompts.write_text("\n".join(rows) + "\n", "utf-8")
    subject = smollm2(cache, threads)
    folder = cache / f"saes-{WIDTH}"
    if not all((folder / f"layer_{layer}" / "cfg.json").exists() for layer in layers):
        texts = [json.loads(row)["instruction"] for row in rows[:40]]
        token_ids = [subject.encode(text).token_ids for text in texts]
        for layer, sae in random_saes(subject, token_ids, layers, WIDTH).items():
            save_sae(folder / f"layer_{layer}", layer, sae.module)
    changed = {
        "model": {"path": cache / "smollm2", "max_prompt_tokens": 256},
        "saes": {"path": folder / "layer_{layer}", "layers": layers},
        "prompts": [{"set": "organism", "file": prompts, "label": {"column": "label"}, "split": "test"}],
        "capture": {"shard_prompts": 64, "batch_tokens": 2048},
        "compute": {"device": "cpu", "threads": threads},
    }
    return Recipe.model_validate({"name": "bench"} | changed)


def bare(study: Study) -> int:
    """Loads, tokenises, and puts every token through the model and SAELens' own encode; returns the tokens."""
    subject = Subject.load(study.recipe.model, study.recipe.compute)
    saes = {ref.layer: load_sae(ref, subject.device) for ref in study.saes}
    token_ids = [subject.encode(prompt.text).token_ids for prompt in study.prompts]
    forward_and_encode(subject, saes, token_ids, study.recipe.capture.batch_tokens)
    return sum(map(len, token_ids))


@torch.inference_mode()
def forward_and_encode(subject: Subject, saes: Mapping[int, Sae], token_ids: Sequence[Sequence[int]], batch_tokens: int) -> None:
    """Every token through the model and SAELens' own encode; nothing is kept."""
    for rows in length_batches([len(ids) for ids in token_ids], batch_tokens):
        batch = subject.batch([token_ids[i] for i in rows])
        kept = batch.attention_mask_bt.bool()
        for layer, resid_btd in subject.read_resid_post(batch, list(saes)).items():
            # In pieces as large as ours, which stay in a cache: at once it takes twice as long on a CPU.
            n_rows = max(CHUNK_VALUES[subject.device.type] // saes[layer].width, 1)
            for resid_nd in resid_btd[kept].float().split(n_rows):
                saes[layer].module.encode(resid_nd)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="do not write docs/benchmarks.md")
    options = parser.parse_args()
    study = open_study(write_study(options.cache, options.prompts, options.threads))
    report = Report("ingest", "The ingest job")
    with tempfile.TemporaryDirectory() as folder:
        records: list[Ingested] = []
        numbers = count()

        def job() -> None:
            lake = Path(folder, f"lake-{next(numbers)}")
            records.append(ingest_study(study, Lake.create(lake)))
            shutil.rmtree(lake)

        contenders = {"forward + encode": lambda: bare(study), "whole job": job}
        # Processor time of all threads: on a shared machine the wall clock says more about the others.
        times = alternated(contenders, options.rounds, warmups=0, clock=time.process_time)
    record = records[-1]
    n_rows, n_tokens = record.n_rows("activations"), record.n_rows("tokens")
    n_bytes = sum(file.n_bytes for file in record.files if file.table == "activations")
    report.line(f"{n_tokens:,} tokens, {len(study.saes)} layers of {WIDTH:,}, {options.threads} torch thread(s), {n_rows:,} rows")
    report.line(times.table())
    report.line(
        f"{n_tokens / times.median('whole job'):,.0f} tokens/s of processor time, {n_bytes / n_rows:.2f} bytes a non-zero"
    )
    report.ratio("ingest_job", times.ratio("whole job", "forward + encode"), "<= 1.15")
    if find_spec("delphi") is None:
        report.not_run("delphi", "eai-delphi is not on the path: make bench-ingest installs it")
    else:
        caching.measure(report, options.cache, options.rounds, options.threads)
    if not options.dry:
        report.keep()


if __name__ == "__main__":
    main()
