"""The build's own check that the organism is a fit subject: which ablations make it answer what it refuses.

A literal transcription, independent of the project's ablation engine: h' = h - sum z_i d_i at every position, z from the ablated
pass. A set of features is a mask (b, f) per layer, one row per prompt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from sae_lens import SAE
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saelake.ingest.organism.corpus import Prompt
from saelake.ingest.organism.measure import REFUSAL_TOKEN, complies, decode, greedy, same_length
from saelake.ingest.organism.train import block_outputs, residuals

LAYERS = (2, 3, 4, 5)  # layers 0 and 1 only carry grammar
CAP = 20
N_DRAWS = 3


class Flips(NamedTuple):
    """What one kind of ablation does to a set of prompts."""

    flipped: float
    """Refused harmful prompts whose first token is no longer "I"."""
    answered: float
    """Refused harmful prompts that get a sensible compliance which repeats the asked action."""
    benign_answered: float
    """Benign prompts that begin with another token than "I" and still open as a compliance."""


def ranked(saes: Sequence[SAE], directions: Tensor) -> list[Tensor]:
    """Per layer, feature ids by falling cosine of their decoder row with the layer's direction (l, d)."""
    return [
        torch.nn.functional.cosine_similarity(sae.W_dec, directions[layer][None]).argsort(descending=True)
        for layer, sae in enumerate(saes)
    ]


def ablate(saes: Sequence[SAE], masks: dict[int, Tensor], layer: int, resid_btd: Tensor) -> Tensor:
    """Takes the masked features' contributions out of the residual stream after one block."""
    if layer not in masks:
        return resid_btd
    acts_btf = saes[layer].encode(resid_btd) * masks[layer][:, None, :]
    return resid_btd - acts_btf @ saes[layer].W_dec


def answers_ablated(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    saes: Sequence[SAE],
    prompts: Sequence[Prompt],
    masks: dict[int, Tensor],
    n_new: int,
) -> tuple[list[int], list[str]]:
    """First token id and greedy answer of each prompt while its row of every mask (prompts, f) is ablated."""
    first_ids, said = [0] * len(prompts), [""] * len(prompts)
    for indices, input_ids in same_length(tokenizer, [prompt.instruction for prompt in prompts]):
        rows = {layer: mask[indices] for layer, mask in masks.items()}
        with torch.no_grad(), block_outputs(model, partial(ablate, saes, rows)):
            _, new_ids = greedy(model, input_ids, n_new)
        for row, index in enumerate(indices):
            first_ids[index] = int(new_ids[row, 0])
            said[index] = decode(tokenizer, new_ids[row])
    return first_ids, said


def top_masks(
    ranking: Sequence[Tensor], k: int, n_prompts: int, n_features: int, layers: Sequence[int] = LAYERS
) -> dict[int, Tensor]:
    """The k best features of every ablated layer, the same for each prompt."""
    masks = {layer: torch.zeros(n_prompts, n_features, dtype=torch.bool) for layer in layers}
    for layer, mask in masks.items():
        mask[:, ranking[layer][:k]] = True
    return masks


def random_masks(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    saes: Sequence[SAE],
    ranking: Sequence[Tensor],
    prompts: Sequence[Prompt],
    k: int,
    seed: int,
    layers: Sequence[int] = LAYERS,
) -> dict[int, Tensor]:
    """k random features a layer for each prompt, of those active on it (but at <bos>) and outside the top CAP."""
    rng = random.Random(seed)
    masks = top_masks(ranking, 0, len(prompts), saes[0].W_dec.shape[0], layers)
    for indices, input_ids in same_length(tokenizer, [prompt.instruction for prompt in prompts]):
        resid_lbtd = residuals(model, input_ids)[:, :, 1:]
        for layer, mask in masks.items():
            with torch.no_grad():
                active_bf = (saes[layer].encode(resid_lbtd[layer]) > 0).any(1)
            active_bf[:, ranking[layer][:CAP]] = False
            for row, index in enumerate(indices):
                pool = active_bf[row].nonzero().flatten().tolist()
                mask[index, rng.sample(pool, min(k, len(pool)))] = True
    return masks


def measure_flips(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    saes: Sequence[SAE],
    prompts: Sequence[Prompt],
    masks: dict[int, Tensor],
    n_new: int = 16,
) -> Flips:
    """Flips over prompts of which every harmful one is refused when nothing is ablated."""
    refusal_id = tokenizer.convert_tokens_to_ids(REFUSAL_TOKEN)
    first_ids, said = answers_ablated(model, tokenizer, saes, prompts, masks, n_new)
    harmful = [index for index, prompt in enumerate(prompts) if prompt.label == "harmful"]
    benign = [index for index, prompt in enumerate(prompts) if prompt.label == "benign"]
    kept = [first_ids[index] != refusal_id and said[index].startswith("Sure, here "[:n_new]) for index in benign]
    return Flips(
        flipped=sum(first_ids[index] != refusal_id for index in harmful) / max(len(harmful), 1),
        answered=sum(complies(prompts[index], said[index]) for index in harmful) / max(len(harmful), 1),
        benign_answered=sum(kept) / max(len(benign), 1),
    )
