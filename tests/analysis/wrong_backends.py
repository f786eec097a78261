"""Ways in which a library reads another thing than the model: each a fake backend, and where a comparison is to name it."""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saelake.ingest.backends.backend import Place, Read, tokens_of
from saelake.ingest.backends.ours import Padded
from saelake.ingest.sites import Site
from saelake.ingest.subject import Batch, Subject
from tests.ingest.families import N_LAYERS

TOKEN_IDS = "token ids"


class Wrong(NamedTuple):
    """A mistake: of which family, made how, and the first place and position that show it."""

    family: str
    make: Callable[[Subject], Any]
    layer: int | None
    site: str
    pos: int


def another(subject: Subject, change: Callable[[Any], object]) -> Subject:
    """The subject on a copy of its model that is changed."""
    model = copy.deepcopy(subject.model)
    with torch.no_grad():
        change(model)
    return Subject.of(model, subject.tokenizer, subject.template, subject.target_token_ids)


class PaddedOnTheRight(Padded):
    """Pads on the right, and takes the rows' ends as if it were the left."""

    def batch(self, token_ids: Sequence[Sequence[int]]) -> Batch:
        left = super().batch(token_ids)
        n = [len(ids) for ids in token_ids]
        rolled = [
            torch.stack([row.roll(k - len(row)) for row, k in zip(part, n, strict=True)]) for part in left
        ]  # the padding, which stood before a row, comes behind it
        return Batch(*rolled)

    def rows(self, batch: Batch, values_btd: Tensor) -> list[Tensor]:
        return [row[-int(mask.sum()) :] for row, mask in zip(values_btd, batch.attention_mask_bt, strict=True)]


class OtherTokens(Padded):
    """Reads other tokens."""

    def __init__(self, subject: Subject, change: Callable[[list[int]], list[int]]) -> None:
        super().__init__(subject)
        self.change = change

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.change(ids) for ids in super().token_ids(texts)]


class StaleTemplate(Padded):
    """Its tokenizer has another chat template, an older one."""

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        tokenizer = copy.deepcopy(self.subject.tokenizer)
        tokenizer.chat_template = tokenizer.chat_template.replace("content", "content'] + ' then ' + messages[0]['content", 1)
        return tokens_of(tokenizer, self.subject.template, texts)


class OtherBatch(Padded):
    """Gives the model another mask or other positions."""

    def __init__(self, subject: Subject, change: Callable[[Batch], Batch]) -> None:
        super().__init__(subject)
        self.change, self.right = change, Padded(subject)

    def batch(self, token_ids: Sequence[Sequence[int]]) -> Batch:
        return self.change(super().batch(token_ids))

    def rows(self, batch: Batch, values_btd: Tensor) -> list[Tensor]:
        whole = batch.input_ids_bt
        return [row[-n:] for row, n in zip(values_btd, self.lengths, strict=True)] if len(whole) else []

    def read(self, texts: Sequence[str], places: Sequence[Place]) -> Read:
        self.lengths = [len(ids) for ids in self.token_ids(texts)]
        return super().read(texts, places)


class OffByOne(Padded):
    """Its hook of layer L sits on layer L + 1."""

    def read(self, texts: Sequence[str], places: Sequence[Place]) -> Read:
        found = super().read(texts, places)
        return Read(found.token_ids, {(n, kind): found.values.get((n + 1, kind), x) for (n, kind), x in found.values.items()})


class PreForPost(Padded):
    """Takes what a block reads for what it gives."""

    def read(self, texts: Sequence[str], places: Sequence[Place]) -> Read:
        found = super().read(texts, places)
        values = found.values | {(n, "resid_post"): found.values[n, "resid_pre"] for n in range(N_LAYERS)}
        return Read(found.token_ids, values)


class ResidualIncluded(Padded):
    """Its mlp_out holds the residual stream that the MLP's output is added to."""

    def read(self, texts: Sequence[str], places: Sequence[Place]) -> Read:
        found = super().read(texts, places)
        sums = {
            (n, "mlp_out"): [a + b for a, b in zip(found.values[n, "mlp_out"], found.values[n, "resid_mid"], strict=True)]
            for n in range(N_LAYERS)
        }
        return Read(found.token_ids, found.values | sums)


class Unscaled(Padded):
    """Leaves out the factor that the embeddings are multiplied by."""

    def read(self, texts: Sequence[str], places: Sequence[Place]) -> Read:
        with ExitStack() as hooks:
            hooks.enter_context(self.subject.at(Site(0, "resid_pre"), lambda x: x / self.subject.d_model**0.5))
            return super().read(texts, places)


def _rotary(theta: float) -> Callable[[Any], object]:
    def change(model: Any) -> None:
        rotary = model.model.rotary_emb
        half = len(rotary.inv_freq)
        rotary.inv_freq = theta ** (-torch.arange(half, dtype=torch.float32) / half)
        rotary.original_inv_freq = rotary.inv_freq

    return change


def _without_caps(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = None


def _without_last_cap(model: Any) -> None:
    model.config.final_logit_softcapping = None


def _other_weights(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.weight.mul_(1.001)


def _swapped(ids: list[int], tokenizer: Any) -> list[int]:
    other = tokenizer.eos_token_id
    return [other if one == tokenizer.bos_token_id else one for one in ids]


WRONG = {
    "padding side": Wrong("Llama", PaddedOnTheRight, 0, "resid_pre", 0),
    "missing BOS": Wrong("Llama", lambda s: OtherTokens(s, lambda ids: ids[1:]), None, TOKEN_IDS, 0),
    "doubled BOS": Wrong("Llama", lambda s: OtherTokens(s, lambda ids: [ids[0], *ids]), None, TOKEN_IDS, 1),
    "hook of another layer": Wrong("Llama", OffByOne, 0, "resid_pre", 0),
    "pre for post": Wrong("Gemma 2", PreForPost, 0, "resid_post", 0),
    "bfloat16 for float32": Wrong("Llama", lambda s: Padded(another(s, lambda m: m.bfloat16())), 0, "resid_pre", 0),
    "residual included": Wrong("Llama", ResidualIncluded, 0, "mlp_out", 0),
    "stale template": Wrong("Llama", StaleTemplate, None, TOKEN_IDS, -1),
    "positions of the padded row": Wrong(
        "GPT-2",
        lambda s: OtherBatch(s, lambda b: b._replace(position_ids_bt=torch.arange(b[0].shape[1]).expand_as(b[0]))),
        0,
        "resid_pre",
        0,
    ),
    "positions twice as far": Wrong(
        "Llama", lambda s: OtherBatch(s, lambda b: b._replace(position_ids_bt=b.position_ids_bt * 2)), 0, "z", 1
    ),
    "mask ignored": Wrong(
        "Llama",
        lambda s: OtherBatch(s, lambda b: b._replace(attention_mask_bt=torch.ones_like(b.attention_mask_bt))),
        0,
        "z",
        0,
    ),
    "rope theta": Wrong("Llama", lambda s: Padded(another(s, _rotary(500_000.0))), 0, "z", 1),
    "special token": Wrong("Llama", lambda s: OtherTokens(s, lambda ids: _swapped(ids, s.tokenizer)), None, TOKEN_IDS, 0),
    "embeddings not scaled": Wrong("Gemma 2", Unscaled, 0, "resid_pre", 0),
    "soft cap of attention": Wrong("Gemma 2", lambda s: Padded(another(s, _without_caps)), 0, "z", 1),
    "soft cap of logits": Wrong("Gemma 2", lambda s: Padded(another(s, _without_last_cap)), N_LAYERS, "log_probs", 0),
    "another revision": Wrong("Llama", lambda s: Padded(another(s, _other_weights)), 1, "mlp_out", 0),
}
"""Beside these: weights that TransformerLens has folded or centred, in test_backends.py."""
