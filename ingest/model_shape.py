"""How large a model is, from its configuration or a short table, without torch and without its weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelake.ingest.recipe.sections import ModelSpec


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
        return shape_of(json.loads(file.read_text("utf-8")))
    if model.gguf is not None and model.path is not None:
        from transformers import AutoConfig

        return shape_of(AutoConfig.from_pretrained(model.path, gguf_file=model.gguf).to_dict())
    return KNOWN.get(model.id or "")


def local_file(model: ModelSpec, name: str) -> Path | None:
    """A file of the model in its folder or in the hub cache; None where it is in neither."""
    if model.path is not None:
        return model.path / name if (model.path / name).is_file() else None
    assert model.id is not None, "a ModelSpec has a path or an id"
    return cached_file(model.id, name, model.revision)


def cached_file(repo: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a hub repository in the local hub cache, without asking the hub."""
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(repo, name, cache_dir=constants.HF_HUB_CACHE, revision=revision)
    return Path(found) if isinstance(found, str) else None


def shape_of(config: dict[str, Any]) -> ModelShape:
    """The shape that a config.json tells; parameters are counted as those of a gated decoder without biases."""
    text: dict[str, Any] = config.get("text_config", config)
    d_model, n_layers = int(text["hidden_size"]), int(text["num_hidden_layers"])
    n_heads = int(text["num_attention_heads"])
    d_head = int(text.get("head_dim") or d_model // n_heads)
    n_key_heads = int(text.get("num_key_value_heads") or n_heads)
    attention = 2 * d_model * d_head * (n_heads + n_key_heads)
    d_vocab = int(text["vocab_size"])
    # Gemma's configurations leave out what is their default: tied embeddings.
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings", "gemma" in str(text.get("model_type", ""))))
    embeddings = d_vocab * d_model * (1 if tied else 2)
    mlp = 3 * d_model * int(text.get("intermediate_size") or 4 * d_model)
    return ModelShape(n_layers, d_model, embeddings + n_layers * (attention + mlp), d_vocab, "config")
