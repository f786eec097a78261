"""Build the hydra: `python -m saelake.ingest.hydra.build`, about twenty minutes.

Seeds are tried, gated and recorded as the organism's are; hydra.md has the gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saelake.ingest.organism import build as organism  # before torch: it quiets OpenMP's threads

# isort: split
import click
import torch
from safetensors.torch import load_file, save_file

from saelake.ingest.hydra.backups import Lab, measure_backups, measure_writing
from saelake.ingest.hydra.paths import N_LAYERS, SECOND, Paths
from saelake.ingest.hydra.train import train_model
from saelake.ingest.hydra.world import all_text, make_prompt, make_prompts
from saelake.ingest.organism.ablation import ranked
from saelake.ingest.organism.build import GATES, PROMPT_SEED, VAL_GATES, Figures, Subject, load_model, load_saes
from saelake.ingest.organism.corpus import Prompt, split_actions
from saelake.ingest.organism.measure import answers, refuses
from saelake.ingest.organism.saes import save_half, train_layer, training_residuals
from saelake.ingest.organism.tokens import make_tokenizer
from saelake.ingest.organism.train import refusal_directions

HERE = Path(__file__).parent
LAYERS = range(2, SECOND + 1)
"""Blocks whose features are ablated: 0 and 1 only carry grammar, and after SECOND comes the read-out."""
OWN_GATES = {
    "random_flipped": (0.0, 0.25),
    "first": (0.8, 1.5),
    "second": (-0.15, 0.15),
    "second_woken": (0.6, 1.5),
    "refused_woken": (0.95, 1.0),
    "backed_up": (0.25, 1.0),
    "large_pools": (0.6, 1.0),
    "last_flipped": (0.0, 0.2),
    "read_out_flipped": (0.0, 0.2),
}
"""Beside the organism's, or instead of them: what it takes to flip a prompt is spread over more features than there."""
LAST_SEED = 3
"""What the last block's SAE adds to the seed of the others; of 0 to 3, on val: with 0 or 1 its first feature flips 30% alone."""
PATHS = "paths.safetensors"


def build_model(seed: int, prompts: Sequence[Prompt], folder: Path) -> None:
    """Trains one model and writes it with its tokenizer, and beside them the directions of its paths."""
    tokenizer = make_tokenizer(all_text())
    train_prompts = [prompt for prompt in prompts if prompt.split == "train"]
    model, paths = train_model(tokenizer, split_actions(PROMPT_SEED)["train"], train_prompts, seed)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    save_file({"basis_cd": paths.basis_cd}, folder.parent / PATHS)


def build_saes(model_folder: Path, sae_seed: int, folder: Path) -> None:
    """Trains and writes the SAEs of a saved model."""
    model, tokenizer = load_model(model_folder)
    *inner, last = range(N_LAYERS)
    for seed, layers in ((sae_seed, inner), (sae_seed + LAST_SEED, [last])):
        resid_ltd = training_residuals(model, tokenizer, split_actions(PROMPT_SEED)["train"], seed, make_prompt)
        for layer in layers:
            save_half(train_layer(resid_ltd[layer], layer, seed, "saelake/hydra"), folder / f"layer_{layer}")


def own_figures(folder: Path, train_prompts: Sequence[Prompt], prompts: Sequence[Prompt]) -> Figures:
    """What the paths write, and the backups among the features."""
    model, tokenizer = load_model(folder / "model")
    saes = load_saes(folder / "saes")
    paths = Paths(load_file(folder / PATHS)["basis_cd"])
    harmful = [prompt for prompt in prompts if prompt.label == "harmful"]
    _, said = answers(model, tokenizer, [prompt.instruction for prompt in harmful])
    refused = [prompt for prompt, answer in zip(harmful, said, strict=True) if refuses(answer)]
    ranking = ranked(saes, refusal_directions(model, tokenizer, train_prompts))
    found = {
        "paths": measure_writing(model, tokenizer, paths, refused)._asdict(),
        "backups": measure_backups(Lab(model, tokenizer, saes, refused), ranking, LAYERS)._asdict(),
    }
    return {part: {name: round(value, 4) for name, value in figures.items()} for part, figures in found.items()}


HYDRA = Subject(make_prompts, build_model, build_saes, LAYERS, own_figures, GATES | OWN_GATES, VAL_GATES | OWN_GATES)


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=HERE, help="Folder to write to.")
@click.option("--seed", default=0, show_default=True, help="First seed of the model to try.")
@click.option("--sae-seed", default=0, show_default=True, help="Seed of the SAEs.")
@click.option("--tries", default=4, show_default=True, help="How many seeds to try, counting up.")
def main(out: Path, seed: int, sae_seed: int, tries: int) -> None:
    torch.set_num_threads(1)  # faster than two for so small a model
    out.mkdir(parents=True, exist_ok=True)
    organism.build(HYDRA, out, seed, sae_seed, tries)


if __name__ == "__main__":
    main()
