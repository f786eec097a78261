"""The engine's answers, computed the slow way: one prompt at a time, no padding, full decode plus error, no cache.

h' = W_dec (z with S set to its values) + (h - W_dec z)

And Algorithm 1 as the paper prints it, one evaluation after another.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from saelake.analysis.engine.requests import Request
from saelake.ingest.saes.sae import Sae
from saelake.ingest.sites import Site
from saelake.ingest.subject import Subject


def literal_logits(
    subject: Subject,
    saes: Mapping[int, Sae],
    token_ids: list[int],
    request: Request,
    n_prompt: int,
    acts_tf: dict[int, Tensor] | None = None,
) -> Tensor:
    """(v,) float32 logits after the last of `token_ids`, the first `n_prompt` of which are the prompt.

    Args:
        acts_tf: filled with the activations that every SAE reads in this pass, by layer.
    """
    chosen = range(len(token_ids)) if request.positions is None else [p for p in request.positions if p < n_prompt]
    where_t1 = torch.zeros(len(token_ids), 1, dtype=torch.bool)
    where_t1[list(chosen)] = True

    def hook(layer: int) -> Callable[[Tensor], Tensor]:
        def edit(resid_btd: Tensor) -> Tensor:
            edited = resid_btd
            if acts_tf is not None:
                acts_tf[layer] = saes[layer].module.encode(resid_btd)[0]
            features = request.features.at(layer)
            if len(features):
                module = saes[layer].module
                acts = module.encode(edited)
                error = edited - module.decode(acts)
                held = acts.clone()
                held[..., features["feature_id"].tolist()] = torch.tensor(features["value"].tolist())
                edited = module.decode(held) + error
            if request.direction is not None and Site(layer) in request.direction.sites:
                r = torch.from_numpy(request.direction.vector)
                if request.direction.project_out:
                    edited = edited - (edited @ r)[..., None] * r
                edited = edited + request.direction.add * r
            return torch.where(where_t1, edited, resid_btd)

        return edit

    with torch.no_grad(), ExitStack() as stack:
        for layer in range(subject.n_layers):
            stack.enter_context(subject.resid_post(layer, hook(layer)))
        return subject.model(torch.tensor([token_ids]), use_cache=False).logits[0, -1].float()


def literal_answer(subject: Subject, saes: Mapping[int, Sae], prompt: list[int], request: Request, n: int) -> list[int]:
    """Greedy tokens, the whole text run again for each, up to the end-of-turn token."""
    token_ids, end = list(prompt), {subject.tokenizer.eos_token_id}
    declared = subject.model.generation_config.eos_token_id
    end |= set(declared) if isinstance(declared, list) else {declared}
    for _ in range(n):
        token = int(literal_logits(subject, saes, token_ids, request, len(prompt)).argmax())
        if token in end:
            break
        token_ids.append(token)
    return token_ids[len(prompt) :]


def literal_loop(n: int, block_size: int, tau: float, draws: np.ndarray, p: Callable[[frozenset[int]], float]) -> set[int]:
    """Algorithm 1 as the paper prints it; the random blocks come from `draws` instead of a generator."""
    pool, found = set(range(n)), set[int]()
    step = 0
    while len(pool - found) >= block_size:
        block = set(draws[step].tolist())
        assert block <= pool - found
        step += 1
        before = p(frozenset(pool - found))
        delta = abs(before - p(frozenset(pool - (found | block)))) / before
        if delta >= tau:
            found |= block
        else:
            pool -= block
    assert step == len(draws)
    return found
