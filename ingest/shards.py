"""The rows of an ingest run: one shard about the SAEs, one for every slice of the prompts.

Where the SAEs do not all fit on the device, the residuals of several shards wait in main memory while one layer's SAE after
another is loaded and goes through them: an SAE is read once for each such group of shards, not once for each shard.
A killed job then repeats a group.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from torch import Tensor

from saelake.ingest.capture import Captured, capture, nonzeros
from saelake.ingest.job import Study, prompt_ids
from saelake.ingest.loaded import Loaded
from saelake.ingest.saes.sae import Sae
from saelake.ingest.saes.shelf import HOST_SHARE, host_bytes
from saelake.ingest.sites import Site
from saelake.ingest.subject import Tokenized
from saelake.warehouse.errors import UserError
from saelake.warehouse.records import RunSpec
from saelake.warehouse.runs import Rows

L0_PROMPTS = 32
"""The study's first prompts, on which the L0 of its SAEs is measured before much is computed."""
L0_FACTOR = 3.0
"""Measured L0 may be so many times the declared one, or so small a part of it, before the run is stopped: another SAE, another
place or another scale of its input is then likelier than a difference between texts."""


class ShardMaker:
    """Holds the subject and its SAEs, checked against each other, and makes shards of rows.

    Raises UserError, before any forward pass, for a prompt over the limit, an SAE that does not fit the model, or too little
    memory; and after the first prompts, when an SAE is far from as active as it should be.
    """

    def __init__(self, study: Study, spec: RunSpec, loaded: Loaded | None = None) -> None:
        self._study = study
        self._prompt_ids = prompt_ids(spec, len(study.prompts))
        loaded = loaded or Loaded(study)
        self._facts, self.shelf, self.subject = loaded.facts, loaded.shelf, loaded.subject
        self.tokenized = [self.subject.encode(p.text) for p in study.prompts]
        if self.shelf.all_fit:  # they stay loaded: a damaged one is found before any forward pass
            for number in self.shelf.numbers:
                self.shelf[number].load()
        self._l0: dict[str, np.ndarray] = {}
        """sae_id -> active latents, tokens and prompts of the first prompts, as far as they are captured"""

    def saes(self) -> list[Rows]:
        """`saes` and `features`, without the statistics that publishing adds."""
        table = {
            "sae_id": [s.ref.sae_id for s in self._facts.values()],
            "name": [s.ref.name for s in self._facts.values()],
            "layer": pa.array([s.ref.layer for s in self._facts.values()], pa.int16()),
            "width": pa.array([s.width for s in self._facts.values()], pa.int32()),
            "hook": [s.reads.hook for s in self._facts.values()],
            "hook_out": pa.array([None if s.writes == s.reads else s.writes.hook for s in self._facts.values()], pa.string()),
            "norm": [s.norm for s in self._facts.values()],
            "declared_l0": pa.array([s.ref.declared_l0 for s in self._facts.values()], pa.float32()),
        }
        return [Rows("saes", pa.table(table)), *(self._features(self.shelf.whole(number)) for number in self._facts)]

    def _features(self, sae: Sae) -> Rows:
        columns = {
            "sae_id": _constant(sae.ref.sae_id, sae.width),
            "layer": np.full(sae.width, sae.layer, dtype=np.int16),
            "feature_id": np.arange(sae.width, dtype=np.int32),
            "decoder_norm": sae.W_dec.norm(dim=1).cpu().numpy(),
            "threshold": sae.threshold.cpu().numpy(),
        }
        return Rows("features", pa.table(columns), sae.layer)

    def prompts(self, slices: Sequence[range]) -> Iterator[list[Rows]]:
        """`prompts`, `tokens` and `activations` of slices of the study's prompts, slice by slice."""
        for group in self._groups(slices):
            captured = [self._capture(rows) for rows in group]
            parts: list[list[Rows]] = [[] for _ in group]
            waiting = [one.reads for one in self._facts.values()]
            for number in self.shelf.numbers:
                site = self._facts[number].reads
                waiting.remove(site)
                for rows, one, shard in zip(group, captured, parts, strict=True):
                    resid_nd = one.resid[site] if site in waiting else one.resid.pop(site)  # another SAE reads it too
                    shard.append(self._activations(self.shelf.whole(number), rows, one.order, resid_nd))
            for rows, activations in zip(group, parts, strict=True):
                tokenized = self.tokenized[rows.start : rows.stop]
                prompt_id = self._prompt_ids[rows.start : rows.stop]
                yield [self._prompt_table(rows, prompt_id, tokenized), self._token_table(prompt_id, tokenized), *activations]

    def _groups(self, slices: Sequence[range]) -> Iterator[list[range]]:
        """Slices to go through layer by layer together: one each where the SAEs stay loaded, else as many as memory holds."""
        room = 0.0 if self.shelf.all_fit else HOST_SHARE * host_bytes()
        group: list[range] = []
        for rows in slices:
            if group and self._resid_bytes([*group, rows]) > room:
                yield group
                group = []
            group.append(rows)
        if group:
            yield group

    def _resid_bytes(self, group: Sequence[range]) -> int:
        n_tokens = sum(len(self.tokenized[i].token_ids) for rows in group for i in rows)
        return n_tokens * len(self._sites) * self.subject.d_model * self.subject.dtype.itemsize

    @property
    def _sites(self) -> list[Site]:
        """What the SAEs read, each site once."""
        return list(dict.fromkeys(one.reads for one in self._facts.values()))

    def _capture(self, rows: range) -> Captured:
        token_ids = [self.tokenized[i].token_ids for i in rows]
        batch_tokens = self._study.recipe.capture.batch_tokens
        return capture(self.subject, token_ids, self._sites, batch_tokens, on_host=not self.shelf.all_fit)

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

    def _activations(self, sae: Sae, rows: range, order: Sequence[int], resid_nd: Tensor) -> Rows:
        numbers = np.array(order) + rows.start
        lengths = [len(self.tokenized[i].token_ids) for i in numbers]
        pos_of_token = np.concatenate([np.arange(n, dtype=np.int16) for n in lengths])
        to_bfloat16 = self._study.recipe.capture.round == "bfloat16"
        found = nonzeros(sae, resid_nd, to_bfloat16=to_bfloat16)
        if rows.start < L0_PROMPTS:
            self._count_l0(sae, numbers, found.token)
        columns = {
            "sae_id": _constant(sae.ref.sae_id, len(found.token)),
            "layer": np.full(len(found.token), sae.layer, dtype=np.int16),
            "feature_id": found.feature_id,
            "prompt_id": np.repeat(self._prompt_ids[numbers], lengths)[found.token],
            "pos": pos_of_token[found.token],
            "activation": found.activation,
        }
        return Rows("activations", pa.table(columns), sae.layer)

    def _count_l0(self, sae: Sae, numbers: np.ndarray, token: np.ndarray) -> None:
        """Checks an SAE's L0 as soon as the study's first prompts are captured: the same ones, whatever the shards are."""
        n_first = min(L0_PROMPTS, len(self._study.prompts))
        counts_n = np.concatenate([(np.array(self.tokenized[i].roles) != "bos") & (i < n_first) for i in numbers])
        seen = self._l0.setdefault(sae.sae_id, np.zeros(3))
        seen += (counts_n[token].sum(), counts_n.sum(), (numbers < n_first).sum())
        if seen[2] == n_first:
            check_l0(sae, float(seen[0] / max(seen[1], 1)))


def check_l0(sae: Sae, measured: float) -> None:
    """Raises UserError when the mean number of active latents a token (BOS left out) is far from the one that is declared."""
    declared = sae.ref.declared_l0
    if declared is None or declared / L0_FACTOR <= measured <= declared * L0_FACTOR:
        return
    convention = "" if sae.norm == "none" else f" (input scale: {sae.norm})"
    raise UserError(
        f"saes: {sae.ref.location} has {measured:.3g} active latents a token on the first prompts, but {declared:g} are "
        f"declared{convention}: check that it belongs to this model and layer, or give the L0 that you expect as saes.l0"
    )


def _constant(text: str, n: int) -> pa.DictionaryArray:
    """A column of one repeated text, stored once."""
    return pa.DictionaryArray.from_arrays(np.zeros(n, dtype=np.int8), [text])
