"""vLLM as a backend: it gives log-probabilities alone, so that a comparison says that it parts, and at which position.

Built to vLLM's documented interface (`LLM.generate` with token ids, `SamplingParams(prompt_logprobs=-1)`) and tested against a
stand-in that answers as it does; it has not been run against vLLM itself. What vLLM gives of a prompt's position are the
log-probabilities of the token there after those before it; those after the last token come with the first that it generates.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saelake.ingest.backends.backend import LOG_PROBS, Place, Read, tokens_of
from saelake.ingest.template import ChatTemplate


class Vllm:
    """Reads each prompt as vLLM schedules it.

    Args:
        model: a vllm.LLM, made with max_logprobs of at least the vocabulary's size.
        parameters: vllm.SamplingParams, or what makes the like.
    """

    def __init__(self, model: Any, template: ChatTemplate, n_vocab: int, parameters: Any = None) -> None:
        self.model, self.template, self.n_vocab, self._parameters = model, template, n_vocab, parameters

    def read(self, texts: Sequence[str], places: Sequence[Place]) -> Read:
        token_ids = tokens_of(self.model.get_tokenizer(), self.template, texts)
        if self._parameters is None:
            from importlib import import_module

            self._parameters = import_module("vllm").SamplingParams
        asked = self._parameters(max_tokens=1, temperature=0.0, logprobs=-1, prompt_logprobs=-1)
        outputs = self.model.generate([{"prompt_token_ids": ids} for ids in token_ids], asked)
        found = {place: [self._log_probs(one) for one in outputs] for place in places if place[1] == LOG_PROBS}
        return Read(token_ids, found)

    def _log_probs(self, output: Any) -> Tensor:
        """(t, v)"""
        after = [*output.prompt_logprobs[1:], output.outputs[0].logprobs[0]]
        rows_tv = torch.full((len(after), self.n_vocab), -torch.inf)
        for row_v, given in zip(rows_tv, after, strict=True):
            for token, one in given.items():
                row_v[token] = one.logprob
        return rows_tv
