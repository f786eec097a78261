"""TransformerLens as a backend: a HookedTransformer or a TransformerBridge, by the names that both give their hooks."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from saelake.ingest.backends.backend import LOG_PROBS, Place, Read, site_of, tokens_of
from saelake.ingest.backends.padded import padded, unpadded
from saelake.ingest.template import ChatTemplate


class TransformerLens:
    """Reads all prompts in one batch, padded on the left.

    Args:
        model: a HookedTransformer (as from_pretrained_no_processing makes one) or a TransformerBridge.
        prepend_bos: what TransformerLens is to do about BOS; None: the template and the tokenizer decide, as in a study.
    """

    def __init__(self, model: Any, template: ChatTemplate, prepend_bos: bool | None = None) -> None:
        self.model, self.template, self.prepend_bos = model, template, prepend_bos

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The texts as they are read."""
        if self.prepend_bos is None:
            return tokens_of(self.model.tokenizer, self.template, texts)
        rendered = texts if self.template.is_plain else self.template.render_all(texts)
        return [self.model.to_tokens(text, prepend_bos=self.prepend_bos)[0].tolist() for text in rendered]

    def read(self, texts: Sequence[str], places: Sequence[Place]) -> Read:
        token_ids = self.token_ids(texts)
        batch = padded(token_ids, device=self._device())
        found: dict[Place, Tensor] = {}

        def keep(x: Tensor, hook: Any, place: Place) -> None:
            found[place] = x.detach().flatten(2) if place[1] == "z" else x.detach().clone()

        hooks = [(name, partial(keep, place=place)) for place in places if (name := self._hook(place)) is not None]
        with ExitStack() as stack, torch.no_grad():
            for place in (place for place in places if place[1] == "mlp_in"):  # no hook of either, but a module's input
                mlp = self.model.blocks[place[0]].mlp
                stack.callback(mlp.register_forward_pre_hook(partial(_keep_input, found, place)).remove)
            logits_btv = self.forward(batch, hooks)
        if any(kind == LOG_PROBS for _, kind in places):
            found[places[-1]] = logits_btv.float().log_softmax(-1)
        return Read(token_ids, {place: unpadded(batch, value) for place, value in found.items()})

    def forward(self, batch: Mapping[str, Tensor], hooks: Sequence[tuple[str, Any]]) -> Tensor:
        """Logits (b, t, v)."""
        logits: Tensor = self.model.run_with_hooks(
            batch["input_ids"], attention_mask=batch["attention_mask"], fwd_hooks=list(hooks), return_type="logits"
        )
        return logits

    def _hook(self, place: Place) -> str | None:
        if place[1] in (LOG_PROBS, "mlp_in"):
            return None
        name = site_of(place).hook
        return name if name in self.model.hook_dict else None

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def _keep_input(found: dict[Place, Tensor], place: Place, _module: Any, args: tuple[Any, ...]) -> None:
    found[place] = args[0].detach().clone()
