"""The ablation engine: everything causal in saelake is a batch of requests to it.

    engine = AblationEngine(subject, saes, [subject.encode(text).token_ids for text in texts])
    answers = engine.answer([Request(0, FeatureSet.of([2, 3], [17, 4]))], max_new_tokens=16)

Exact: a request's answer is what the full decode-plus-error pass would give, and depends on no other request in the batch, up
to rounding. Fast: requests of like length and depth share a batch, the network below the first touched layer is computed once
a prompt, and only the last position's logits are.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from analysis.engine.edits import Edit, ProjectionEdit, feature_edit
from analysis.engine.prefix import PrefixStore, resumed
from analysis.engine.requests import Request
from ingest.capture import length_batches
from ingest.saes import Sae
from ingest.subject import Batch, Subject


class NextToken(NamedTuple):
    """What the model says at the last position of each request."""

    p_refusal: np.ndarray
    """(n,) float32: probability that the first token is a refusal token."""
    token_id: np.ndarray
    """(n,) int64: the most probable first token."""


class Answers(NamedTuple):
    """Greedy answers, with what the first token's distribution was."""

    first: NextToken
    token_ids: list[list[int]]
    """Generated tokens of each request, without the end-of-turn token."""


class AblationEngine:
    """Holds a subject, its SAEs and the tokenised prompts that requests refer to by number.

    Args:
        saes: layer -> SAE, for the layers whose features requests may name.
        batch_tokens: padded tokens a forward pass.
    """

    def __init__(
        self, subject: Subject, saes: Mapping[int, Sae], prompts: Sequence[Sequence[int]], *, batch_tokens: int = 8192
    ) -> None:
        self._subject = subject
        self._saes = saes
        self._prompts = prompts
        self._batch_tokens = batch_tokens
        self._prefix = PrefixStore(subject, prompts, batch_tokens)
        self._refusal_ids = torch.tensor(subject.refusal_token_ids, device=subject.device)
        self._end_ids = _end_token_ids(subject)

    def next_token(self, requests: Sequence[Request]) -> NextToken:
        """The next token of every request, in the order given."""
        requests, place = _distinct(requests)
        p_refusal = np.empty(len(requests), dtype=np.float32)
        token_id = np.empty(len(requests), dtype=np.int64)
        for rows in self._batches(requests):
            probabilities_bv = self._logits([requests[i] for i in rows]).softmax(-1)
            p_refusal[rows] = probabilities_bv[:, self._refusal_ids].sum(-1).cpu().numpy()
            token_id[rows] = probabilities_bv.argmax(-1).cpu().numpy()
        return NextToken(p_refusal[place], token_id[place])

    def log_probabilities(self, requests: Sequence[Request]) -> Tensor:
        """Log-probabilities (n, v) of the next token, float32, on the CPU."""
        out: list[Tensor] = [torch.empty(0)] * len(requests)
        for rows in self._batches(requests):
            log_probabilities_bv = self._logits([requests[i] for i in rows]).log_softmax(-1).cpu()
            for i, row_v in zip(rows, log_probabilities_bv, strict=True):
                out[i] = row_v
        return torch.stack(out)

    def answer(self, requests: Sequence[Request], max_new_tokens: int) -> Answers:
        """Greedy continuations; interventions at all positions stay on for every generated token."""
        requests, place = _distinct(requests)
        p_refusal = np.empty(len(requests), dtype=np.float32)
        token_id = np.empty(len(requests), dtype=np.int64)
        token_ids: list[list[int]] = [[] for _ in requests]
        for rows in self._batches(requests):
            first_bv, generated = self._generate([requests[i] for i in rows], max_new_tokens)
            p_refusal[rows] = first_bv[:, self._refusal_ids].sum(-1).cpu().numpy()
            token_id[rows] = first_bv.argmax(-1).cpu().numpy()
            for i, tokens in zip(rows, generated, strict=True):
                token_ids[i] = tokens
        return Answers(NextToken(p_refusal[place], token_id[place]), [token_ids[i] for i in place])

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Rows of requests to answer together: the same first layer, similar lengths."""
        by_depth: dict[int, list[int]] = {}
        for i, request in enumerate(requests):
            by_depth.setdefault(self._start(request), []).append(i)
        for _, members in sorted(by_depth.items()):
            lengths = [len(self._prompts[requests[i].prompt]) for i in members]
            for chosen in length_batches(lengths, self._batch_tokens):
                yield [members[j] for j in chosen]

    def _start(self, request: Request) -> int:
        """The layer whose clean residual a request's pass can resume from: its first touched one, before the edit."""
        return self._subject.n_layers - 1 if request.first_layer is None else request.first_layer

    @torch.inference_mode()
    def _logits(self, requests: Sequence[Request]) -> Tensor:
        """Last-position logits (b, v) in float32 of requests that start at the same layer."""
        batch = self._batch(requests)
        width = batch.input_ids_bt.shape[1]
        start = self._start(requests[0])
        resid_btd = self._prefix.states(start, [r.prompt for r in requests], width)
        with resumed(self._subject, start, resid_btd), self._at_work(self._edits(requests, width), requests, batch):
            return self._subject.forward(batch)

    @torch.inference_mode()
    def _generate(self, requests: Sequence[Request], max_new_tokens: int) -> tuple[Tensor, list[list[int]]]:
        """First-token probabilities (b, v) and generated tokens; all rows run until every one has ended."""
        batch = self._batch(requests)
        cache = DynamicCache(config=self._subject.model.config)
        edits = self._edits(requests, batch.input_ids_bt.shape[1])
        with self._at_work(edits, requests, batch):
            logits_bv = self._subject.forward(batch, cache)
        first_bv = logits_bv.softmax(-1)
        mask_bt, position_b1 = batch.attention_mask_bt, batch.position_ids_bt[:, -1:]
        ended_b = torch.zeros(len(requests), dtype=torch.bool, device=self._subject.device)
        steps = []
        for step in range(max_new_tokens):
            token_b = logits_bv.argmax(-1)
            ended_b |= torch.isin(token_b, self._end_ids)
            steps.append(torch.where(ended_b, -1, token_b))
            if bool(ended_b.all()) or step + 1 == max_new_tokens:
                break
            mask_bt = torch.cat([mask_bt, mask_bt.new_ones(len(requests), 1)], dim=1)
            position_b1 = position_b1 + 1
            following = Batch(token_b[:, None], mask_bt, position_b1)
            with self._at_work(edits, requests, following):
                logits_bv = self._subject.forward(following, cache)
        rows = torch.stack(steps, dim=1).tolist()
        return first_bv, [[token for token in row if token >= 0] for row in rows]

    def _batch(self, requests: Sequence[Request]) -> Batch:
        return self._subject.batch([self._prompts[r.prompt] for r in requests])

    @contextmanager
    def _at_work(self, edits: dict[int, list[Edit]], requests: Sequence[Request], batch: Batch) -> Iterator[None]:
        """While open, every pass over `batch` is edited."""
        where_bt = self._where(requests, batch)
        with ExitStack() as stack:
            for layer, layer_edits in edits.items():
                stack.enter_context(self._subject.resid_post(layer, partial(_edited, layer_edits, where_bt)))
            yield

    def _edits(self, requests: Sequence[Request], n_tokens: int) -> dict[int, list[Edit]]:
        edits: dict[int, list[Edit]] = {}
        for layer in sorted({layer for r in requests for layer in r.features.layers}):
            edit = feature_edit(self._saes[layer], [r.features for r in requests], n_tokens)
            if edit is not None:
                edits.setdefault(layer, []).append(edit)
        directions = [r.direction for r in requests]
        for layer in sorted({layer for d in directions if d for layer in d.layers}):
            here = [d if d and layer in d.layers else None for d in directions]
            edits.setdefault(layer, []).append(ProjectionEdit(here, self._subject.d_model, self._subject.device))
        return edits

    def _where(self, requests: Sequence[Request], batch: Batch) -> Tensor | None:
        if all(r.positions is None for r in requests):
            return None
        positions_bt = batch.position_ids_bt
        rows = []
        for row, request in enumerate(requests):
            if request.positions is None:
                rows.append(torch.ones_like(positions_bt[row], dtype=torch.bool))
            else:
                rows.append(torch.isin(positions_bt[row], torch.tensor(request.positions, device=positions_bt.device)))
        return torch.stack(rows)


def _distinct(requests: Sequence[Request]) -> tuple[list[Request], np.ndarray]:
    """The requests without repeated states, and where each one's answer stands among them."""
    places: dict[Hashable, int] = {}
    place = [places.setdefault(r.state, len(places)) for r in requests]
    distinct = dict(zip(reversed(place), reversed(requests), strict=True))
    return [distinct[p] for p in range(len(places))], np.array(place, dtype=np.int64)


def _edited(edits: Sequence[Edit], where_bt: Tensor | None, resid_btd: Tensor) -> Tensor:
    for edit in edits:
        resid_btd = edit(resid_btd, where_bt)
    return resid_btd


def _end_token_ids(subject: Subject) -> Tensor:
    """Tokens that end an answer: the model's own end tokens, and the tokenizer's."""
    declared = subject.model.generation_config.eos_token_id
    ids = set(declared if isinstance(declared, list) else [declared]) | {subject.tokenizer.eos_token_id}
    return torch.tensor(sorted(i for i in ids if i is not None), dtype=torch.int64, device=subject.device)
