"""The ablation engine: what is ablated, clamped or added is a batch of requests to it; only losses on texts, and the audit with
its gradients, run passes of their own under the same interventions. library.py is its front for notebooks.

    engine = AblationEngine(subject, saes, [subject.encode(text).token_ids for text in texts])
    answers = engine.answer([Request(0, FeatureSet.of([2, 3], [17, 4]))], max_new_tokens=16)

Exact: up to rounding, a request's answer is what the full decode-plus-error pass would give, whatever else is in the batch. Fast:
requests of similar length share a batch, the network below their first touched layer is computed once for all requests that
share a prompt (prefix.py says how long that is kept), and logits are computed only at the last position. Batches are as large as
pays on the device and fits its memory, and shrink where it runs out.
"""

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from saelake.analysis.engine.depths import WORTH, together
from saelake.analysis.engine.generation import continued
from saelake.analysis.engine.interventions import Interventions
from saelake.analysis.engine.memory import Batches, Size
from saelake.analysis.engine.prefix import PrefixStore, below, resumed
from saelake.analysis.engine.requests import Request
from saelake.analysis.engine.slices import SliceCache
from saelake.analysis.engine.watch import Activations, Watch, Watched
from saelake.ingest.saes.sae import Sae
from saelake.ingest.subject import Batch, Subject
from saelake.warehouse.errors import UserError

Part = TypeVar("Part")
IsEnough = Callable[[Request, Sequence[int]], bool]
"""Called after each token, with a request and the tokens of its answer so far: whether generation of that answer can stop."""


class NotFinite(UserError):
    """The model gives no probabilities: somewhere in it a number became infinite or NaN."""


class NextToken(NamedTuple):
    """What the model says at the last position of each request."""

    p_target: np.ndarray
    """(n,) float32: probability that the first token is a target token."""
    token_id: np.ndarray
    """(n,) int64: the most probable first token."""
    margin: np.ndarray
    """(n,) float32: the largest logit of a target token minus that of any other token; the first token is a target token where it
    is positive."""


class _Said(NamedTuple):
    """`NextToken` of a batch, (b,) each, on the device: `next_token` reads it once all batches are under way, so that
    none waits for it."""

    p_target: Tensor
    token_id: Tensor
    margin: Tensor
    is_finite: Tensor


class Answers(NamedTuple):
    """Greedy answers, with what the first token's distribution was."""

    first: NextToken
    token_ids: list[list[int]]
    """Generated tokens of each request, without the end-of-turn token."""


class AblationEngine:
    """Holds a subject, its SAEs and the tokenised prompts that requests refer to by number.

    Args:
        saes: number -> SAE, by the numbers that requests name them with; the caller has checked that they fit the subject.
        batch_tokens: the most padded tokens per forward pass; by default what suits the device.
    """

    def __init__(
        self,
        subject: Subject,
        saes: Mapping[int, Sae],
        prompts: Sequence[Sequence[int]],
        *,
        batch_tokens: int | None = None,
    ) -> None:
        self._subject = subject
        self._saes = saes
        self._slices = {number: SliceCache(sae, subject.device) for number, sae in saes.items()}
        self._prompts = prompts
        self._batches = Batches(subject, batch_tokens)
        self._prefix = PrefixStore(subject, prompts, self._batches)
        self._target_ids = torch.tensor(subject.target_token_ids, device=subject.device)
        full = [str(sae.writes) for _, sae in sorted(saes.items()) if not sae.elementwise]
        if full:
            what = "have latents that compete (as TopK's do) and are all encoded for every edit: slower"
            warnings.warn(f"the SAEs at {', '.join(full)} {what}", stacklevel=2)

    def next_token(self, requests: Sequence[Request]) -> NextToken:
        """The next token of every request, in the order given."""
        requests, place = _distinct(requests)
        return _told(list(self._run(requests, self._next_token)), place)

    def log_probabilities(self, requests: Sequence[Request]) -> Tensor:
        """Log-probabilities (n, v) of the next token, float32, on the CPU."""
        requests, place = _distinct(requests)
        out = torch.empty(len(requests), self._subject.n_vocab)
        for rows, log_probabilities_bv in self._run(requests, self._log_probabilities):
            out[rows] = log_probabilities_bv
        return out[torch.from_numpy(place)]

    def answer(self, requests: Sequence[Request], max_new_tokens: int, is_enough: IsEnough = lambda *_: False) -> Answers:
        """Greedy continuations; interventions whose `on_answers` is true stay on for every generated token.

        Args:
            is_enough: asked after each token of an answer, which ends where it says so.
        Raises UserError where a model's learned positions run out.
        """
        self.check_positions(requests, max_new_tokens - 1)  # the last one is not read again
        requests, place = _distinct(requests)
        firsts: list[tuple[list[int], _Said]] = []
        token_ids: list[list[int]] = [[] for _ in requests]
        answer = partial(self._answer, max_new_tokens, is_enough)
        for rows, (first, generated) in self._run(requests, answer, n_new=max_new_tokens):
            firsts.append((rows, first))
            for i, tokens in zip(rows, generated, strict=True):
                token_ids[i] = tokens
        return Answers(_told(firsts, place), [token_ids[i] for i in place])

    def activations(self, requests: Sequence[Request], watched: Watched) -> Activations:
        """What fires in the edited passes, of the watched features, at the prompts' positions.

        A feature that is itself held shows the activation that it would have. For generated tokens, ask an engine whose prompts
        are the prompts with their answers.
        """
        if not watched:
            return Activations.none()
        requests, place = _distinct(requests)
        parts = [
            part._replace(request=np.array(rows, dtype=np.int64)[part.request])
            for rows, found in self._run(
                requests, partial(self._activations, watched), lowest=min(self._saes[number].reads.below for number in watched)
            )
            for part in found
        ]
        return Activations.of(parts, place)

    def check_positions(self, requests: Sequence[Request], n_answered: int) -> None:
        """Raises UserError if the model has learned too few positions to read the prompts and so many tokens of their answers."""
        longest, most = max((len(self._prompts[r.prompt]) for r in requests), default=0), self._subject.n_positions
        if most is not None and longest + n_answered > most:
            raise UserError(
                f"a prompt of {longest} tokens and {n_answered} of its answer need more positions than the {most} that the model "
                f"has learned: ask for fewer tokens, or leave the prompt out"
            )

    def _run(
        self,
        requests: Sequence[Request],
        compute: Callable[[int, Sequence[Request]], Part],
        *,
        n_new: int = 0,
        lowest: int | None = None,
    ) -> Iterator[tuple[list[int], Part]]:
        """Computes batches of requests that resume from one layer and are of similar lengths: their places, and what they gave.

        A request's pass resumes from the clean residual below its first touched site, but no later than from `lowest`; from -1 it
        is run as a whole. Grouped with others it resumes from below theirs, where that costs less than a pass of its own.
        """
        latest = self._subject.n_layers - 1 if lowest is None else lowest
        belows = [r.below(self._saes) for r in requests]
        starts = [latest if one is None else min(one, latest) for one in belows]
        lengths = [len(self._prompts[r.prompt]) for r in requests]
        worth = WORTH.get(self._subject.device.type, WORTH["cpu"]) * max(n_new, 1)
        for start, group in together(starts, [r.prompt for r in requests], lengths, worth * self._subject.n_layers):
            members = sorted(group, key=lambda i: (lengths[i], requests[i].prompt))
            sizes = [_size(requests[i], lengths[i], n_new) for i in members]

            def of_part(part: slice, start: int = start, members: Sequence[int] = members) -> Part:
                with torch.inference_mode():
                    return compute(start, [requests[i] for i in members[part]])

            for part, result in self._batches.run(sizes, of_part):
                yield members[part], result

    def _next_token(self, start: int, requests: Sequence[Request]) -> _Said:
        return self._said(self._logits(start, requests))

    def _log_probabilities(self, start: int, requests: Sequence[Request]) -> Tensor:
        return self._logits(start, requests).log_softmax(-1).cpu()

    def _logits(self, start: int, requests: Sequence[Request]) -> Tensor:
        """Last-position logits (b, v) in float32."""
        batch = self._batch(requests)
        resid_btd = self._prefix.states(start, [r.prompt for r in requests])
        with resumed(self._subject, start, resid_btd), self._interventions(requests, batch).at_work(batch):
            return self._subject.forward(batch)

    def _answer(
        self, max_new_tokens: int, is_enough: IsEnough, start: int, requests: Sequence[Request]
    ) -> tuple[_Said, list[list[int]]]:
        batch = self._batch(requests)
        resid_btd, clean = below(self._subject, start, [r.prompt for r in requests], self._prompts)
        cache = DynamicCache(config=self._subject.model.config)
        with resumed(self._subject, start, resid_btd), self._interventions(requests, batch).at_work(batch):
            logits_bv = self._subject.forward(batch, cache)
        cache.layers[: start + 1] = clean.layers[: start + 1]  # only now: a pass must not find its own tokens in its cache

        def interventions(rows: Sequence[int]) -> Interventions:
            return Interventions(self._subject, self._slices, [requests[row] for row in rows], n_tokens=1)

        def of_row(row: int, tokens: Sequence[int]) -> bool:
            return is_enough(requests[row], tokens)

        said = self._said(logits_bv)
        _check_finite(said)  # before `is_enough` is given tokens of a broken model
        return said, continued(self._subject, batch, cache, logits_bv, interventions, max_new_tokens, of_row)

    def _activations(self, watched: Watched, start: int, requests: Sequence[Request]) -> list[Activations]:
        batch = self._batch(requests)
        resid_btd = self._prefix.states(start, [r.prompt for r in requests])
        watch = Watch(self._subject, self._slices, watched, batch)
        with resumed(self._subject, start, resid_btd), watch.open(), self._interventions(requests, batch).at_work(batch):
            self._subject.forward(batch)
        return watch.parts

    def _said(self, logits_bv: Tensor) -> _Said:
        probabilities_bv = logits_bv.softmax(-1)
        others_bv = logits_bv.index_fill(1, self._target_ids, -torch.inf)
        return _Said(
            p_target=probabilities_bv[:, self._target_ids].sum(-1),
            token_id=probabilities_bv.argmax(-1),
            margin=logits_bv[:, self._target_ids].amax(-1) - others_bv.amax(-1),
            is_finite=probabilities_bv[:, 0].isfinite(),  # one NaN or +inf makes its whole row NaN
        )

    def _batch(self, requests: Sequence[Request]) -> Batch:
        return self._subject.batch([self._prompts[r.prompt] for r in requests])

    def _interventions(self, requests: Sequence[Request], batch: Batch) -> Interventions:
        return Interventions(self._subject, self._slices, requests, batch.input_ids_bt.shape[1])


def _told(parts: Sequence[tuple[Sequence[int], _Said]], place: np.ndarray) -> NextToken:
    """What batches said, each with the places of its requests, in the order of `place`; raises NotFinite."""
    if not parts:
        return NextToken(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.float32))
    whole = _Said(*(torch.cat(column) for column in zip(*(one for _, one in parts), strict=True)))
    _check_finite(whole)
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))[place]
    return NextToken(*(column.cpu().numpy()[order] for column in whole[:-1]))


def _check_finite(said: _Said) -> None:
    if not said.is_finite.all():
        raise NotFinite(
            "the model's logits are not finite numbers: its weights are damaged, or they or an edit are too large for its dtype"
        )


def _size(request: Request, n_tokens: int, n_new: int) -> Size:
    held = [one.features for one in request.interventions]
    return Size(n_tokens, n_new, sum(map(len, held)), max(one.widest for one in held))


def _distinct(requests: Sequence[Request]) -> tuple[list[Request], np.ndarray]:
    """The requests without repeated states, and where each one's answer stands among them."""
    places: dict[Hashable, int] = {}
    place = [places.setdefault(r.state, len(places)) for r in requests]
    distinct = dict(zip(reversed(place), reversed(requests), strict=True))
    return [distinct[p] for p in range(len(places))], np.array(place, dtype=np.int64)
