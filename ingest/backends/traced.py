"""nnsight as a backend: a traced model of transformers, whose modules' inputs and outputs are the sites."""

from collections.abc import Sequence
from typing import Any

import torch

from saelake.ingest.backends.backend import LOG_PROBS, Place, Read, site_of, tokens_of
from saelake.ingest.backends.padded import padded, unpadded
from saelake.ingest.subject import Subject


class NNsight:
    """Reads all prompts in one batch, padded on the left.

    Args:
        model: an nnsight LanguageModel, or NNsight(model), over a network of the subject's architecture.
        subject: says which module holds which site.
    """

    def __init__(self, model: Any, subject: Subject, tokenizer: Any = None) -> None:
        self.model, self.subject = model, subject
        self.tokenizer = tokenizer or getattr(model, "tokenizer", None) or subject.tokenizer
        self._names = {id(module): name for name, module in subject.model.named_modules()}

    def read(self, texts: Sequence[str], places: Sequence[Place]) -> Read:
        token_ids = tokens_of(self.tokenizer, self.subject.template, texts)
        batch = padded(token_ids, self.subject.device)
        at = [place for place in places if place[1] != LOG_PROBS and site_of(place) in self.subject.sites.places]
        at = [place for place in at if place[1] != "mlp_in_unit"]  # inside of a norm
        found: dict[Place, Any] = {}
        # Modules are asked in the order in which the pass comes to them: inputs before outputs, layer by layer.
        with torch.no_grad(), self.model.trace(**batch, use_cache=False):
            for place in at:
                found[place] = self._seen(place).clone().save()  # some models go on computing in place (Falcon)
            logits = self.model.output.logits.save()
        values = {place: unpadded(batch, x) for place, x in found.items()}
        if any(kind == LOG_PROBS for _, kind in places):
            values[places[-1]] = unpadded(batch, logits.float().log_softmax(-1))
        return Read(token_ids, values)

    def _seen(self, place: Place) -> Any:
        module, of = self.subject.sites.places[site_of(place)]
        envoy = self.model
        for part in self._names[id(module)].split("."):
            envoy = envoy[int(part)] if part.isdecimal() else getattr(envoy, part)
        found = envoy.input if of == "input" else envoy.output
        return found[0] if isinstance(found, tuple) else found
