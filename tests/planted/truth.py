"""Ground truth by brute force: the literal ablation, full decode plus error, shared with nothing that it judges.

    h' = W_dec (z * 1[not in S]) + (h - W_dec z),    z from the residual h of the ablated pass itself

Slow on purpose: every latent is encoded and decoded, at every layer and position, and nothing is reused between sets.
"""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from sae_lens import JumpReLUSAE
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from saelake.ingest.planted.saes import load_sae
from tests.planted.study import Feature, Planted

BATCH = 1024  # sets per forward pass; about 25 MB of activations


class Loaded(NamedTuple):
    """A planted study in memory."""

    model: Any
    """LlamaForCausalLM in evaluation mode"""
    tokenizer: Any
    """its tokenizer"""
    saes: list[JumpReLUSAE]
    """one per layer"""
    refusal_id: int
    """token id of the refusal token"""


class Outcome(NamedTuple):
    """What one prompt does under each of b ablated sets."""

    p_refusal_b: torch.Tensor
    """probability of the refusal token after the prompt"""
    flipped_b: torch.Tensor
    """the most likely first token is not the refusal token"""
    acts_bltf: torch.Tensor
    """activations in the ablated pass, before they are removed"""
    resid_bltd: torch.Tensor
    """resid_post, after the ablation"""


class TableRow(NamedTuple):
    """What all harmful prompts do when the named features are ablated at layers 2-5."""

    ablated: str
    """which features"""
    n_prompts: int
    """harmful prompts"""
    n_flipped: int
    """of which no longer refused"""
    p_refusal_min: float
    """lowest probability of the refusal token"""
    p_refusal_max: float
    """highest probability of the refusal token"""
    backup_min: float
    """lowest activation of the backup at layer 4 on the last token"""
    backup_max: float
    """highest activation of the backup at layer 4 on the last token"""


def load(planted: Planted) -> Loaded:
    """Read the study by the ordinary loaders of transformers and sae-lens."""
    model = AutoModelForCausalLM.from_pretrained(planted.folder / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(planted.folder / "model")
    saes = [load_sae(planted.folder, layer) for layer in range(model.config.num_hidden_layers)]
    return Loaded(model, tokenizer, saes, tokenizer.convert_tokens_to_ids(planted.refusal_token))


def prompt_ids(loaded: Loaded, instruction: str) -> torch.Tensor:
    """[1, t]: the instruction inside the chat template, ready for the answer."""
    chat = [{"role": "user", "content": instruction}]
    text = loaded.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids: torch.Tensor = loaded.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    return ids


@torch.no_grad()
def ablate(loaded: Loaded, ids_1t: torch.Tensor, sets: Sequence[Iterable[Feature]]) -> Outcome:
    """Run one prompt under each of the sets, features ablated at every position."""
    n_layers, n_latents = len(loaded.saes), loaded.saes[0].cfg.d_sae
    keep_blf = torch.ones(len(sets), n_layers, n_latents)
    for row, features in enumerate(sets):
        for layer, feature_id in features:
            keep_blf[row, layer, feature_id] = 0
    acts: list[torch.Tensor] = []
    resids: list[torch.Tensor] = []

    def hook_for(layer: int) -> Any:
        sae = loaded.saes[layer]

        def hook(_block: nn.Module, _args: Any, resid_btd: torch.Tensor) -> torch.Tensor:
            acts_btf = sae.encode(resid_btd)
            error_btd = resid_btd - sae.decode(acts_btf)
            acts.append(acts_btf)
            resids.append(sae.decode(acts_btf * keep_blf[:, layer, None, :]) + error_btd)
            return resids[-1]

        return hook

    handles = [block.register_forward_hook(hook_for(i)) for i, block in enumerate(loaded.model.model.layers)]
    try:
        logits_bv = loaded.model(ids_1t.expand(len(sets), -1), use_cache=False).logits[:, -1]
    finally:
        for handle in handles:
            handle.remove()
    return Outcome(
        p_refusal_b=logits_bv.softmax(-1)[:, loaded.refusal_id],
        flipped_b=logits_bv.argmax(-1) != loaded.refusal_id,
        acts_bltf=torch.stack(acts, 1),
        resid_bltd=torch.stack(resids, 1),
    )


def enumerated_sets(planted: Planted) -> list[frozenset[Feature]]:
    """All 4,096 subsets of primary, backup and one noise feature at each of the four layers."""
    features = list(product(planted.layers, (planted.primary, planted.backup, planted.one_noise)))
    return [
        frozenset(feature for bit, feature in enumerate(features) if number >> bit & 1) for number in range(2 ** len(features))
    ]


def flipping_sets(planted: Planted, instruction: str, loaded: Loaded | None = None) -> list[frozenset[Feature]]:
    """Every enumerated set whose ablation makes the answer open with another token than the refusal token."""
    loaded = loaded or load(planted)
    ids_1t = prompt_ids(loaded, instruction)
    sets = enumerated_sets(planted)
    flipped: list[bool] = []
    for start in range(0, len(sets), BATCH):
        flipped += ablate(loaded, ids_1t, sets[start : start + BATCH]).flipped_b.tolist()
    return [features for features, flips in zip(sets, flipped, strict=True) if flips]


def minimal_sets(planted: Planted, instruction: str, loaded: Loaded | None = None) -> frozenset[frozenset[Feature]]:
    """The flipping sets of a prompt no proper subset of which flips it; {empty set} if it is not refused to begin with.

    A superset of a minimal set need not flip: the primary at layer 4 flips, at layers 2 and 4 it does not.
    """
    minimal: list[frozenset[Feature]] = []
    for features in sorted(flipping_sets(planted, instruction, loaded), key=len):
        if not any(smaller < features for smaller in minimal):
            minimal.append(features)
    return frozenset(minimal)


def table(planted: Planted, loaded: Loaded | None = None) -> list[TableRow]:
    """The five rows that define the planted network, over all its harmful prompts."""
    loaded = loaded or load(planted)
    harmless = (*planted.noise, *planted.categories.values())
    rows = {
        "nothing": (),
        "primary": (planted.primary,),
        "backup only": (planted.backup,),
        "primary and backup": (planted.primary, planted.backup),
        "noise features": harmless,
    }
    sets = [list(product(planted.layers, feature_ids)) for feature_ids in rows.values()]
    outcomes = [ablate(loaded, prompt_ids(loaded, row["instruction"]), sets) for row in planted.prompts("harmful")]
    p_refusal_pb = torch.stack([outcome.p_refusal_b for outcome in outcomes])
    flipped_pb = torch.stack([outcome.flipped_b for outcome in outcomes])
    backup_pb = torch.stack([outcome.acts_bltf[:, 4, -1, planted.backup] for outcome in outcomes])
    return [
        TableRow(
            ablated=name,
            n_prompts=len(outcomes),
            n_flipped=int(flipped_pb[:, i].sum()),
            p_refusal_min=p_refusal_pb[:, i].min().item(),
            p_refusal_max=p_refusal_pb[:, i].max().item(),
            backup_min=backup_pb[:, i].min().item(),
            backup_max=backup_pb[:, i].max().item(),
        )
        for i, name in enumerate(rows)
    ]
