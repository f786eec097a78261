"""The rows of an ingest: about prompts, about SAEs, and what fires on every slice of the prompts.

Where the SAEs do not all fit on the device, the residuals of several shards wait in main memory while one layer's SAE after
another is loaded and goes through them: an SAE is read once for each such group of shards, not once for each shard.
A killed job then repeats a group.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from saelake.ingest.capture import Captured, Nonzeros, capture, nonzeros
from saelake.ingest.loaded import Loaded
from saelake.ingest.pieces import PROMPTS_SHARD, SAE_SHARD, Piece
from saelake.ingest.runs import SetRuns, prompt_ids
from saelake.ingest.saes.description import SaeDescription
from saelake.ingest.saes.loader import HOST_SHARE
from saelake.ingest.saes.sae import Sae
from saelake.ingest.sites import Site
from saelake.ingest.study import Study
from saelake.ingest.tokenized import Tokenized
from saelake.warehouse.errors import UserError
from saelake.warehouse.landing import repeated
from saelake.warehouse.machine import host_bytes
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import MESSAGES

L0_PROMPTS = 32
"""The study's first prompts, on which the L0 of its SAEs is measured before much is computed."""
L0_FACTOR = 3.0
"""Measured L0 may be so many times the declared one, or so small a part of it, before the run is stopped: another SAE, another
place or another scale of its input is then likelier than a difference between texts."""


class _Slice(NamedTuple):
    """Some prompts, by their places in the study, and the numbers of the SAEs that are to see them."""

    prompt_numbers: range
    saes: tuple[int, ...]


class ShardMaker:
    """Holds the subject and the SAEs that some pieces of the study need, checked against each other, and makes their rows.

    Raises UserError, before any forward pass, for a prompt over the limit, an SAE that does not fit the model, or too little
    memory; and after the first prompts, when an SAE is far from as active as it should be.
    """

    def __init__(self, study: Study, sets: Sequence[SetRuns], pieces: Sequence[Piece], loaded: Loaded | None = None) -> None:
        self._study = study
        self._sets = {one.name: one for one in sets}
        self._prompt_ids = prompt_ids(sets)
        loaded = loaded or Loaded(study)
        self._descriptions, self.sae_loader, self.subject = loaded.descriptions, loaded.sae_loader, loaded.subject
        needed = {number for piece in pieces for number in piece.saes}
        self.sae_numbers = [number for number in self.sae_loader if number in needed]
        """Of the SAEs that are needed."""
        self.tokenized: dict[int, Tokenized] = {}
        """Place of a prompt in the study -> its tokens, of the sets that are needed."""
        for name in dict.fromkeys(piece.set for piece in pieces):
            self.tokenized |= {i: self.subject.encode(study.prompts[i].asked) for i in self._sets[name].prompt_numbers}
        if self.sae_loader.all_fit:  # they stay loaded: a damaged one is found before any forward pass
            for number in self.sae_numbers:
                self.sae_loader[number].load()
        self._saes: dict[int, list[Rows]] = {}
        self._l0: dict[str, np.ndarray] = {}
        """sae_id -> active latents, tokens and prompts of the first prompts, as far as they are captured"""

    def rows(self, pieces: Sequence[Piece]) -> Iterator[list[list[Rows]]]:
        """The rows of some pieces, one after another: for each of a piece's SAEs, or of the prompts themselves."""
        for is_slice, some in groupby(pieces, key=lambda piece: piece.shard not in (SAE_SHARD, PROMPTS_SHARD)):
            if is_slice:
                yield from self._slices(list(some))
                continue
            for piece in some:
                yield [self.saes(number) for number in piece.saes] if piece.saes else [self._prompts(self._sets[piece.set])]

    def saes(self, number: int) -> list[Rows]:
        """`saes` and `features` of one SAE, without the statistics that publishing adds."""
        if number not in self._saes:
            one = self._descriptions[number]
            table = {
                "sae_id": [one.ref.sae_id],
                "name": [one.ref.name],
                "layer": pa.array([one.ref.layer], pa.int16()),
                "width": pa.array([one.width], pa.int32()),
                "hook": [one.reads.hook],
                "hook_out": pa.array([None if one.writes == one.reads else one.writes.hook], pa.string()),
                "norm": [one.norm],
                "declared_l0": pa.array([one.ref.declared_l0], pa.float32()),
            }
            self._saes[number] = [Rows("saes", pa.table(table)), self._features(self.sae_loader.whole(number))]
        return self._saes[number]

    def _features(self, sae: Sae) -> Rows:
        columns = {
            "sae_id": repeated(sae.ref.sae_id, sae.width),
            "layer": np.full(sae.width, sae.layer, dtype=np.int16),
            "feature_id": np.arange(sae.width, dtype=np.int32),
            "decoder_norm": sae.W_dec.norm(dim=1).cpu().numpy(),
            "threshold": sae.threshold.cpu().numpy(),
        }
        return Rows("features", pa.table(columns), sae.layer)

    def _prompts(self, one: SetRuns) -> list[Rows]:
        """`prompts` and `tokens` of a set."""
        tokenized, prompt_id = [self.tokenized[i] for i in one.prompt_numbers], self._prompt_ids[one.prompt_numbers]
        found = [self._prompt_table(one.prompt_numbers, prompt_id, tokenized), self._token_table(prompt_id, tokenized)]
        return [*found, *self._message_tables(one.prompt_numbers, prompt_id)]

    def _slices(self, pieces: Sequence[Piece]) -> Iterator[list[list[Rows]]]:
        """`activations` of slices of the study's prompts, slice by slice, for each of the SAEs that are asked for."""
        size = self._study.recipe.capture.shard_prompts
        for group in self._groups([_Slice(self._sets[one.set].shards(size)[one.shard], one.saes) for one in pieces]):
            captured = [self._capture(one) for one in group]
            parts: list[dict[int, Future[Rows]]] = [{} for _ in group]
            with ThreadPoolExecutor(1) as worker:  # makes rows of what one SAE found while the next encodes
                for number in self.sae_numbers:
                    for one, held, found in zip(group, captured, parts, strict=True):
                        if number in one.saes:
                            fired = self._encode(number, held, [other for other in one.saes if other not in found])
                            found[number] = worker.submit(self._activations, number, one.prompt_numbers, held.order, fired)
                for one, found in zip(group, parts, strict=True):
                    yield [[found[number].result()] for number in one.saes]

    def _encode(self, number: int, held: Captured, left: Sequence[int]) -> Nonzeros:
        """What one SAE finds in a slice; the residuals that it read go if no other of those that are `left` reads them."""
        site = self._descriptions[number].reads
        readers = [other for other in left if self._descriptions[other].reads == site]
        resid_nd = held.resid.pop(site) if readers == [number] else held.resid[site]
        return nonzeros(self.sae_loader.whole(number), resid_nd, to_bfloat16=self._study.recipe.capture.round == "bfloat16")

    def _groups(self, slices: Sequence[_Slice]) -> Iterator[list[_Slice]]:
        """Slices to go through layer by layer together: one each where the SAEs stay loaded, else as many as memory holds."""
        room = 0.0 if self.sae_loader.all_fit else HOST_SHARE * host_bytes()
        group: list[_Slice] = []
        for one in slices:
            if group and self._resid_bytes([*group, one]) > room:
                yield group
                group = []
            group.append(one)
        if group:
            yield group

    def _resid_bytes(self, group: Sequence[_Slice]) -> int:
        n_values = sum(len(self.tokenized[i].token_ids) * len(self._sites(one.saes)) for one in group for i in one.prompt_numbers)
        return n_values * self.subject.d_model * self.subject.dtype.itemsize

    def _sites(self, saes: Sequence[int]) -> list[Site]:
        """What some SAEs read, each site once."""
        return list(dict.fromkeys(self._descriptions[number].reads for number in saes))

    def _capture(self, one: _Slice) -> Captured:
        token_ids = [self.tokenized[i].token_ids for i in one.prompt_numbers]
        batch_tokens = self._study.recipe.capture.batch_tokens
        return capture(self.subject, token_ids, self._sites(one.saes), batch_tokens, on_host=not self.sae_loader.all_fit)

    def _prompt_table(self, rows: range, prompt_id: np.ndarray, tokenized: Sequence[Tokenized]) -> Rows:
        prompts = self._study.prompts[rows.start : rows.stop]
        columns = {
            "prompt_id": prompt_id,
            "prompt_hash": [p.prompt_hash for p in prompts],
            "set": [p.set for p in prompts],
            "split": [p.split for p in prompts],
            "label": [p.label for p in prompts],
            "label_role": [self._study.recipe.labels.role(p.label) for p in prompts],
            "category": pa.array([p.category for p in prompts], pa.string()),
            "text": [p.text for p in prompts],
            "n_tokens": pa.array([len(t.token_ids) for t in tokenized], pa.int32()),
            "template_hash": [self.subject.template_hash] * len(prompts),
            "family": pa.array([p.family for p in prompts], pa.string()),
        }
        return Rows("prompts", pa.table(columns))

    def _message_tables(self, rows: range, prompt_id: np.ndarray) -> Iterator[Rows]:
        """`messages` of a set, if it has chats."""
        chats = [
            (i, p.messages) for i, p in zip(prompt_id, self._study.prompts[rows.start : rows.stop], strict=True) if p.messages
        ]
        if chats:
            columns = {
                "prompt_id": [i for i, chat in chats for _ in chat],
                "number": [number for _, chat in chats for number in range(len(chat))],
                "role": [role for _, chat in chats for role, _ in chat],
                "content": [content for _, chat in chats for _, content in chat],
            }
            yield Rows.of(MESSAGES, columns)

    def _token_table(self, prompt_id: np.ndarray, tokenized: Sequence[Tokenized]) -> Rows:
        lengths = [len(t.token_ids) for t in tokenized]
        columns = {
            "prompt_id": np.repeat(prompt_id, lengths),
            "pos": np.concatenate([np.arange(n, dtype=np.int16) for n in lengths]),
            "token_id": np.concatenate([np.array(t.token_ids, dtype=np.int32) for t in tokenized]),
            "token": [text for t in tokenized for text in self.subject.spelling.texts(t.token_ids)],
            "piece": [piece for t in tokenized for piece in t.tokens],
            "role": [role for t in tokenized for role in t.roles],
        }
        return Rows("tokens", pa.table(columns))

    def _activations(self, number: int, rows: range, order: Sequence[int], found: Nonzeros) -> Rows:
        one, numbers = self._descriptions[number], np.array(order) + rows.start
        lengths = [len(self.tokenized[i].token_ids) for i in numbers]
        pos_of_token = np.concatenate([np.arange(n, dtype=np.int16) for n in lengths])
        if rows.start < L0_PROMPTS:
            self._count_l0(one, numbers, found.token)
        columns = {
            "sae_id": repeated(one.ref.sae_id, len(found.token)),
            "layer": np.full(len(found.token), one.ref.layer, dtype=np.int16),
            "feature_id": found.feature_id,
            "prompt_id": np.repeat(self._prompt_ids[numbers], lengths)[found.token],
            "pos": pos_of_token[found.token],
            "activation": found.activation,
        }
        return Rows("activations", pa.table(columns), one.ref.layer)

    def _count_l0(self, one: SaeDescription, numbers: np.ndarray, token: np.ndarray) -> None:
        """Checks an SAE's L0 as soon as the study's first prompts are captured: the same ones, whatever the shards are."""
        n_first = min(L0_PROMPTS, len(self._study.prompts))
        counts_n = np.concatenate([(np.array(self.tokenized[i].roles) != "bos") & (i < n_first) for i in numbers])
        seen = self._l0.setdefault(one.ref.sae_id, np.zeros(3))
        seen += (counts_n[token].sum(), counts_n.sum(), (numbers < n_first).sum())
        if seen[2] == n_first:
            check_l0(one, float(seen[0] / max(seen[1], 1)))


def check_l0(sae: Sae | SaeDescription, measured: float) -> None:
    """Raises UserError when the mean number of active latents a token (BOS left out) is far from the one that is declared."""
    declared = sae.ref.declared_l0
    if declared is None or declared / L0_FACTOR <= measured <= declared * L0_FACTOR:
        return
    convention = "" if sae.norm == "none" else f" (input scale: {sae.norm})"
    raise UserError(
        f"saes: {sae.ref.location} has {measured:.3g} active latents a token on the first prompts, but {declared:g} are "
        f"declared{convention}: check that it belongs to this model and layer, or give the L0 that you expect as saes.l0"
    )
