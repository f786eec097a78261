"""What every active feature does to a number that the model's next token gives, to first order, from one backward pass.

    effect of a feature at a token = -z (d . g), with g the gradient of the target at the site that the SAE writes

It is what the target would change by if the feature were ablated there, were the network linear in that change.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from saelake.analysis.engine.library import ACTIVATIONS, Engine
from saelake.analysis.engine.prompts import Prompt, read_prompts
from saelake.ingest.saes.sae import Sae
from saelake.ingest.sites import Site
from saelake.warehouse.errors import UserError

Target = str | int | Sequence[int] | Callable[[Tensor], Tensor]
"""p_target: the target tokens' probability; logit: the mean of their logits less that of all; a token's id, or ids: the logit, or
the sum; or a function of next-token logits (b, v) that gives (b,)."""
ATTRIBUTIONS = ACTIVATIONS.append(pa.field("effect", pa.float32()))


def attribution(engine: Engine, prompts: Sequence[Prompt], target: Target = "p_target") -> pa.Table:
    """The first-order effect of every feature that fires: columns prompt, pos, sae_id, feature_id, activation and effect.

    Rows come by prompt, the largest effects first, whatever their sign. A positive effect: without the feature the target grows.
    """
    read = read_prompts(engine.subject, prompts)
    tables = [_of_prompt(engine, place, one.token_ids, _function(engine, target)) for place, one in enumerate(read)]
    return pa.concat_tables(tables) if tables else ATTRIBUTIONS.empty_table()


def _of_prompt(engine: Engine, place: int, token_ids: Sequence[int], target: Callable[[Tensor], Tensor]) -> pa.Table:
    saes = list(engine.saes.values())
    acts, grads = gradients(engine, token_ids, target)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("pos", "sae", "feature_id", "activation", "effect")}
    for number, sae in enumerate(saes):
        acts_tf = acts[number]
        pos, feature = acts_tf.nonzero(as_tuple=True)
        value = acts_tf[pos, feature]
        along = torch.empty_like(value)
        for start in range(0, len(pos), 1 << 14):  # rows of the decoder that exist at a time
            part = slice(start, start + (1 << 14))
            along[part] = (sae.decoder_rows(feature[part], value.device) * grads[sae.writes][pos[part]]).sum(-1)
        found = (pos.int(), torch.full_like(pos, number).short(), feature.int(), value, -value * along)
        for name, column in zip(columns, found, strict=True):
            columns[name].append(column.cpu().numpy())
    whole = {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in columns.items()}
    order = np.lexsort((whole["feature_id"], whole["sae"], whole["pos"], -np.abs(whole["effect"])))
    ids = pa.array([sae.sae_id for sae in saes], pa.string())
    sae_id = pa.DictionaryArray.from_arrays(pa.array(whole["sae"][order], pa.int16()), ids)
    given = [np.full(len(order), place), whole["pos"][order], sae_id]
    given += [whole[name][order] for name in ("feature_id", "activation", "effect")]
    return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(given, ATTRIBUTIONS, strict=True)], schema=ATTRIBUTIONS)


def gradients(
    engine: Engine, token_ids: Sequence[int], target: Callable[[Tensor], Tensor]
) -> tuple[dict[int, Tensor], dict[Site, Tensor]]:
    """What each SAE reads in the clean pass, (t, f) by its place, and the target's gradient (t, d) where they write."""
    subject, saes = engine.subject, list(engine.saes.values())
    batch = subject.batch([token_ids])
    acts: dict[int, Tensor] = {}
    nudges: dict[Site, Tensor] = {}

    def read(number: int, sae: Sae, x_btd: Tensor) -> None:
        acts[number] = sae.on(x_btd.device).encode(x_btd.detach()[0].float())

    def nudge(site: Site, x_btd: Tensor) -> Tensor:
        nudges[site] = torch.zeros_like(x_btd, dtype=torch.float32).requires_grad_()
        return x_btd + nudges[site].to(x_btd.dtype)

    with ExitStack() as hooks, torch.enable_grad():
        for number, sae in enumerate(saes):
            hooks.enter_context(subject.at(sae.reads, partial(read, number, sae), 1))
        for site in dict.fromkeys(sae.writes for sae in saes):
            hooks.enter_context(subject.at(site, partial(nudge, site), 1))
        value = target(subject.forward_with_gradient(batch)).sum()
        found = torch.autograd.grad(value, list(nudges.values()), allow_unused=True)
    grads = {
        site: torch.zeros_like(nudges[site])[0] if grad is None else grad[0] for site, grad in zip(nudges, found, strict=True)
    }
    return acts, grads


def _function(engine: Engine, target: Target) -> Callable[[Tensor], Tensor]:
    if callable(target):
        return target
    ids = list(engine.subject.refusal_token_ids)
    if target == "p_target":
        return lambda logits_bv: logits_bv.softmax(-1)[:, ids].sum(-1)
    if target == "logit":
        return lambda logits_bv: logits_bv[:, ids].mean(-1) - logits_bv.mean(-1)
    if isinstance(target, str):
        raise UserError(f"target is {target!r}: it is p_target, logit, a token's id, a list of ids, or a function of logits")
    chosen = [target] if isinstance(target, int) else [int(one) for one in target]
    if not chosen or not all(0 <= one < engine.subject.n_vocab for one in chosen):
        raise UserError(f"target names token ids outside of the model's 0 to {engine.subject.n_vocab - 1}, or none")
    return lambda logits_bv: logits_bv[:, chosen].sum(-1)
