"""The network below the first touched layer: computed once for requests that share a prompt; their passes resume above it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from saelake.analysis.engine.memory import Batches, Size
from saelake.ingest.forwards import with_forward
from saelake.ingest.subject import StopForward, Subject

MOST_KEPT = 1 << 31
"""Bytes of clean residual streams: those of some 3,600 prompts of 128 tokens at Gemma-2-2B's width, in bfloat16."""


class PrefixStore:
    """Clean resid_post of one layer for all prompts, kept until another layer is asked for, or they take more than MOST_KEPT."""

    def __init__(self, subject: Subject, prompts: Sequence[Sequence[int]], batches: Batches) -> None:
        self._subject = subject
        self._prompts = prompts
        self._batches = batches
        self._layer: int | None = None
        self._resid_td: dict[int, Tensor] = {}
        self._n_bytes = 0

    def states(self, layer: int, prompts: Sequence[int]) -> Tensor:
        """resid_btd after block `layer` of the unmodified model, left-padded; for layer -1 nothing that anyone reads."""
        if layer < 0:
            return torch.empty(0)
        if layer != self._layer or self._n_bytes > MOST_KEPT:
            self._layer, self._resid_td, self._n_bytes = layer, {}, 0
        distinct, rows = _distinct(prompts)
        self._compute(layer, [p for p in distinct if p not in self._resid_td])
        resid_btd = pad_sequence([self._resid_td[p] for p in distinct], batch_first=True, padding_side="left")
        return resid_btd if rows is None else resid_btd[rows]

    def _compute(self, layer: int, prompts: Sequence[int]) -> None:
        prompts = sorted(prompts, key=lambda p: len(self._prompts[p]))

        def clean(part: slice) -> Tensor:
            batch = self._subject.batch([self._prompts[p] for p in prompts[part]])
            return self._subject.read_resid_post(batch, [layer])[layer]

        for part, resid_btd in self._batches.run([Size(len(self._prompts[p])) for p in prompts], clean):
            for row, prompt in zip(resid_btd, prompts[part], strict=True):
                # A copy, so that the padded batch can go.
                self._resid_td[prompt] = row[-len(self._prompts[prompt]) :].clone()
                self._n_bytes += self._resid_td[prompt].nbytes


def below(
    subject: Subject, layer: int, prompts: Sequence[int], token_ids: Sequence[Sequence[int]]
) -> tuple[Tensor, DynamicCache]:
    """resid_btd after block `layer` of the unmodified model, and the keys and values of the blocks up to it; of layer -1: none.

    A prompt that many rows share is computed once for this batch.

    Args:
        prompts: (b,) number of each row's prompt.
        token_ids: the tokens of every prompt, by number.
    """
    distinct, rows = _distinct(prompts)
    cache = DynamicCache(config=subject.model.config)
    if layer < 0:
        return torch.empty(0), cache
    read: list[Tensor] = []

    def keep(resid_btd: Tensor) -> None:
        read.append(resid_btd)
        raise StopForward

    with subject.resid_post(layer, keep), suppress(StopForward):
        subject.forward(subject.batch([token_ids[p] for p in distinct]), cache)
    if rows is None:
        return read[0], cache
    cache.batch_select_indices(torch.tensor(rows, device=subject.device))
    return read[0][rows], cache


@contextmanager
def resumed(subject: Subject, layer: int, resid_btd: Tensor) -> Iterator[None]:
    """While open, the model's blocks up to `layer` do nothing but hand `resid_btd` to the block above.

    Masks, positions and everything else stay the model's own, so this holds for every architecture whose blocks take nothing else
    of those below (`model_checks.check_states` refuses others).
    """

    def given(layer: int, hidden: Any) -> Any:
        n = subject.sites.n_given[layer]
        return hidden if n is None else (hidden, *(n - 1) * (None,))

    def hand_over(*_args: Any, **_kwargs: Any) -> Any:
        return given(layer, resid_btd)

    def hand_on(index: int, *args: Any, **kwargs: Any) -> Any:
        return given(index, args[0] if args else kwargs["hidden_states"])

    with ExitStack() as replaced:
        for index, block in enumerate(subject.blocks[: layer + 1]):
            replaced.enter_context(with_forward(block, hand_over if index == layer else partial(hand_on, index)))
        yield


def _distinct(prompts: Sequence[int]) -> tuple[list[int], list[int] | None]:
    """The prompts without repetition, and each row's place among them (None where none repeats)."""
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    rows = [places[prompt] for prompt in prompts]
    return list(places), None if len(places) == len(rows) else rows
