"""The reference: the model as saelake reads it through transformers, one prompt at a time, and how far rounding moves that."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from saelake.ingest.backends.backend import LOG_PROBS, Place, Read, site_of
from saelake.ingest.backends.padded import unpadded
from saelake.ingest.sites import KINDS, Site
from saelake.ingest.subject import Batch, Subject
from saelake.warehouse.errors import UserError

PERTURBED = ("resid_pre", "z", "attn_out", "mlp_in", "mlp_out", "resid_post")
"""Kinds of sites that can be written without being read through another."""
PASSES = 4
"""Perturbed passes that noise is measured by."""


class Transformers:
    """Each prompt in a pass of its own: nothing is padded, so that nothing of padding can be wrong."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def read(self, texts: Sequence[str], places: Sequence[Place]) -> Read:
        return self._read(texts, places, None)

    def noisy(self, texts: Sequence[str], places: Sequence[Place]) -> list[Read]:
        """Passes that are all right: in each, every site is moved by up to one step of the model's dtype, at random.

        Another order of sums, another kernel or another batch moves every number of a pass so. How far the rest of the network
        carries it is what is measured here.
        """
        return [self._read(texts, places, torch.Generator().manual_seed(seed)) for seed in range(PASSES)]

    def places(self) -> list[Place]:
        """All that the model has, in the order of a pass."""
        layers = range(self.subject.n_layers)
        found: list[Place] = [(layer, kind) for layer in layers for kind in KINDS if _has(self.subject, Site(layer, kind))]
        return [*found, (self.subject.n_layers, LOG_PROBS)]

    def _read(self, texts: Sequence[str], places: Sequence[Place], noise: torch.Generator | None) -> Read:
        token_ids = [self.subject.encode(text).token_ids for text in texts]
        values: dict[Place, list[Tensor]] = {place: [] for place in places}
        for ids in token_ids:
            for place, value_td in self._pass(self.subject.batch([ids]), places, noise).items():
                values[place].append(value_td)
        return Read(token_ids, values)

    def _pass(self, batch: Batch, places: Sequence[Place], noise: torch.Generator | None) -> dict[Place, Tensor]:
        found: dict[Place, Tensor] = {}

        def keep(place: Place, x_btd: Tensor) -> None:
            found[place] = x_btd[0].detach().clone()

        with ExitStack() as hooks:
            if noise is not None:
                for layer in range(self.subject.n_layers):
                    for kind in (kind for kind in PERTURBED if _has(self.subject, Site(layer, kind))):
                        hooks.enter_context(self.subject.at(Site(layer, kind), partial(_moved, noise), 1))
            for place in (place for place in places if place[1] != LOG_PROBS):
                hooks.enter_context(self.subject.at(site_of(place), partial(keep, place), 1))
            logits_btv = self.subject.forward(batch, logits_to_keep=0)
        for place in (place for place in places if place[1] == LOG_PROBS):
            found[place] = logits_btv[0].log_softmax(-1)
        return found


class Padded:
    """A subject's model on all prompts in one batch, padded on the left: saelake's own batches, or another model of yours."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def read(self, texts: Sequence[str], places: Sequence[Place]) -> Read:
        token_ids = self.token_ids(texts)
        batch = self.batch(token_ids)
        found: dict[Place, Tensor] = {}

        def keep(place: Place, x_btd: Tensor) -> None:
            found[place] = x_btd.detach().clone()

        with ExitStack() as hooks:
            for place in (place for place in places if place[1] != LOG_PROBS and _has(self.subject, site_of(place))):
                hooks.enter_context(self.subject.at(site_of(place), partial(keep, place), len(texts)))
            logits_btv = self.subject.forward(batch, logits_to_keep=0)
        for place in (place for place in places if place[1] == LOG_PROBS):
            found[place] = logits_btv.log_softmax(-1)
        return Read(token_ids, {place: self.rows(batch, value_btd) for place, value_btd in found.items()})

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The texts as they are read."""
        return [self.subject.encode(text).token_ids for text in texts]

    def batch(self, token_ids: Sequence[Sequence[int]]) -> Batch:
        """All of them together."""
        return self.subject.batch(token_ids)

    def rows(self, batch: Batch, values_btd: Tensor) -> list[Tensor]:
        """(t, d) of each text, without its padding."""
        return unpadded({"attention_mask": batch.attention_mask_bt}, values_btd)


def _moved(noise: torch.Generator, x: Tensor) -> Tensor:
    """Each number by up to one step of its dtype."""
    step = torch.rand(x.shape, generator=noise).to(x.device) * 2 - 1
    return (x.float() * (1 + step * torch.finfo(x.dtype).eps)).to(x.dtype)


def _has(subject: Subject, site: Site) -> bool:
    try:
        subject.sites.check(site)
    except UserError:
        return False
    return True
