"""What a model must be to be studied, and how many positions it has learned."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from saelake.warehouse.errors import UserError

ATTENTIONS = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
"""Kinds of layers, by transformers' names, that keep keys and values."""


def check_loaded(model: Any, tokenizer: Any) -> None:
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"a {type(model).__name__} is not a model of transformers: give what AutoModelForCausalLM.from_pretrained gives"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError(
            f"a {type(tokenizer).__name__} is not a tokenizer of transformers: give what AutoTokenizer.from_pretrained gives"
        )
    devices = {str(weight.device) for weight in model.parameters()}
    if "meta" in devices:
        raise UserError("the model has weights on no device (meta): load it with its weights")
    if len(devices) > 1:
        raise UserError(
            f"the model lies on several devices ({', '.join(sorted(devices))}), between which an edited pass cannot go: load "
            f'it on one, such as device_map={{"": "cuda:0"}}'
        )


def learned_positions(model: nn.Module) -> int | None:
    """How many positions a model with learned ones has; None where positions are computed and do not run out."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in ("wpe", "embed_positions", "position_embeddings"):
            return module.num_embeddings - int(getattr(module, "offset", 0))
    return None


def leaves_out_its_soft_cap(model: PreTrainedModel) -> bool:
    """Whether its attention is torch's, which has no soft cap, though its config asks for one (Gemma 2). Newer versions of
    transformers refuse that; older ones compute it without a word."""
    config = model.config.get_text_config()
    return bool(getattr(config, "attn_logit_softcapping", None)) and config._attn_implementation == "sdpa"


def check_attention(model: PreTrainedModel) -> None:
    """Raises UserError for a model whose attention leaves out what its config asks for."""
    if leaves_out_its_soft_cap(model):
        raise UserError(
            f'model: a {type(model).__name__} needs the soft cap of its attention, which attn_implementation="sdpa" leaves out: '
            f'load it with attn_implementation="eager"'
        )


def check_states(model: PreTrainedModel) -> None:
    """Raises UserError for a model that remembers a prompt by other states than every layer's own keys and values, which rows
    cannot share."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - ATTENTIONS
    if kinds or getattr(model, "_is_stateful", False):
        named = f" ({', '.join(sorted(kinds))})" if kinds else ""
        raise UserError(
            f"model: a {type(model).__name__} has layers that are not attention{named}, whose states cannot be resumed and "
            f"shared between ablated passes: models of attention and MLP alone are supported"
        )
    shared = [mode for mode in getattr(config, "kv_sharing_modes", None) or () if mode is not None]
    if shared or bool(getattr(config, "num_kv_shared_layers", 0)):  # transformers 5.0 has but their number
        raise UserError(
            f"model: a {type(model).__name__} has layers that attend to keys and values of a layer below them, which a pass that "
            f"resumes above that does not have: models whose layers all make their own are supported"
        )
