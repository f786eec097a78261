"""How large a model is, from its configuration or a short table, without torch and without its weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from saelake.extras import require
from saelake.ingest.inputs import read_text
from saelake.ingest.recipe.sections import ModelSpec
from saelake.warehouse.errors import UserError, one_line


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder."""

    n_layers: int
    d_model: int
    n_parameters: int
    d_vocab: int
    known_by: str
    """config (its own file) or table (this file, because the model is not here yet)"""


KNOWN = {
    "google/gemma-2-2b-it": ModelShape(26, 2304, 2_614_341_888, 256_000, "table"),
    "google/gemma-2-9b-it": ModelShape(42, 3584, 9_241_705_984, 256_000, "table"),
    "google/gemma-3-270m-it": ModelShape(18, 640, 268_098_176, 262_144, "table"),
    "meta-llama/Llama-3.1-8B-Instruct": ModelShape(32, 4096, 8_030_261_248, 128_256, "table"),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ModelShape(30, 576, 134_515_008, 49_152, "table"),
}


def weight_bytes(dtype: str) -> int:
    """Bytes of one weight in a recipe's dtype."""
    return 2 if dtype == "bfloat16" else 4


def read_shape(model: ModelSpec) -> ModelShape | None:
    """The shape of a recipe's model, from its config.json here or in the hub cache, else from the table; None if neither."""
    file = local_file(model, "config.json")
    if file is not None:
        try:
            return shape_of(json.loads(read_text(file, "model")))
        except UserError:
            raise
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
            raise UserError(f"model: {file} describes no model's shape ({one_line(error)})") from error
    if model.gguf is not None and (folder := model.folder) is not None:
        require("gguf", "model.gguf")
        from transformers import AutoConfig

        return shape_of(AutoConfig.from_pretrained(folder, gguf_file=model.gguf).to_dict())
    return KNOWN.get(model.id or "")


def local_file(model: ModelSpec, name: str) -> Path | None:
    """A file of the model in its folder or in the hub cache; None where it is in neither."""
    if (folder := model.folder) is not None:
        file = folder / name
        if file.exists() and not file.is_file():
            raise UserError(f"model.path: {file} is not a regular file: give a folder with the files themselves")
        return file if file.is_file() else None
    assert model.id is not None, "a ModelSpec has a folder or an id"
    return cached_file(model.id, name, model.revision)


def cached_file(repo: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a hub repository in the local hub cache, without asking the hub."""
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(repo, name, cache_dir=constants.HF_HUB_CACHE, revision=revision)
    return Path(found) if isinstance(found, str) else None


class Sizes(NamedTuple):
    """The numbers of a configuration that every decoder has, whatever its family calls them."""

    n_layers: int
    d_model: int
    d_vocab: int
    d_mlp: int
    n_heads: int
    n_key_heads: int
    d_head: int
    is_gated: bool
    """Whether its MLP has three matrices instead of two."""


NAMES = {
    "n_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "d_model": ("hidden_size", "n_embd", "d_model"),
    "n_heads": ("num_attention_heads", "n_head", "n_heads"),
    "n_key_heads": ("num_key_value_heads", "num_kv_heads"),
    "d_mlp": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
}
"""What families call the same thing: most of them, GPT-2 and BLOOM, OPT and Falcon."""
PLAIN_MLPS = ("gpt2", "opt", "bloom", "falcon", "gpt_neox", "phi", "gptj", "gpt_bigcode", "starcoder2")
"""Families, by model_type, whose MLP has no gate."""


def sizes_of(config: dict[str, Any]) -> Sizes:
    """The sizes in a configuration's values, an image model's by its text part.

    Raises UserError naming the size that is not there under any known name.
    """
    text: dict[str, Any] = config.get("text_config", config)

    def find(what: str) -> int | None:
        return next((int(text[name]) for name in NAMES[what] if text.get(name)), None)

    def need(what: str) -> int:
        value = find(what)
        if value is None:
            kind = text.get("model_type", "model")
            raise UserError(
                f"model: the configuration of a {kind} has none of {', '.join(NAMES[what])}, so its size is not known"
            )
        return value

    d_model, n_heads = need("d_model"), need("n_heads")
    # Falcon's flag of one head that all queries share, which its newer blocks do not read.
    shared = bool(text.get("multi_query")) and not text.get("new_decoder_architecture")
    n_key_heads = 1 if shared else find("n_key_heads") or n_heads
    return Sizes(
        n_layers=need("n_layers"),
        d_model=d_model,
        d_vocab=int(text["vocab_size"]),
        d_mlp=find("d_mlp") or 4 * d_model,
        n_heads=n_heads,
        n_key_heads=n_key_heads,
        d_head=int(text.get("head_dim") or d_model // n_heads),
        is_gated=text.get("model_type") not in PLAIN_MLPS,
    )


def shape_of(config: dict[str, Any]) -> ModelShape:
    """The shape that a config.json gives; parameters are counted as those of a decoder without biases."""
    text: dict[str, Any] = config.get("text_config", config)
    sizes = sizes_of(config)
    attention = 2 * sizes.d_model * sizes.d_head * (sizes.n_heads + sizes.n_key_heads)
    # Some configurations leave out what is their family's default: tied embeddings.
    by_default = str(text.get("model_type", "")).startswith(("gemma", "gpt2", "opt", "bloom", "falcon"))
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings", by_default))
    embeddings = sizes.d_vocab * sizes.d_model * (1 if tied else 2)
    mlp = (3 if sizes.is_gated else 2) * sizes.d_model * sizes.d_mlp
    n_parameters = embeddings + sizes.n_layers * (attention + mlp)
    return ModelShape(sizes.n_layers, sizes.d_model, n_parameters, sizes.d_vocab, "config")
