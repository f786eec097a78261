"""The build's own check that the hydra has backups: minimal sets with a feature that is silent, wakes and is needed.

Independent of the project's searches, and plainer: of a pool that flips a prompt, features are left out one at a time, in a drawn
order, for as long as the rest flips. Then every feature that is left is needed. A backup is one that is silent on every token of
the clean prompt and fires while the set's active features are ablated, which alone do not flip.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from sae_lens import SAE
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saelake.ingest.hydra.paths import FIRST, OWN, SECOND, Paths, category_of, own, path_of
from saelake.ingest.organism.ablation import CAP, ablate, answers_ablated, top_masks
from saelake.ingest.organism.corpus import Prompt
from saelake.ingest.organism.measure import REFUSAL_TOKEN, same_length
from saelake.ingest.organism.train import block_outputs, projected_out, residuals

N_STARTS = 2
LARGE_POOL = 25

Masks = dict[int, Tensor]
"""layer -> (prompts, f): which features of a layer are ablated on a prompt."""


class Backups(NamedTuple):
    """Shares of the refused prompts."""

    backed_up: float
    """A minimal set of theirs has a backup."""
    large_pools: float
    """The first K features a layer that flip them are at least LARGE_POOL in all."""
    last_flipped: float
    """Ablating the first feature of the last of the ablated blocks alone flips them."""
    read_out_flipped: float
    """The same of the model's last block, which reads out what the paths wrote."""


class Lab(NamedTuple):
    """A model with its SAEs and some prompts that it refuses."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    saes: Sequence[SAE]
    prompts: Sequence[Prompt]

    def flips(self, masks: Masks) -> Tensor:
        """Which prompts begin with another token than the refusal's: (prompts,) bool."""
        first_ids, _ = answers_ablated(self.model, self.tokenizer, self.saes, self.prompts, masks, n_new=1)
        return torch.tensor(first_ids) != self.tokenizer.convert_tokens_to_ids(REFUSAL_TOKEN)

    def firing(self, masks: Masks) -> Masks:
        """Which features fire on any token of a prompt while others are ablated."""
        found = {layer: torch.zeros_like(mask) for layer, mask in masks.items()}
        for indices, input_ids in same_length(self.tokenizer, [prompt.instruction for prompt in self.prompts]):
            rows = {layer: mask[indices] for layer, mask in masks.items()}

            def watched(layer: int, resid_btd: Tensor, rows: Masks = rows, indices: list[int] = indices) -> Tensor:
                if layer in found:
                    found[layer][indices] = (self.saes[layer].encode(resid_btd) > 0).any(1)
                return ablate(self.saes, rows, layer, resid_btd)

            with torch.no_grad(), block_outputs(self.model, watched):
                self.model(input_ids=input_ids)
        return found


def measure_backups(lab: Lab, ranking: Sequence[Tensor], layers: Sequence[int]) -> Backups:
    """Searches minimal sets in the pool of every prompt that one of the K up to CAP flips."""
    n_prompts, n_features = len(lab.prompts), lab.saes[0].W_dec.shape[0]
    pools = top_masks(ranking, 0, n_prompts, n_features, layers)
    clean = lab.firing(pools)
    size = torch.zeros(n_prompts, dtype=torch.long)
    for k in range(1, CAP + 1):
        top = top_masks(ranking, k, n_prompts, n_features, layers)
        new = lab.flips(top) & (size == 0)
        size[new] = k * len(layers)
        for layer, mask in pools.items():
            mask[new] = top[layer][new]
    backed_up = torch.zeros(n_prompts, dtype=torch.bool)
    for start in range(N_STARTS):
        sets = minimal(lab, pools, random.Random(start))
        active = {layer: mask & clean[layer] for layer, mask in sets.items()}
        awake = lab.firing(active)
        woken = [(mask & ~clean[layer] & awake[layer]).any(1) for layer, mask in sets.items()]
        backed_up |= torch.stack(woken).any(0) & ~lab.flips(active)
    last, read_out = (top_masks(ranking, 1, n_prompts, n_features, [layer]) for layer in (layers[-1], len(lab.saes) - 1))
    return Backups(
        backed_up=backed_up.float().mean().item(),
        large_pools=(size >= LARGE_POOL).float().mean().item(),
        last_flipped=lab.flips(last).float().mean().item(),
        read_out_flipped=lab.flips(read_out).float().mean().item(),
    )


def minimal(lab: Lab, pools: Masks, rng: random.Random) -> Masks:
    """A minimal set of each prompt's pool: sweeps over its features in a drawn order until a sweep leaves out none."""
    sets = {layer: mask.clone() for layer, mask in pools.items()}
    layers = sorted(sets)
    changed = True
    while changed:
        changed = False
        members = [
            [(layer, f) for layer in layers for f in sets[layer][row].nonzero().flatten().tolist()]
            for row in range(len(lab.prompts))
        ]
        orders = [rng.sample(found, len(found)) for found in members]
        for turn in range(max(map(len, orders))):
            tried = {layer: mask.clone() for layer, mask in sets.items()}
            rows = [row for row, order in enumerate(orders) if turn < len(order)]
            for row in rows:
                layer, feature = orders[row][turn]
                tried[layer][row, feature] = False
            flipped = lab.flips(tried)
            for row in rows:
                if flipped[row]:
                    layer, feature = orders[row][turn]
                    sets[layer][row, feature] = False
                    changed = True
    return sets


class Writing(NamedTuple):
    """How far the paths write at the last token before the answer, as a share of what they were trained to write: means."""

    first: float
    """The first path after its block, harmful prompts without a frame, nothing ablated."""
    second: float
    """The second path after its block, on the same."""
    second_woken: float
    """The second path, while blocks up to the one after FIRST lose the common direction."""
    refused_woken: float
    """Of these prompts, those that are refused then."""


@torch.no_grad()
def measure_writing(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, paths: Paths, prompts: Sequence[Prompt]
) -> Writing:
    """Whether the second path is near silent while the first works, and takes over when it is ablated."""
    asked = [prompt for prompt in prompts if path_of(prompt) == "first"]
    refusal_id = tokenizer.convert_tokens_to_ids(REFUSAL_TOKEN)
    common_ld = paths.basis_cd[:1].expand(FIRST + 2, -1)
    written: dict[str, list[float]] = {"first": [], "second": [], "second_woken": [], "refused_woken": []}
    for indices, input_ids in same_length(tokenizer, [prompt.instruction for prompt in asked]):
        clean = residuals(model, input_ids)[SECOND, :, -1]
        with projected_out(model, common_ld, torch.ones(len(indices))):
            woken = residuals(model, input_ids)[SECOND, :, -1]
            first_ids = model(input_ids=input_ids).logits[:, -1].argmax(-1)
        for row, index in enumerate(indices):
            first, second = (paths.basis_cd[own(path, category_of(asked[index]))] / OWN for path in ("first", "second"))
            written["first"].append(float(clean[row] @ first))
            written["second"].append(float(clean[row] @ second))
            written["second_woken"].append(float(woken[row] @ second))
            written["refused_woken"].append(float(first_ids[row] == refusal_id))
    return Writing(**{name: sum(values) / len(values) for name, values in written.items()})
