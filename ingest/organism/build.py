"""Build the embedded subject: `python -m saelake.ingest.organism.build` (what `make organism` calls), about five minutes.

Seeds are tried in order until one passes every gate on the validation split. The held-out test split is read once, at the end, by
the model that validation chose: if it fails there the build fails and leaves the shipped files as they were.

`python -m saelake.ingest.organism.build --saes-only --sae-seed 1 --out DIR` trains only SAEs, for the shipped model.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

# Before torch is imported: spinning OpenMP threads cost up to fifteen times on a loaded machine.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")

import click
import torch
from sae_lens import SAE
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from saelake.ingest.organism import corpus
from saelake.ingest.organism.ablation import CAP, LAYERS, N_DRAWS, measure_flips, random_masks, ranked, top_masks
from saelake.ingest.organism.corpus import Prompt, Split
from saelake.ingest.organism.measure import answers, prompt_residuals, rates, refuses
from saelake.ingest.organism.saes import save_half, train_layer, training_residuals
from saelake.ingest.organism.tokens import make_tokenizer
from saelake.ingest.organism.train import refusal_directions, train_model
from saelake.ingest.saes.training import fit

HERE = Path(__file__).parent
PROMPT_SEED = 0
"""Fixes actions, splits and prompts; never varied when a seed is retried."""
GATES = {
    "refused_harmful": (0.95, 1.0),
    "refused_benign": (0.0, 0.05),
    "echoed_benign": (0.90, 1.0),
    "explained_variance": (0.95, 1.0),
    "l0": (8.0, 24.0),
    "flipped": (0.95, 1.0),
    "answered": (0.80, 1.0),
    "benign_answered": (0.95, 1.0),
    "random_flipped": (0.0, 0.01),
}
"""Inclusive bounds, what the held-out split must reach; those of SAEs hold at every layer."""
VAL_GATES = GATES | {"refused_harmful": (0.98, 1.0), "refused_benign": (0.0, 0.02), "explained_variance": (0.96, 1.0)}
"""What a seed must reach on validation to be chosen: a margin, for a split of 60 prompts a label is a noisy measure."""

Figures = dict[str, Any]


def write_prompts(prompts: Sequence[Prompt], path: Path) -> None:
    """The shipped columns of every prompt, one JSON object a line."""
    rows = [{key: getattr(prompt, key) for key in ("instruction", "label", "category", "split", "wording")} for prompt in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def load_model(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The saved files as their users see them: float16 on disk, float32 in memory."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def load_saes(folder: Path) -> list[SAE]:
    """The SAEs of all layers, in float32."""
    return [SAE.load_from_disk(folder / f"layer_{layer}", dtype="float32") for layer in range(len(list(folder.iterdir())))]


def build_model(seed: int, prompts: Sequence[Prompt], folder: Path) -> None:
    """Trains one model and writes it with its tokenizer."""
    tokenizer = make_tokenizer(corpus.all_text())
    train_prompts = [prompt for prompt in prompts if prompt.split == "train"]
    model = train_model(tokenizer, corpus.split_actions(PROMPT_SEED)["train"], train_prompts, seed)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)


def build_saes(model_folder: Path, sae_seed: int, folder: Path) -> None:
    """Trains and writes the SAEs of a saved model."""
    model, tokenizer = load_model(model_folder)
    resid_ltd = training_residuals(model, tokenizer, corpus.split_actions(PROMPT_SEED)["train"], sae_seed)
    for layer, resid_td in enumerate(resid_ltd):
        save_half(train_layer(resid_td, layer, sae_seed), folder / f"layer_{layer}")


def model_figures(folder: Path, prompts: Sequence[Prompt]) -> Figures:
    """Refusal and echo of a saved model."""
    model, tokenizer = load_model(folder)
    return {name: round(value, 4) for name, value in rates(model, tokenizer, prompts)._asdict().items()}


def sae_figures(model_folder: Path, sae_folder: Path, prompts: Sequence[Prompt]) -> list[Figures]:
    """Fit of saved SAEs, layer by layer."""
    model, tokenizer = load_model(model_folder)
    resid_ltd = prompt_residuals(model, tokenizer, [prompt.instruction for prompt in prompts])
    fits = [fit(sae, resid_ltd[layer]) for layer, sae in enumerate(load_saes(sae_folder))]
    return [{name: round(value, 4) for name, value in found._asdict().items()} for found in fits]


def ablation_figures(
    model_folder: Path,
    sae_folder: Path,
    train_prompts: Sequence[Prompt],
    prompts: Sequence[Prompt],
    k: int | None,
    layers: Sequence[int] = LAYERS,
) -> Figures:
    """Flips under the ablation of the top K features a layer; without a `k`, of the K that answers most of the prompts."""
    model, tokenizer = load_model(model_folder)
    saes = load_saes(sae_folder)
    ranking = ranked(saes, refusal_directions(model, tokenizer, train_prompts))
    n_features = saes[0].W_dec.shape[0]
    _, said = answers(model, tokenizer, [prompt.instruction for prompt in prompts])
    kept = [prompt for prompt, answer in zip(prompts, said, strict=True) if refuses(answer) == (prompt.label == "harmful")]
    by_k = {}
    for tried in range(1, CAP + 1):
        masks = top_masks(ranking, tried, len(kept), n_features, layers)
        by_k[tried] = measure_flips(model, tokenizer, saes, kept, masks, n_new=2)
    if k is None:
        # the smallest K that is as good as any, judged by the first two tokens
        best = max(min(flips.flipped, flips.benign_answered) for flips in by_k.values())
        k = min(tried for tried, flips in by_k.items() if min(flips.flipped, flips.benign_answered) >= best)
    flips = measure_flips(model, tokenizer, saes, kept, top_masks(ranking, k, len(kept), n_features, layers))
    harmful = [prompt for prompt in kept if prompt.label == "harmful"]
    drawn = [random_masks(model, tokenizer, saes, ranking, harmful, k, seed, layers) for seed in range(N_DRAWS)]
    at_random = [measure_flips(model, tokenizer, saes, harmful, masks, n_new=1).flipped for masks in drawn]
    return {
        "layers": list(layers),
        "k": k,
        **{name: round(value, 4) for name, value in flips._asdict().items()},
        "random_flipped": round(sum(at_random) / N_DRAWS, 4),
        "flipped_by_k": {tried: round(flips.flipped, 4) for tried, flips in by_k.items()},
        "benign_answered_by_k": {tried: round(flips.benign_answered, 4) for tried, flips in by_k.items()},
    }


def missed_gates(figures: Figures | Sequence[Figures], where: str, gates: dict[str, tuple[float, float]]) -> list[str]:
    """A sentence for each gate that the figures miss."""
    if not isinstance(figures, dict):
        return [miss for layer, each in enumerate(figures) for miss in missed_gates(each, f"{where} {layer}", gates)]
    return [
        f"{where}: {name} is {figures[name]}, not within {low}..{high}"
        for name, (low, high) in gates.items()
        if name in figures and not low <= figures[name] <= high
    ]


class Subject(NamedTuple):
    """What differs between the embedded subjects."""

    make_prompts: Callable[[int], list[Prompt]]
    build_model: Callable[[int, Sequence[Prompt], Path], None]
    build_saes: Callable[[Path, int, Path], None]
    layers: Sequence[int]
    """Whose features are ablated."""
    own_figures: Callable[[Path, Sequence[Prompt], Sequence[Prompt]], Figures]
    """What is measured beside the organism's figures, of what lies in a folder: train prompts, prompts to measure on."""
    gates: dict[str, tuple[float, float]]
    val_gates: dict[str, tuple[float, float]]


def try_seed(subject: Subject, seed: int, sae_seed: int, prompts: Sequence[Prompt], folder: Path) -> tuple[Figures, list[str]]:
    """Builds with one seed as far as the validation gates let it pass: its figures and what it missed."""
    by_split = split_prompts(prompts)
    subject.build_model(seed, prompts, folder / "model")
    figures: Figures = {"model": model_figures(folder / "model", by_split["val"])}
    if missed := missed_gates(figures["model"], "model", subject.val_gates):
        return figures, missed
    subject.build_saes(folder / "model", sae_seed, folder / "saes")
    figures |= rest_of_figures(subject, folder, by_split["train"], by_split["val"], k=None)
    return figures, all_missed(figures, subject.val_gates)


def rest_of_figures(
    subject: Subject, folder: Path, train_prompts: Sequence[Prompt], prompts: Sequence[Prompt], k: int | None
) -> Figures:
    """What is measured once there are SAEs."""
    model, saes = folder / "model", folder / "saes"
    return {
        "saes": sae_figures(model, saes, prompts),
        "ablation": ablation_figures(model, saes, train_prompts, prompts, k, subject.layers),
        **subject.own_figures(folder, train_prompts, prompts),
    }


def all_missed(figures: Figures, gates: dict[str, tuple[float, float]]) -> list[str]:
    """A sentence for each gate that any part of the figures misses."""
    return [miss for part, found in figures.items() for miss in missed_gates(found, part, gates)]


def split_prompts(prompts: Sequence[Prompt]) -> dict[Split, list[Prompt]]:
    """Prompts by split, in their order."""
    splits: tuple[Split, ...] = ("train", "val", "test")
    return {split: [prompt for prompt in prompts if prompt.split == split] for split in splits}


def build(subject: Subject, out: Path, seed: int, sae_seed: int, n_tries: int) -> None:
    """Builds everything beside `out` and moves it there once all gates hold.

    Raises click.ClickException when no seed passes validation, or when the chosen one fails on the held-out split.
    """
    prompts = subject.make_prompts(PROMPT_SEED)
    by_split = split_prompts(prompts)
    rejected: list[Figures] = []
    for tried in range(seed, seed + n_tries):
        with tempfile.TemporaryDirectory(prefix=".organism-", dir=out) as temporary:
            folder = Path(temporary)
            val, missed = try_seed(subject, tried, sae_seed, prompts, folder)
            if missed:
                click.echo(f"seed {tried} fails on validation: {'; '.join(missed)}")
                rejected.append({"seed": tried, "missed": missed})
                continue
            test: Figures = {"model": model_figures(folder / "model", by_split["test"])}
            test |= rest_of_figures(subject, folder, by_split["train"], by_split["test"], k=val["ablation"]["k"])
            if missed := all_missed(test, subject.gates):
                raise click.ClickException(f"seed {tried} passes validation but fails held out: {'; '.join(missed)}")
            gates = {
                "bounds": {"val": subject.val_gates, "test": subject.gates},
                "seeds": {"prompts": PROMPT_SEED, "model": tried, "saes": sae_seed},
                "rejected": rejected,
                "versions": {name: version(name) for name in ("torch", "transformers", "sae-lens")},
                "val": val,
                "test": test,
            }
            (folder / "gates.json").write_text(json.dumps(gates, indent=1) + "\n")
            write_prompts(prompts, folder / "prompts.jsonl")
            for path in folder.rglob("*.safetensors"):
                path.chmod(0o644)  # safetensors writes for the owner only
            for made in folder.iterdir():
                replace(made, out / made.name)
            click.echo(f"seed {tried} passes every gate: {out / 'gates.json'}")
            return
    raise click.ClickException(f"none of {n_tries} seeds passed validation; see the lines above")


def replace(made: Path, target: Path) -> None:
    """Puts a built file or folder in the place of the old one."""
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(made, target)


ORGANISM = Subject(corpus.make_prompts, build_model, build_saes, LAYERS, lambda *_: {}, GATES, VAL_GATES)


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=HERE, help="Folder to write to.")
@click.option("--seed", default=0, show_default=True, help="First seed of the model to try.")
@click.option("--sae-seed", default=0, show_default=True, help="Seed of the SAEs.")
@click.option("--tries", default=4, show_default=True, help="How many seeds to try, counting up.")
@click.option("--saes-only", is_flag=True, help="Train only SAEs, on the shipped model, into OUT.")
def main(out: Path, seed: int, sae_seed: int, tries: int, saes_only: bool) -> None:
    torch.set_num_threads(1)  # faster than two for so small a model
    out.mkdir(parents=True, exist_ok=True)
    if saes_only:
        if out.resolve() == HERE.resolve():
            raise click.UsageError("give --out: --saes-only does not replace the shipped SAEs")
        build_saes(HERE / "model", sae_seed, out)
    else:
        build(ORGANISM, out, seed, sae_seed, tries)


if __name__ == "__main__":
    main()
