"""To first order, what ablating each active feature does to a number that the next token's logits give: one backward pass.

    effect of a feature at a token = -z (d . g), with g the gradient of the target at the site that the SAE writes

It is what the target would change by if the feature were ablated there, were the network linear in that change. It is not:
with `steps`, g is the mean of the gradients along the way on which all features of an SAE are faded out together (integrated
gradients, Sundararajan et al. 2017; for SAE features Marks et al. 2024, arXiv 2403.19647), one SAE at a time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from saelake.analysis.engine.library import ACTIVATIONS, Engine, check_engine
from saelake.analysis.engine.prompts import Prompt, read_prompts
from saelake.ingest.saes.sae import Sae
from saelake.ingest.sites import Site
from saelake.ingest.subject import Subject
from saelake.warehouse import arguments
from saelake.warehouse.errors import UserError

Target = str | int | Sequence[int] | Callable[[Tensor], Tensor]
AT_ONCE = 1 << 14
"""Rows of a decoder that exist at a time."""
NO_SHIFTS: Mapping[Site, Tensor] = {}
ATTRIBUTIONS = ACTIVATIONS.append(pa.field("effect", pa.float32()))


def attribution(engine: Engine, prompts: Sequence[Prompt], target: Target = "p_target", *, steps: int = 0) -> pa.Table:
    """To first order, what ablating each feature that fires does: columns prompt, pos, sae_id, feature_id, activation and effect.

    Rows come by prompt, the largest effects first, whatever their sign. Effects are in the target's unit; where one is positive,
    the target grows without the feature.

    Args:
        target: p_target, the target tokens' probability; logit, the mean of their logits less that of all; a token's id, or ids:
            the logit, or the sum; or a function of next-token logits (b, v) that gives (b,).
        steps: gradients that are averaged on the way to a pass without any feature of the SAE; 0 takes the one at the clean pass,
            which costs one forward and one backward pass per prompt, where n steps cost n of them for every SAE.
    Raises UserError for another target, and for a prompt that cannot be read.
    """
    check_engine(engine)
    if not engine.saes:
        raise UserError("the engine has no SAE, and so no feature to attribute to")
    steps, function = arguments.whole("steps", steps, 0), _function(engine, target)
    read = read_prompts(engine.subject, prompts)
    tables = [_of_prompt(engine, place, one.token_ids, function, steps) for place, one in enumerate(read)]
    return pa.concat_tables(tables) if tables else ATTRIBUTIONS.empty_table()


def _of_prompt(engine: Engine, place: int, token_ids: Sequence[int], target: Callable[[Tensor], Tensor], steps: int) -> pa.Table:
    saes = list(engine.saes.values())
    acts, grads = gradients(engine, token_ids, target)
    along_way = {n: _integrated(engine, token_ids, target, sae, acts[n], steps) for n, sae in enumerate(saes)} if steps else {}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("pos", "sae", "feature_id", "activation", "effect")}
    for number, sae in enumerate(saes):
        acts_tf, grad_td = acts[number], along_way.get(number, grads[sae.writes])
        pos, feature = acts_tf.nonzero(as_tuple=True)
        value = acts_tf[pos, feature]
        along = torch.empty_like(value)
        for start in range(0, len(pos), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            along[part] = (sae.decoder_rows(feature[part], value.device) * grad_td[pos[part]]).sum(-1)
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


def _integrated(
    engine: Engine, token_ids: Sequence[int], target: Callable[[Tensor], Tensor], sae: Sae, acts_tf: Tensor, steps: int
) -> Tensor:
    """The mean gradient (t, d) where an SAE writes, while what its features add is faded out (midpoint rule)."""
    alone = _One(engine.subject, {0: sae})  # the others would be encoded for nothing
    written_td = acts_tf @ sae.on(acts_tf.device).W_dec
    total_td = torch.zeros_like(written_td)
    for step in range(steps):
        gone = (step + 0.5) / steps
        _, grads = gradients(alone, token_ids, target, {sae.writes: -gone * written_td})
        total_td += grads[sae.writes]
    return total_td / steps


class Watched(Protocol):
    """A subject and its SAEs, by whatever they are known."""

    @property
    def subject(self) -> Subject: ...

    @property
    def saes(self) -> Mapping[Any, Sae]: ...


class _One(NamedTuple):
    """A subject with some of its SAEs."""

    subject: Subject
    saes: Mapping[int, Sae]


def gradients(
    engine: Watched, token_ids: Sequence[int], target: Callable[[Tensor], Tensor], shifts: Mapping[Site, Tensor] = NO_SHIFTS
) -> tuple[dict[int, Tensor], dict[Site, Tensor]]:
    """What each SAE reads in a pass, (t, f) by its place, and the target's gradient (t, d) where they write.

    Args:
        shifts: what is added (t, d) at some of the sites at which they write; nothing gives the clean pass.
    """
    subject, saes = engine.subject, list(engine.saes.values())
    batch = subject.batch([token_ids])
    acts: dict[int, Tensor] = {}
    nudges: dict[Site, Tensor] = {}

    def read(number: int, sae: Sae, x_btd: Tensor) -> None:
        acts[number] = sae.on(x_btd.device).encode(x_btd.detach()[0].float())

    def nudge(site: Site, x_btd: Tensor) -> Tensor:
        shift_td = shifts[site] if site in shifts else torch.zeros_like(x_btd[0], dtype=torch.float32)
        nudges[site] = shift_td[None].clone().requires_grad_()
        return x_btd + nudges[site].to(x_btd.dtype)

    with ExitStack() as hooks, torch.enable_grad():
        for number, sae in enumerate(saes):
            hooks.enter_context(subject.at(sae.reads, partial(read, number, sae), 1))
        for site in dict.fromkeys(sae.writes for sae in saes):
            hooks.enter_context(subject.at(site, partial(nudge, site), 1))
        value = target(subject.forward_with_gradient(batch))
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise UserError("target is a function of next-token logits (1, v) that gives one number with a gradient")
        found = torch.autograd.grad(value.sum(), list(nudges.values()), allow_unused=True)
    grads = {
        site: torch.zeros_like(nudges[site])[0] if grad is None else grad[0] for site, grad in zip(nudges, found, strict=True)
    }
    return acts, grads


def _function(engine: Engine, target: Target) -> Callable[[Tensor], Tensor]:
    if callable(target):
        return target
    ids = list(engine.subject.target_token_ids)
    if isinstance(target, str) and target == "p_target":
        return lambda logits_bv: logits_bv.softmax(-1)[:, ids].sum(-1)
    if isinstance(target, str) and target == "logit":
        return lambda logits_bv: logits_bv[:, ids].mean(-1) - logits_bv.mean(-1)
    form = "p_target, logit, a token's id, a list of ids, or a function of logits"
    if isinstance(target, str):
        raise UserError(f"target is {arguments.shown(target)}: give {form}")
    several = target if isinstance(target, Iterable) and getattr(target, "shape", None) != () else [target]
    most = engine.subject.n_vocab - 1
    chosen = [arguments.whole("a token of target", one, 0, most) for one in arguments.listed("target", several, form)]
    if not chosen:
        raise UserError(f"target names no token: give {form}")
    return lambda logits_bv: logits_bv[:, chosen].sum(-1)
