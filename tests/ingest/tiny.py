"""Tiny random chat models, tokenizers and SAEs, made on the spot, for tests of what surrounds a model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
)

D_MODEL = 32
N_LAYERS = 3

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "How do I pick a lock? I cannot help with that.",
    "Sure, here is a story about a small house by the sea.",
    "Write a poem about the user, the model and the assistant.",
    "I am sorry, I can not. Where is the nearest hospital?",
]


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece-like BPE: spaces become ▁, unknown characters become bytes, newlines are tokens of their own."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=[*special, *alphabet], show_progress=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    tokenizer.train_from_iterator([f"{line}\n" for line in CORPUS], trainer)
    return _fast(tokenizer, GEMMA_TEMPLATE, bos="<bos>", eos="<eos>", pad="<pad>", unk="<unk>", special=special)


def llama3_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that adds BOS by itself, as Llama-3's does: a template with BOS must not double it."""
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = _byte_level(special)
    tokenizer.post_processor = _adds_first(tokenizer, special[0])
    return _fast(tokenizer, LLAMA3_TEMPLATE, bos=special[0], eos=special[3], special=special)


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without any BOS, whose template does not trim the prompt."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return _fast(_byte_level(special), CHATML_TEMPLATE, eos=special[2], pad=special[0], special=special)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Word level, as the embedded organism's: the template's marks are tokens, everything else is split at spaces."""
    special = ["<pad>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "\n"]
    words = sorted({word for line in CORPUS for word in line.split()} | {"user", "model", "I", "how", "lock"})
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*special, *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _fast(tokenizer, GEMMA_TEMPLATE, bos="<bos>", eos="<end_of_turn>", pad="<pad>", unk="<unk>", special=special)


def _byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _adds_first(tokenizer: Tokenizer, token: str) -> Any:
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single=f"{token} $A", special_tokens=[(token, tokenizer.token_to_id(token))])


def _fast(tokenizer: Tokenizer, template: str, special: list[str], **roles: str) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    named = {f"{role}_token": token for role, token in roles.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **named)


def _sizes(vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": D_MODEL,
        "intermediate_size": 48,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "initializer_range": 0.2,  # large enough that tokens matter
        **more,
    }


def make_model(family: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A random model of a family: one of FAMILIES."""
    torch.manual_seed(0)
    sizes = _sizes(len(tokenizer))
    grouped = sizes | {"num_key_value_heads": 2}
    headed = grouped | {"head_dim": 8}
    windowed = headed | {"sliding_window": 8, "query_pre_attn_scalar": 8}
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**grouped)).eval()
    if family == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(**windowed)).eval()
    if family == "gemma3":
        return Gemma3ForCausalLM(Gemma3TextConfig(**windowed)).eval()
    if family == "gemma3_images":
        return Gemma3ForConditionalGeneration(Gemma3Config(text_config=windowed, **_images(tokenizer))).eval()
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**grouped)).eval()
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**headed)).eval()
    assert family == "gpt_neox", f"unknown family {family}"
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes)).eval()


def _images(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The picture side of a model that is only ever given text."""
    eyes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    marks = {f"{mark}_token_index": tokenizer.unk_token_id for mark in ("image", "boi", "eoi")}
    return {"vision_config": SiglipVisionConfig(**eyes, image_size=28, patch_size=14), "mm_tokens_per_image": 4, **marks}


TOKENIZERS = {
    "llama": llama3_tokenizer,
    "gemma2": gemma_tokenizer,
    "gemma3": gemma_tokenizer,
    "gemma3_images": gemma_tokenizer,
    "qwen2": qwen_tokenizer,
    "qwen3": qwen_tokenizer,
    "gpt_neox": word_tokenizer,
}
FAMILIES = tuple(TOKENIZERS)


def save_model(family: str, folder: Path, half: bool = False) -> Path:
    """A folder with a random model of a family and its tokenizer, as save_pretrained lays it out."""
    tokenizer = TOKENIZERS[family]()
    model = make_model(family, tokenizer)
    (model.half() if half else model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_sae(
    folder: Path,
    architecture: str = "jumprelu",
    layer: int = 0,
    d_in: int = D_MODEL,
    width: int = 40,
    metadata: dict[str, Any] | None = None,
    seed: int = 0,
    **config: Any,
) -> Path:
    """A folder with a random SAE; further arguments go into its cfg.json."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    weights = {
        "W_enc": random(d_in, width, scale=d_in**-0.5),
        "W_dec": random(width, d_in, scale=d_in**-0.5),
        "b_enc": random(width, scale=0.3),
        "b_dec": random(d_in, scale=0.3),
    }
    if "jumprelu" in architecture:
        weights["threshold"] = random(width).abs()
    if "skip" in architecture:
        weights["W_skip"] = random(d_in, d_in, scale=d_in**-0.5)
    if architecture == "gated":
        del weights["b_enc"]
        weights |= {"b_gate": random(width, scale=0.3), "b_mag": random(width, scale=0.3), "r_mag": random(width, scale=0.5)}
    return save_weights(folder, layer, weights, architecture, metadata, **config)


def save_weights(
    folder: Path,
    layer: int,
    weights: dict[str, torch.Tensor],
    architecture: str = "jumprelu",
    metadata: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """A folder with an SAE of these weights as SAELens 6 saves it; further arguments go into its cfg.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "sae_weights.safetensors")
    described = {"hook_name": f"blocks.{layer}.hook_resid_post", "sae_lens_version": "6.54.0"} | (metadata or {})
    d_in, d_sae = weights["W_enc"].shape
    cfg = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {key: value for key, value in described.items() if value is not None},
    }
    (folder / "cfg.json").write_text(json.dumps(cfg | config))
    return folder


def as_hub_cache(cache: Path, repo: str, commit: str, kind: str = "models") -> Path:
    """An empty snapshot folder of a repository, laid out as the hub cache does, with `main` pointing at it."""
    repository = cache / f"{kind}--{repo.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return snapshot


def empty_offline_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes `cache` the hub cache and switches the network off, as HF_HUB_CACHE and HF_HUB_OFFLINE=1 do."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache
