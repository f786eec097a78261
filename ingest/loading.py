"""Loads what a recipe's [model] names: tokenizer, weights, device; finds the decoder blocks."""

import sys
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from saelake.extras import require
from saelake.ingest.adapter import merge
from saelake.ingest.fingerprint import MODEL_FILES, check_files
from saelake.ingest.model_checks import leaves_out_its_soft_cap
from saelake.ingest.recipe import ModelSpec
from saelake.ingest.targets import Target, targets_of
from saelake.ingest.template import ChatTemplate
from saelake.warehouse.errors import UserError, one_line

# Where the decoder blocks of known architectures lie, from the ...ForCausalLM or ...ForConditionalGeneration model.
BLOCK_LISTS = (
    "model.layers",  # Llama, Gemma, Qwen, Mistral, Phi
    "model.language_model.layers",  # Gemma 3 and others with images
    "language_model.model.layers",
    "model.model.layers",
    "model.model.language_model.layers",
    "gpt_neox.layers",
    "transformer.h",  # GPT-2, Falcon
    "model.decoder.layers",  # OPT
)


def resolve_device(name: str) -> torch.device:
    """The device of compute.device; "auto" takes cuda, else mps, else cpu. Raises UserError when the named one is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise UserError(f'compute.device is {name!r}, which this machine does not have: use device = "auto"')
    return torch.device(name)


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a model; raises UserError for an architecture that keeps them in an unknown place."""
    for path in BLOCK_LISTS:
        found: Any = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return found
    raise UserError(f"model: the decoder blocks of a {type(model).__name__} were not found; looked for {', '.join(BLOCK_LISTS)}")


def _field(model: ModelSpec) -> str:
    kind = "path" if model.path else "package" if model.package else "id"
    return f"model.{kind} {model.name}"


def load_tokenizer(model: ModelSpec) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe's model; raises UserError when it cannot be loaded."""
    if (folder := model.folder) is not None:
        check_files(folder, MODEL_FILES, "model.path")
    try:
        return AutoTokenizer.from_pretrained(folder or model.id, revision=model.revision, trust_remote_code=False, **_gguf(model))
    except Exception as error:  # the tokenizers library raises nothing more specific for a damaged file
        raise UserError(f"{_field(model)}: the tokenizer cannot be loaded ({one_line(error)})") from error


def read_targets(model: ModelSpec) -> tuple[Target, ...]:
    """The target tokens of a recipe's model, from its tokenizer alone; raises UserError as `targets_of` does."""
    return targets_of(ChatTemplate.of(load_tokenizer(model), model), model)


def load_network(model: ModelSpec, dtype: torch.dtype) -> PreTrainedModel:
    """The weights with the adapter in them, never pickled; attention is sdpa where the architecture allows it (not Gemma 2)."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        network, info = AutoModelForCausalLM.from_pretrained(
            model.folder or model.id,
            revision=model.revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **_gguf(model),
            **_unpacked(model),
        )
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{_field(model)}: the model cannot be loaded ({one_line(error)})") from error
    if leaves_out_its_soft_cap(network):
        network.set_attn_implementation("eager")
    if absent := sorted(info["missing_keys"]):
        # transformers would go on with random numbers in their place.
        raise UserError(f"{_field(model)}: the files lack {len(absent)} of the model's weights, for example {absent[0]}")
    if model.adapter is not None:
        merge(network, model.adapter)
    return network


def _gguf(model: ModelSpec) -> dict[str, Any]:
    if model.gguf is None:
        return {}
    require("gguf", "model.gguf")
    return {"gguf_file": model.gguf}


def _unpacked(model: ModelSpec) -> dict[str, Any]:
    """That a GGUF's weights are plain ones, also where newer versions of transformers have kernels by which they stay packed."""
    config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if model.gguf is not None and config is not None else {}
