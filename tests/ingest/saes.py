"""Small random SAEs of every kind that saelake reads, saved and read back."""

from pathlib import Path
from typing import Any

from saelake.ingest.recipe import Recipe
from saelake.ingest.saes.refs import SaeRef, list_saes
from saelake.ingest.saes.sae import Sae, load_sae
from tests.ingest.tiny import save_sae

ELEMENTWISE = [
    {"architecture": "standard"},
    {"architecture": "standard", "apply_b_dec_to_input": False},
    {"architecture": "jumprelu"},
    {"architecture": "jumprelu", "apply_b_dec_to_input": False},
]
TOPK = [{"architecture": "topk", "k": 5}, {"architecture": "topk", "k": 5, "rescale_acts_by_decoder_norm": True}]


def recipe_of(**saes: Any) -> Recipe:
    """A recipe with these SAEs, whose model and prompts nobody looks at."""
    prompts = [{"set": "s", "hub": "a/b", "label": "harmful"}]
    return Recipe.model_validate({"name": "test", "model": {"id": "a/b"}, "saes": saes, "prompts": prompts})


def local(folder: Path, layers: tuple[int, ...] = (0,), **saes: Any) -> list[SaeRef]:
    """The SAEs in layer_0, layer_1, ... of a folder."""
    return list_saes(recipe_of(path=folder / "layer_{layer}", layers=layers, **saes))


def saved(folder: Path, **config: Any) -> Sae:
    """An SAE of this configuration that has been to the disk and back."""
    save_sae(folder / "layer_0", **config)
    return load_sae(local(folder)[0])
