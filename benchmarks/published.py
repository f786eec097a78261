"""The peer: ablation as published, with SAELens: all latents encoded and decoded in a hook, one prompt at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from saelake.analysis.engine.requests import FeatureSet
from saelake.analysis.search.critical import Pool
from saelake.ingest.saes.sae import Sae
from saelake.ingest.subject import Batch, Subject


@contextmanager
def decode_plus_error(subject: Subject, saes: Mapping[int, Sae], features: FeatureSet) -> Iterator[None]:
    """While open, the features of one set are ablated by hand-written hooks around SAELens' encode and decode.

    One encoding and two decodings a layer: the leanest full form.
    """

    def edit(module: Any, ids: Tensor, resid_btd: Tensor) -> Tensor:
        acts_btf = module.encode(resid_btd)
        error_btd = resid_btd - module.decode(acts_btf)
        acts_btf[..., ids] = 0
        edited_btd: Tensor = module.decode(acts_btf) + error_btd
        return edited_btd

    with _hooked(subject, saes, features, edit):
        yield


@contextmanager
def saelens_error_term(subject: Subject, saes: Mapping[int, Sae], features: FeatureSet) -> Iterator[None]:
    """The same by SAELens' own error term and hook points, which encode and decode twice."""

    def edit(module: Any, ids: Tensor, resid_btd: Tensor) -> Tensor:
        def zero(acts_btf: Tensor, hook: object) -> Tensor:
            acts_btf[..., ids] = 0
            return acts_btf

        module.use_error_term = True
        with module.hooks(fwd_hooks=[("hook_sae_acts_post", zero)]):
            edited_btd: Tensor = module(resid_btd)
            return edited_btd

    with _hooked(subject, saes, features, edit):
        yield


def saelens_bridge(folder: Path, saes: Mapping[int, Sae]) -> Any:
    """SAELens' own model, with every SAE and its error term in its place."""
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = SAETransformerBridge.boot_transformers(str(folder), tokenizer=tokenizer, device="cpu", dtype=torch.float32)
    for sae in saes.values():
        sae.module.cfg.metadata.hook_name = sae.reads.hook
        model.add_sae(sae.module, use_error_term=True)
    return model


def bridge_hooks(features: FeatureSet) -> list[tuple[str, Callable[..., Tensor]]]:
    """What takes the features out of a pass of `saelens_bridge`, for its `run_with_hooks`."""

    def without(acts: Tensor, hook: Any, ids: Tensor) -> Tensor:
        held = acts.clone()
        held[..., ids] = 0
        return held

    # The bridge's own name of the place: a hook on blocks.N.hook_resid_post.hook_sae_acts_post is never called.
    name = "blocks.{}.hook_out.hook_sae_acts_post"
    return [(name.format(n), partial(without, ids=ids_of(features, n))) for n in features.saes]


def ids_of(features: FeatureSet, number: int) -> Tensor:
    """int64 ids of the features of one SAE."""
    return torch.from_numpy(features.at(number)["feature_id"].astype(np.int64))


def algorithm1_loop(
    subject: Subject, saes: Mapping[int, Sae], token_ids: Sequence[int], pool: Pool, block_size: int, tau: float, seed: int
) -> tuple[set[int], int]:
    """Algorithm 1 as printed in the paper: the found places of the pool, and the evaluations that it took."""
    rng = np.random.default_rng(seed)
    batch = subject.batch([token_ids])
    remaining, found, n_evaluations = set(range(len(pool))), set[int](), 0

    def p_target(ablated: set[int]) -> float:
        with decode_plus_error(subject, saes, pool.at(sorted(ablated))):
            return _p_target(subject, batch)

    while len(remaining - found) >= block_size:
        block = set(rng.choice(sorted(remaining - found), block_size, replace=False).tolist())
        before, after = p_target(remaining - found), p_target(remaining - (found | block))
        n_evaluations += 2
        if abs(before - after) / max(before, 1e-12) >= tau:
            found |= block
        else:
            remaining -= block
    return found, n_evaluations


def greedy(subject: Subject, token_ids: Sequence[int], n_new: int) -> list[int]:
    """transformers' own greedy generation of one prompt, with its cache; exactly `n_new` tokens."""
    given = torch.tensor([token_ids], device=subject.device)
    out = subject.model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=n_new, min_new_tokens=n_new, do_sample=False
    )
    tokens: list[int] = out[0, len(token_ids) :].tolist()
    return tokens


@torch.no_grad()
def _p_target(subject: Subject, batch: Batch) -> float:
    probabilities_v = subject.forward(batch)[0].softmax(-1)
    return float(probabilities_v[list(subject.target_token_ids)].sum())


@contextmanager
def _hooked(
    subject: Subject,
    saes: Mapping[int, Sae],
    features: FeatureSet,
    edit: Callable[[Any, Tensor, Tensor], Tensor],
) -> Iterator[None]:
    with torch.no_grad(), ExitStack() as hooks:
        for layer in features.saes:
            ids = torch.from_numpy(features.at(layer)["feature_id"].astype(np.int64)).to(subject.device)
            hooks.enter_context(subject.resid_post(layer, partial(edit, saes[layer].module, ids)))
        yield
