"""Sizes of what a study downloads and holds, before anything is downloaded: from files that are here, from what the hub lists,
else from what is known of their formats. No torch.
"""

import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from saelake.ingest.model_shape import ModelShape, cached_file
from saelake.ingest.recipe import Recipe
from saelake.ingest.recipe.sections import ModelSpec, SaesSpec
from saelake.ingest.recipe.training import TrainSaes
from saelake.ingest.saes.description import sae_bytes
from saelake.ingest.saes.refs import listed_saes
from saelake.ingest.saes.weight_files import tensor_shapes

# SAELens' loaders: which file each reads below an SAE's folder, and how many bytes a weight takes there.
SAE_FORMATS = {
    "gemma_2": ("params.npz", 4),
    "gemma_3": ("params.safetensors", 4),
    "llama_scope": ("checkpoints/final.safetensors", 2),
    "sae_lens": ("sae_weights.safetensors", 4),
}
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
HUB_BYTES_PER_WEIGHT = 2
"""Models on the hub are stored in bfloat16, as a rule."""
CLASSIFIER_BYTES = 26e9
"""The HarmBench classifier: 13 billion weights in bfloat16."""


TO_BE_TRAINED = "saelake train-saes"
"""How SAEs are known that are neither here nor to be had elsewhere."""


@dataclass(frozen=True)
class Download:
    """A file or group of files that a study needs."""

    what: str
    source: str
    n_bytes: int | None
    """None where nothing says it."""
    is_here: bool
    known_by: str
    """files, hub, or estimate"""


@dataclass(frozen=True)
class SaeSize:
    """One SAE."""

    layer: int
    d_in: int
    width: int
    declared_l0: float | None
    file: Path | None
    """Its weights, if they are here."""
    to_be_trained: bool = False
    """By train-saes, whose settings give its width and L0."""

    @property
    def n_bytes(self) -> int:
        """In memory, float32."""
        return sae_bytes(self.d_in, self.width)


def sae_sizes(recipe: Recipe, shape: ModelShape) -> list[SaeSize]:
    """Every SAE's size: from its weights where they are here, else from [train_saes] where those make it, else from its name.

    Raises UserError for an unknown release.
    """
    return [one for spec in recipe.sae_groups for one in _sizes(spec, shape, recipe.train_saes)]


def _sizes(spec: SaesSpec, shape: ModelShape, training: TrainSaes) -> list[SaeSize]:
    found = []
    if spec.path is not None:
        for layer in spec.layers:
            file, declared = Path(spec.fill(str(spec.path), layer), "sae_weights.safetensors"), spec.declared_l0(layer)
            if file.is_file():
                found.append(_size(layer, shape.d_model, str(spec.path), declared, file))
            else:
                aimed = float(training.l0) if declared is None else declared
                found.append(SaeSize(layer, shape.d_model, training.width, aimed, None, to_be_trained=True))
        return found
    listed = listed_saes(spec)
    name, _ = SAE_FORMATS.get(listed.conversion, SAE_FORMATS["sae_lens"])
    for layer, release_id, folder, l0 in zip(spec.layers, listed.ids, listed.folders, listed.l0s, strict=True):
        declared = spec.declared_l0(layer)
        weights = cached_file(listed.repository, f"{folder}/{name}")
        hint = f"{spec.release}/{release_id}"
        found.append(_size(layer, shape.d_model, hint, l0 if declared is None else declared, weights))
    return found


def _size(layer: int, d_model: int, hint: str, l0: float | None, file: Path | None) -> SaeSize:
    shape = matrix_shape(file) if file is not None else None
    if shape is None:
        return SaeSize(layer, d_model, width_of(hint, d_model), l0, None)
    width = shape[1] if shape[0] == d_model else shape[0]
    return SaeSize(layer, shape[0] + shape[1] - width, width, l0, file)


def width_of(name: str, d_model: int) -> int:
    """The number of latents that an SAE's name gives: width_65k is 65,536, 32x is 32 a dimension; 16,384 where it gives none."""
    if match := re.search(r"width_(\d+)([km])", name):
        return int(2 ** round(math.log2(int(match[1]) * {"k": 1e3, "m": 1e6}[match[2]])))
    if match := re.search(r"(\d+)x\b", name):
        return int(match[1]) * d_model
    return 16_384


def matrix_shape(file: Path) -> tuple[int, int] | None:
    """Shape of the largest matrix in a .safetensors or .npz file, from its header alone."""
    matrices = [(shape[0], shape[1]) for shape in tensor_shapes(file).values() if len(shape) == 2]
    return max(matrices, key=lambda shape: shape[0] * shape[1]) if matrices else None


def downloads(recipe: Recipe, shape: ModelShape, saes: list[SaeSize]) -> list[Download]:
    """What the study reads from elsewhere: model, SAEs, and the classifier where it judges. Prompt files are small."""
    found, rest = [_model(recipe.model, shape)], saes
    for spec in recipe.sae_groups:
        found.append(_saes(spec, rest[: len(spec.layers)]))
        rest = rest[len(spec.layers) :]
    if "harmbench" in recipe.verdicts.judges:
        judge = recipe.verdicts.harmbench
        config = judge.path / "config.json" if judge.path else cached_file(judge.hub_id, "config.json", judge.revision)
        if config is not None:
            n_bytes, known_by = sum(file.stat().st_size for file in config.parent.glob("*.safetensors")), "files"
        else:
            n_bytes, known_by = hub_bytes(judge.hub_id, r"\.safetensors$") or 0, "hub"
        if not n_bytes:
            n_bytes, known_by = int(CLASSIFIER_BYTES), "estimate"
        found.append(Download("classifier", judge.location, n_bytes, config is not None, known_by))
    return found


def _model(model: ModelSpec, shape: ModelShape) -> Download:
    estimate = shape.n_parameters * HUB_BYTES_PER_WEIGHT
    if (folder := model.folder) is not None:
        weights = [folder / model.gguf] if model.gguf else list(folder.glob("*.safetensors"))
        return Download("model", model.name, sum(file.stat().st_size for file in weights), True, "files")
    assert model.id is not None, "a ModelSpec has a folder or an id"
    here = any(cached_file(model.id, name, model.revision) for name in WEIGHT_FILES)
    n_bytes = None if here else hub_bytes(model.id, r"^[^/]*\.safetensors$")
    return Download("model", model.id, n_bytes or estimate, here, "hub" if n_bytes else "estimate")


def _saes(spec: SaesSpec, saes: list[SaeSize]) -> Download:
    here = [one.file.stat().st_size for one in saes if one.file is not None]
    what = f"{len(saes)} SAEs"
    if len(here) == len(saes):
        return Download(what, str(spec.path or spec.release), sum(here), True, "files")
    if spec.path is not None:
        return Download(what, str(spec.path), None, False, TO_BE_TRAINED)
    listed = listed_saes(spec)
    name, weight_bytes = SAE_FORMATS.get(listed.conversion, SAE_FORMATS["sae_lens"])
    wanted = "|".join(re.escape(f"{folder}/{name}") for folder in listed.folders)
    n_bytes = hub_bytes(listed.repository, f"^({wanted})$")
    estimate = sum(one.n_bytes for one in saes) * weight_bytes // 4
    return Download(what, listed.repository, n_bytes or estimate, False, "hub" if n_bytes else "estimate")


@cache
def hub_bytes(repo: str, wanted: str) -> int | None:
    """Bytes of the files of a hub repository whose names match, as the hub lists them; None offline or where it does not say."""
    from httpx import HTTPError
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        listed = HfApi().model_info(repo, files_metadata=True, timeout=10).siblings or []
    except (HTTPError, HfHubHTTPError, OSError):
        return None
    sizes = [one.size or 0 for one in listed if re.search(wanted, one.rfilename)]
    return sum(sizes) or None
