"""The part of the network below the first touched layer: computed once a prompt, then every pass resumes above it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ingest.capture import length_batches
from ingest.subject import Subject


class PrefixStore:
    """Clean resid_post of one layer for all prompts, kept until another layer is asked for."""

    def __init__(self, subject: Subject, prompts: Sequence[Sequence[int]], batch_tokens: int) -> None:
        self._subject = subject
        self._prompts = prompts
        self._batch_tokens = batch_tokens
        self._layer: int | None = None
        self._resid_td: dict[int, Tensor] = {}

    def states(self, layer: int, prompts: Sequence[int], width: int) -> Tensor:
        """resid_btd after block `layer` of the unmodified model, left-padded to `width` tokens."""
        if layer != self._layer:
            self._layer, self._resid_td = layer, {}
        self._compute([p for p in dict.fromkeys(prompts) if p not in self._resid_td])
        first = self._resid_td[prompts[0]]
        resid_btd = first.new_zeros(len(prompts), width, first.shape[-1])
        for row, prompt in enumerate(prompts):
            resid_td = self._resid_td[prompt]
            resid_btd[row, width - len(resid_td) :] = resid_td
        return resid_btd

    def _compute(self, prompts: Sequence[int]) -> None:
        assert self._layer is not None
        for chosen in length_batches([len(self._prompts[p]) for p in prompts], self._batch_tokens):
            batch = self._subject.batch([self._prompts[prompts[i]] for i in chosen])
            resid_btd = self._subject.read_resid_post(batch, [self._layer])[self._layer]
            for row, index in enumerate(chosen):
                prompt = prompts[index]
                # A copy, so that the padded batch can go.
                self._resid_td[prompt] = resid_btd[row, -len(self._prompts[prompt]) :].clone()


@contextmanager
def resumed(subject: Subject, layer: int, resid_btd: Tensor) -> Iterator[None]:
    """While open, the model's blocks up to `layer` do nothing but hand `resid_btd` to the block above.

    Masks, positions and everything else stay the model's own, so this holds for every architecture alike.
    """

    def hand_over(hidden: Any, *_args: Any, **_kwargs: Any) -> Any:
        return resid_btd

    def hand_on(hidden: Any, *_args: Any, **_kwargs: Any) -> Any:
        return hidden

    skipped = subject.blocks[: layer + 1]
    try:
        for index, block in enumerate(skipped):
            block.forward = hand_over if index == layer else hand_on
        yield
    finally:
        for block in skipped:
            del block.forward
