"""A lake's activations as a PyTorch data set: batches of prompts, or of tokens, by features, for those who train on them.

    from torch.utils.data import DataLoader

    rows = saelake.open("lake").dataset(layer=4, rows="token", batch_rows=1024)
    for batch in DataLoader(rows, batch_size=None, num_workers=2, multiprocessing_context="spawn"):
        batch["x"], batch["label"], batch["prompt_id"], batch["pos"]

Prompts are read in groups, in an order of their own in every epoch, and the rows of some groups are mixed. Where the study has a
copy of its activations prompt by prompt (capture.prompt_major), a group is read from its row groups alone, and never more than
some groups are in memory; without that copy a worker holds all activations, 8 bytes each.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from saelake import queries
from saelake.queries.sparse import Sparse, features_of, sae_columns, sparse, to_torch
from saelake.warehouse import arguments
from saelake.warehouse.catalog import connect
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake

GROUP_PROMPTS = 64
"""Prompts that are read together."""
MIXED = 8
"""Groups whose rows are shuffled together."""
LABELS = {"target": 1, "control": 0, "other": -1}
BOS = "select prompt_id, min(pos) from tokens where role = 'bos' group by prompt_id"
PROMPTS = "select prompt_id, n_tokens, label_role from prompts where n_tokens > 0 order by prompt_id"


class _Part(NamedTuple):
    """Some rows."""

    matrix: Any
    """(n, f), a SciPy CSR array"""
    prompt_id: np.ndarray
    pos: np.ndarray
    label: np.ndarray

    @classmethod
    def of(cls, parts: Sequence["_Part"]) -> "_Part":
        """Several, one behind another."""
        import scipy.sparse

        matrix = scipy.sparse.csr_array(scipy.sparse.vstack([one.matrix for one in parts], format="csr"))
        return cls(matrix, *(np.concatenate(column) for column in zip(*(one[1:] for one in parts), strict=True)))

    def take(self, places: np.ndarray) -> "_Part":
        """The rows at some places, in this order."""
        return _Part(*(column[places] for column in self))


class LakeRows(IterableDataset[dict[str, torch.Tensor]]):
    """Batches of rows: `x` (b, f), float32, dense or in CSR layout; `prompt_id` (b,); `label` (b,), which is 1 for prompts of the
    target label, 0 for those of the control label and -1 for others; of tokens `pos` (b,).

    Every prompt, or token, is in one batch of an epoch; workers of a DataLoader share the groups.
    """

    def __init__(
        self,
        lake: Lake,
        recipe: str,
        *,
        layer: int | None = None,
        rows: str = "token",
        bos: bool = False,
        batch_rows: int = 1024,
        dense: bool = True,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        arguments.one_of("rows", rows, ("token", "prompt"))
        for name, value in (("bos", bos), ("dense", dense), ("shuffle", shuffle)):
            if not isinstance(value, bool):
                raise UserError(f"{name} is True or False, not {arguments.shown(value)}")
        layer = None if layer is None else arguments.whole("layer", layer, 0)
        self.batch_rows = arguments.whole("batch_rows", batch_rows, 1)
        self.seed = arguments.whole("seed", seed, 0)
        self.epoch = 0
        self._told = torch.zeros(2, dtype=torch.int64).share_memory_()
        """Which epoch was asked for, and how often one was: workers that live on for several epochs see it."""
        self._heard = 0
        self._place = lake.remote or str(lake.root)
        self._recipe, self._layer, self._by_token = recipe, layer, rows == "token"
        self._bos, self._dense, self._shuffle = bos, dense, shuffle
        with connect(Lake.existing(self._place), recipe) as con:
            found = con.execute(PROMPTS).fetchnumpy()
            self._saes = sae_columns(con, layer)
            (self._by_prompt,) = con.execute("select count(*) > 0 from activations_by_prompt").fetchall()[0]
            bos_of = dict(con.execute(BOS).fetchall())
        if not self._saes:
            raise UserError(f"the study {recipe} has no SAE")
        self.features = features_of(self._saes)
        """layer, sae_id and feature_id of every column."""
        self._ids = np.asarray(found["prompt_id"])
        self._bos_pos = np.array([bos_of.get(one, -1) for one in self._ids.tolist()], dtype=np.int64)
        self._lengths = np.asarray(found["n_tokens"]).astype(np.int64)
        self._labels = np.array([LABELS[role] for role in found["label_role"]], dtype=np.int64)

    @property
    def n_rows(self) -> int:
        """Rows of an epoch."""
        if not self._by_token:
            return len(self._ids)
        return int(self._lengths.sum()) - (0 if self._bos else int((self._bos_pos >= 0).sum()))

    def set_epoch(self, epoch: int) -> None:
        """Which order the next epoch has; by itself every epoch of a process has the next one.

        Workers are new processes in every epoch, unless they are persistent, so that with them it is said before each.
        """
        self.epoch = arguments.whole("epoch", epoch, 0)
        self._heard += 1
        self._told.copy_(torch.tensor([self.epoch, self._heard]))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        asked, times = self._told.tolist()
        if times != self._heard:
            self.epoch, self._heard = asked, times
        rng = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        starts = np.arange(0, len(self._ids), GROUP_PROMPTS)
        starts = rng.permutation(starts) if self._shuffle else starts
        worker = get_worker_info()
        mine = starts if worker is None else starts[worker.id :: worker.num_workers]
        left: _Part | None = None
        for at in range(0, len(mine), MIXED):
            parts = [self._read(start) for start in mine[at : at + MIXED].tolist()]
            mixed = _Part.of([*([left] if left is not None else []), *parts])
            mixed = mixed.take(rng.permutation(len(mixed.label))) if self._shuffle else mixed
            n_all = len(mixed.label)
            n_whole = n_all - n_all % self.batch_rows
            for first in range(0, n_whole, self.batch_rows):
                yield self._batch(mixed.take(np.arange(first, first + self.batch_rows)))
            left = mixed.take(np.arange(n_whole, n_all))
        if left is not None and left.matrix.shape[0]:
            yield self._batch(left)

    def _batch(self, part: "_Part") -> dict[str, torch.Tensor]:
        matrix = part.matrix
        x = torch.from_numpy(matrix.toarray()) if self._dense else to_torch(matrix)
        batch = {"x": x, "prompt_id": torch.from_numpy(part.prompt_id), "label": torch.from_numpy(part.label)}
        return batch | ({"pos": torch.from_numpy(part.pos)} if self._by_token else {})

    def _read(self, start: int) -> "_Part":
        """The rows of one group of prompts, by the place of its first."""
        which = slice(start, start + GROUP_PROMPTS)
        ids, lengths, bos_pos = self._ids[which], self._lengths[which], self._bos_pos[which]
        n_rows = lengths if self._by_token else np.ones_like(lengths)
        of = np.repeat(np.arange(len(ids)), n_rows)
        pos = np.arange(len(of)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
        rows = self._copied(ids, n_rows, bos_pos) if self._by_prompt else self._held(ids, n_rows)
        part = _Part(rows, ids[of], pos, self._labels[which][of])
        return part if self._bos or not self._by_token else part.take(np.flatnonzero(pos != bos_pos[of]))

    def _held(self, ids: np.ndarray, n_rows: np.ndarray) -> Any:
        """(rows of some prompts, f), of what is in memory."""
        first = np.searchsorted(self._whole.rows["prompt_id"], ids)
        return self._whole.matrix[np.concatenate([np.arange(at, at + n) for at, n in zip(first, n_rows, strict=True)])]

    def _copied(self, ids: np.ndarray, n_rows: np.ndarray, bos_pos: np.ndarray) -> Any:
        """The same from the row groups of the copy by prompt."""
        import scipy.sparse

        found = self._con.execute(queries.step("rows_of_prompts"), {"first": int(ids[0]), "last": int(ids[-1])}).fetchnumpy()
        prompt_id, pos, place, value = (np.asarray(found[name]) for name in ("prompt_id", "pos", "place", "activation"))
        of = np.searchsorted(ids, prompt_id)
        kept = np.ones(len(of), dtype=bool) if self._bos else pos != bos_pos[of]
        row = ((np.cumsum(n_rows) - n_rows)[of] + (pos if self._by_token else 0))[kept]
        place, value = place[kept], value[kept]
        order = np.lexsort((place, row))
        row, place, value = row[order], place[order], value[order]
        first = np.flatnonzero((np.diff(row, prepend=-1) != 0) | (np.diff(place, prepend=-1) != 0))
        value = np.maximum.reduceat(value, first) if len(first) else value  # of a prompt the largest over its tokens
        shape = int(n_rows.sum()), len(self.features["feature_id"])
        return scipy.sparse.csr_array((value.astype(np.float32), (row[first], place[first])), shape=shape)

    @cached_property
    def _con(self) -> Any:
        """A connection of this process's own."""
        con = connect(Lake.existing(self._place), self._recipe)
        firsts = np.cumsum([0, *(sae.width for sae in self._saes)]).tolist()
        rows = [(sae.layer, sae.sae_id, first) for sae, first in zip(self._saes, firsts, strict=False)]
        con.execute("create temp table column_of (layer smallint, sae_id varchar, first integer)")
        con.executemany("insert into column_of values (?, ?, ?)", rows)
        return con

    @cached_property
    def _whole(self) -> Sparse:
        """All rows, where there is no copy by prompt."""
        with connect(Lake.existing(self._place), self._recipe) as con:
            return sparse(con, layer=self._layer, rows="token" if self._by_token else "prompt", bos=self._bos)

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process: a worker opens the lake itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_con", "_whole")}
