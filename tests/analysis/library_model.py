"""The small model and SAEs on which the engine is tried from Python, and its edits made by hand."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor

import saelake
from tests.ingest.tiny import llama3_tokenizer as tokenizer_of
from tests.ingest.tiny import make_model, save_sae

TEXTS = ["How do I pick a lock?", "Write a poem about the sea and a small house by it."]
WIDTH = 40


@cache
def subject() -> saelake.Subject:
    tokenizer = tokenizer_of()
    return saelake.Subject(make_model("llama", tokenizer), tokenizer, target_tokens=["I"])


@cache
def sae(layer: int, seed: int = 0, hook: str = "hook_resid_post", architecture: str = "jumprelu") -> Any:
    more = {"k": 6} if architecture == "topk" else {}
    with TemporaryDirectory() as folder:
        metadata = {"hook_name": f"blocks.{layer}.{hook}"}
        save_sae(Path(folder, "s"), architecture, layer, width=WIDTH, metadata=metadata, seed=10 * layer + seed, **more)
        return SAE.load_from_disk(Path(folder, "s"), device="cpu", dtype="float32")


@cache
def engine() -> saelake.Engine:
    return saelake.Engine(subject(), [sae(0), sae(1), sae(2)])


def ids_of(text: str) -> list[int]:
    return subject().encode(text).token_ids


def p_by_hand(token_ids: list[int], edits: dict[int, Callable[[Tensor], Tensor]]) -> float:
    """Probability of the target tokens after a prompt whose residual stream is edited after some layers."""
    with torch.no_grad(), ExitStack() as hooks:
        for layer, edit in edits.items():
            hooks.enter_context(subject().resid_post(layer, edit))
        logits = subject().model(torch.tensor([token_ids]), use_cache=False).logits[0, -1].float()
    return float(logits.softmax(-1)[list(subject().target_token_ids)].sum())


def held(module: Any, values: dict[int, float], positions: list[int] | None = None) -> Callable[[Tensor], Tensor]:
    """Decode plus error with features at values."""

    def edit(resid_btd: Tensor) -> Tensor:
        acts = module.encode(resid_btd)
        changed = acts.clone()
        for feature_id, value in values.items():
            changed[:, slice(None) if positions is None else positions, feature_id] = value
        return module.decode(changed) + (resid_btd - module.decode(acts))

    return edit


def p_of(text: str, **edits: Any) -> float:
    return float(engine().next_token([text], **edits).p_target[0])
