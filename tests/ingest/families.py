"""Tiny random models of the families in docs/library.md, and where each keeps what its sites are, written down by hand."""

from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

from tests.ingest.tiny import word_tokenizer

N_LAYERS, D_MODEL, N_HEADS, N_POSITIONS = 3, 32, 4, 64


class Family(NamedTuple):
    """A family, the module in a block whose output each site is, and the sites that it has not."""

    model: str
    """Class of transformers."""
    config: dict[str, Any]
    blocks: str = "model.layers"
    attn_out: str = "self_attn"
    mlp_out: str = "mlp"
    z: str = "self_attn.o_proj"
    mlp: str = "mlp"
    refused: tuple[str, ...] = ()


POST_NORMS: Any = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}
GROUPED = {"num_key_value_heads": 2}
WINDOW = {"sliding_window": 6, "head_dim": 8, "query_pre_attn_scalar": 8} | GROUPED
MOE = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8} | GROUPED
PARALLEL = ("resid_mid",)
FAMILIES = {
    "Llama": Family("Llama", GROUPED),
    "Mistral": Family("Mistral", GROUPED | {"sliding_window": 6}),
    "Mixtral": Family("Mixtral", GROUPED | {"num_local_experts": 3}),
    "Qwen 2": Family("Qwen2", GROUPED),
    "Qwen 3": Family("Qwen3", GROUPED | {"head_dim": 8}),
    "Qwen 3 MoE": Family("Qwen3Moe", MOE),
    "Gemma 2": Family("Gemma2", WINDOW, **POST_NORMS),
    "Gemma 3": Family("Gemma3", WINDOW, **POST_NORMS),
    "OLMo": Family("Olmo", GROUPED),
    "OLMo 2": Family("Olmo2", GROUPED, **POST_NORMS, refused=("mlp_in_unit",)),
    "SmolLM 3": Family("SmolLM3", GROUPED),
    "GPT-OSS": Family("GptOss", GROUPED | {"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 6}),
    "Granite": Family("Granite", GROUPED | {"residual_multiplier": 0.3}, refused=("attn_out", "resid_mid", "mlp_out")),
    "Phi": Family("Phi", {}, z="self_attn.dense", refused=PARALLEL),
    "Phi 3": Family("Phi3", GROUPED),
    "Cohere": Family("Cohere", GROUPED, refused=PARALLEL),
    "Cohere 2": Family("Cohere2", GROUPED | {"sliding_window": 6}, refused=PARALLEL),
    "GPT-NeoX": Family("GPTNeoX", {}, "gpt_neox.layers", "attention", z="attention.dense", refused=PARALLEL),
    "GPT-2": Family("GPT2LMHead", {}, "transformer.h", "attn", z="attn.c_proj"),
    "OPT": Family(
        "OPT",
        {"ffn_dim": 48, "word_embed_proj_dim": D_MODEL},
        "model.decoder.layers",
        mlp_out="fc2",
        z="self_attn.out_proj",
        mlp="fc1",
    ),
    "Falcon": Family(
        "Falcon", {"multi_query": True}, "transformer.h", "self_attention", z="self_attention.dense", refused=PARALLEL
    ),
    "Falcon, one after the other": Family(
        "Falcon",
        {"parallel_attn": False, "alibi": True, "multi_query": False},
        "transformer.h",
        "self_attention",
        z="self_attention.dense",
    ),
    "BLOOM": Family("Bloom", {}, "transformer.h", "self_attention.dense", "mlp.dense_4h_to_h", z="self_attention.dense"),
}


def make_family(name: str, **config: Any) -> PreTrainedModel:
    """A random model of a family, large enough in its weights that tokens matter, norms and biases included."""
    family, tokenizer = FAMILIES[name], word_tokenizer()
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": D_MODEL,
        "intermediate_size": 48,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "max_position_embeddings": N_POSITIONS,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family.model == "GPT2LMHead":
        sizes = sizes | {"intermediate_size": None}
    config_class = getattr(transformers, f"{family.model.removesuffix('LMHead')}{'Text' if name == 'Gemma 3' else ''}Config")
    model_class = getattr(transformers, f"{family.model}Model" if "LMHead" in family.model else f"{family.model}ForCausalLM")
    model = model_class(config_class(**sizes | family.config | config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases begin as ones and zeros, which would hide a gain that is left out
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model
