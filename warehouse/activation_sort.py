"""The landed activations of a run in the two orders that they are published in, sorted by counting.

Feature ids and tokens are dense numbers, so rows are put in order by counting them (SciPy's conversion of coordinates to
compressed rows), many times faster than by comparing them. What would not fit in memory is sorted range by range, by feature
from files without a name beside the landed ones, so that these are read once. Where a layer has several SAEs, their rows lie
between one another.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from saelake.warehouse.layout import BATCH_ROWS
from saelake.warehouse.records import INDEX_MASK

RANGE_ROWS = 1 << 24
"""Rows that are sorted at once, in about 400 MB; 300 MB more hold the landed rows where these are all of a table's file."""
COLUMNS = ("feature_id", "prompt_id", "pos", "activation")
LARGEST_WIDTH = 1 << 24
"""Feature ids from here on are not counted: an array of counts would be too large."""


@dataclass(frozen=True)
class Part:
    """What a landed file has of one SAE's activations, of prompts that one run numbered."""

    path: Path
    layer: int
    sae_id: str
    tag: int
    """What the prompt ids hold above their 32-bit index."""
    first: int
    last: int
    """Smallest and largest index of its prompts."""
    pos_bits: int
    """Bits that hold every pos."""
    width: int
    """Its largest feature id and one."""
    n_rows: int
    alone: bool
    """Whether the file has no other SAE's rows."""
    kept: Mapping[str, np.ndarray] | None = field(default=None, repr=False)
    """Its columns, if they need not be read again."""

    def read(self, *names: str) -> list[np.ndarray]:
        """Columns of its rows."""
        if self.kept is not None:
            return [self.kept[name] for name in names]
        columns = pq.ParquetFile(self.path, memory_map=True).read(
            [*names, *(() if self.alone else ("sae_id",))], use_threads=False
        )
        if not self.alone:
            columns = columns.filter(pc.equal(columns["sae_id"], self.sae_id))
        return [columns[name].to_numpy() for name in names]


class _Packing(NamedTuple):
    """How pos and SAE of a row are packed into one number: pos << sae_bits | the SAE's place among the layer's, by name."""

    sae_ids: tuple[str, ...]
    pos_bits: int
    sae_bits: int

    @classmethod
    def of(cls, parts: Sequence[Part], pos_bits: int) -> "_Packing":
        """For the parts of one layer."""
        sae_ids = tuple(sorted({part.sae_id for part in parts}))
        return cls(sae_ids, pos_bits, (len(sae_ids) - 1).bit_length())

    @property
    def bits(self) -> int:
        return self.pos_bits + self.sae_bits

    def packed(self, pos: np.ndarray, sae_id: str) -> np.ndarray:
        return pos if not self.sae_bits else pos.astype(np.int32) << self.sae_bits | self.sae_ids.index(sae_id)

    def pos(self, packed: np.ndarray) -> np.ndarray:
        return (packed & ((1 << self.bits) - 1)) >> self.sae_bits

    def sae(self, packed: np.ndarray) -> np.ndarray:
        """(n,) int32: places in `sae_ids`."""
        return (packed & ((1 << self.sae_bits) - 1)).astype(np.int32)


class _Rows(NamedTuple):
    feature_id: np.ndarray
    token: np.ndarray
    """prompt index << bits | pos and SAE, packed"""
    activation: np.ndarray


def find_parts(files: Mapping[int, Sequence[Path]], range_rows: int = RANGE_ROWS) -> list[Part] | None:
    """What the landed files (layer -> paths) have of each SAE; None if these rows cannot be sorted by counting.

    They can if the SAEs are of a width that fits in memory, and one run has numbered all prompts. Rows that are sorted at once
    are kept, so that they are read once.
    """
    n_rows = sum(pq.read_metadata(path, memory_map=True).num_rows for paths in files.values() for path in paths)
    kept = n_rows <= range_rows
    parts = [part for layer, paths in files.items() for path in paths for part in _parts_of(path, layer, kept)]
    return parts if all(p.sae_id and p.tag == parts[0].tag for p in parts) else None


def _parts_of(path: Path, layer: int, kept: bool) -> Iterator[Part]:
    """The parts of a landed file, one with sae_id empty if it cannot be sorted by counting; none if it has no rows."""
    names = COLUMNS if kept else COLUMNS[:3]
    with pq.ParquetFile(path, memory_map=True, read_dictionary=["sae_id"]) as parquet:
        rows = parquet.read(["sae_id", *names], use_threads=False)
    if not len(rows):
        return
    sae_ids = rows["sae_id"].unique().to_pylist()
    columns = {name: rows[name].to_numpy() for name in names}
    feature_id, prompt_id, pos = (columns[name] for name in COLUMNS[:3])
    first, last = int(prompt_id.min()), int(prompt_id.max())
    width = int(feature_id.max()) + 1
    countable = first >> 32 == last >> 32 and min(feature_id.min(), pos.min()) >= 0 and width <= LARGEST_WIDTH
    numbers = (first & ~INDEX_MASK, first & INDEX_MASK, last & INDEX_MASK, int(pos.max()).bit_length(), width)
    if not countable or len(sae_ids) == 1:
        yield Part(path, layer, sae_ids[0] if countable else "", *numbers, len(rows), alone=True, kept=columns if kept else None)
        return
    for sae_id in sae_ids:
        mine = pc.equal(rows["sae_id"], sae_id).to_numpy()
        of_sae = {name: values[mine] for name, values in columns.items()} if kept else None
        yield Part(path, layer, sae_id, *numbers, int(mine.sum()), alone=False, kept=of_sae)


def by_feature(parts: Sequence[Part], range_rows: int = RANGE_ROWS) -> Iterator[pa.RecordBatch]:
    """The rows of one layer in the order of `activations`, without run_id, layer and, of one SAE, sae_id.

    Raises AssertionError if a row comes twice.
    """
    packing = _Packing.of(parts, max(p.pos_bits for p in parts))
    if sum(part.n_rows for part in parts) <= range_rows:
        ranges = [(0, max(part.width for part in parts))]
        found = iter([_joined([_rows(part, packing) for part in parts])])
    else:
        ranges = list(_ranges(_counts(parts, "feature_id", 0), range_rows))
        found = _split(parts, packing, [first for first, _ in ranges])
    for (first, last), rows in zip(ranges, found, strict=True):
        indptr, token, activation = _grouped(rows.feature_id - first, rows.token, rows.activation, last - first)
        feature_id = np.repeat(np.arange(first, last, dtype=np.int32), np.diff(indptr))
        for start in range(0, len(token), BATCH_ROWS):
            some = slice(start, start + BATCH_ROWS)
            batch = _batch(parts[0].tag, packing, _Rows(feature_id[some], token[some], activation[some]))
            if packing.sae_bits:
                which = pa.DictionaryArray.from_arrays(packing.sae(token[some]), list(packing.sae_ids))
                batch = batch.append_column("sae_id", which)
            yield batch


def by_prompt(parts: Sequence[Part], range_rows: int = RANGE_ROWS) -> Iterator[pa.RecordBatch]:
    """The rows of all layers in the order of `activations_by_prompt`, without run_id.

    Raises AssertionError if a row comes twice.
    """
    parts = sorted(parts, key=lambda p: (p.layer, p.path))
    pos_bits, tag = max(p.pos_bits for p in parts), parts[0].tag
    packings = {layer: _Packing.of(list(group), pos_bits) for layer, group in groupby(parts, key=lambda p: p.layer)}
    sae_ids = [sae_id for packing in packings.values() for sae_id in packing.sae_ids]
    base = min(p.first for p in parts)
    for first, last in _ranges(_counts(parts, "prompt_id", base), range_rows):
        layers = []
        for layer, packing in packings.items():
            rows = _of_prompts([p for p in parts if p.layer == layer], packing, base + first, base + last)
            layers.append(_by_prompt(rows, packing.bits, base + first, last - first))
        for prompt in range(last - first):
            before = 0
            for (layer, packing), (indptr, cell, activation) in zip(packings.items(), layers, strict=True):
                some = slice(indptr[prompt], indptr[prompt + 1])
                n = some.stop - some.start
                token = np.full(n, (base + first + prompt) << packing.bits) | (cell[some] & ((1 << packing.bits) - 1))
                batch = _batch(tag, packing, _Rows(cell[some] >> packing.bits, token, activation[some]))
                which = pa.DictionaryArray.from_arrays(before + packing.sae(token), sae_ids)
                batch = batch.append_column("layer", pa.array(np.full(n, layer, np.int16)))
                yield batch.append_column("sae_id", which)
                before += len(packing.sae_ids)


def _by_prompt(rows: _Rows, bits: int, first: int, n_prompts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets of each prompt's rows, then `feature_id << bits | pos and SAE` and activation in this order."""
    width = int(rows.feature_id.max(initial=0)) + 1
    indptr, token, activation = _grouped(rows.feature_id, rows.token, rows.activation, width)
    feature_id = np.repeat(_widened(np.arange(width), bits), np.diff(indptr))
    cell = feature_id << bits | token & ((1 << bits) - 1)
    return _grouped((token >> bits) - first, cell, activation, n_prompts)  # counting keeps the order of equals


def _counts(parts: Sequence[Part], column: str, base: int) -> np.ndarray:
    """How many rows have each value (or index) of a column, from `base`."""
    total = np.zeros(0, dtype=np.int64)
    for part in parts:
        (values,) = part.read(column)
        counts = np.bincount(values if column == "feature_id" else values - (part.tag + base))
        longer, shorter = (total, counts) if len(total) >= len(counts) else (counts.astype(np.int64), total)
        longer[: len(shorter)] += shorter
        total = longer
    return total


def _ranges(counts: np.ndarray, range_rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of values, of at most `range_rows` rows each, or of one value."""
    below = np.concatenate([[0], np.cumsum(counts)])
    first = 0
    while first < len(counts):
        last = max(int(np.searchsorted(below, below[first] + range_rows, side="right")) - 1, first + 1)
        yield first, last
        first = last


def _rows(part: Part, packing: _Packing) -> _Rows:
    """The landed rows of a part."""
    feature_id, prompt_id, pos, activation = part.read(*COLUMNS)
    token = _widened(prompt_id - part.tag, packing.bits) << packing.bits | packing.packed(pos, part.sae_id)
    return _Rows(feature_id, token, activation)


def _joined(found: Sequence[_Rows]) -> _Rows:
    if not found:
        return _Rows(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))
    return _Rows(*(np.concatenate(columns) for columns in zip(*found, strict=True)))


def _split(parts: Sequence[Part], packing: _Packing, firsts: Sequence[int]) -> Iterator[_Rows]:
    """The landed rows of each range of feature ids, by the first of each: all parts are read before the first range comes."""
    is_narrow = max(part.last for part in parts) < 1 << (31 - packing.bits)
    kinds = (np.dtype(np.int32), np.dtype(np.int32 if is_narrow else np.int64), np.dtype(np.float32))
    with ExitStack() as stack:
        files = [[stack.enter_context(TemporaryFile(dir=parts[0].path.parent)) for _ in kinds] for _ in firsts]
        for part in parts:
            rows = _rows(part, packing)
            place = np.searchsorted(firsts, rows.feature_id, side="right") - 1
            for number, of_range in enumerate(files):
                mine = place == number
                for file, column, kind in zip(of_range, rows, kinds, strict=True):
                    file.write(memoryview(column[mine].astype(kind, copy=False)))
        for of_range in files:
            for file in of_range:
                file.seek(0)
            yield _Rows(*(np.fromfile(file, kind) for file, kind in zip(of_range, kinds, strict=True)))


def _of_prompts(parts: Sequence[Part], packing: _Packing, first: int, last: int) -> _Rows:
    """The landed rows of the prompts whose index is from `first` to `last`, that one left out."""
    found = []
    for part in parts:
        if part.first < last and part.last >= first:
            rows = _rows(part, packing)
            index = rows.token >> packing.bits
            inside = (index >= first) & (index < last)
            found.append(rows if inside.all() else _Rows(*(a[inside] for a in rows)))
    return _joined(found)


def _widened(index: np.ndarray, bits: int) -> np.ndarray:
    """Numbers in 32 bits if they fit there when shifted by `bits`, which are sorted faster, else in 64."""
    return index.astype(np.int32) if int(index.max(initial=0)) < 1 << (31 - bits) else index


def _grouped(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, n_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`columns` and `values` in the order of (rows, columns), with the offsets at which each row begins."""
    from scipy import sparse  # only publishing needs it

    n_columns = int(columns.max(initial=0)) + 1
    grouped = sparse.coo_array((values, (rows, columns)), shape=(n_rows, n_columns)).tocsr()
    assert grouped.nnz == len(values), "activations: a row comes twice in (feature_id, prompt_id, pos)"  # it adds them up
    grouped.sort_indices()
    return grouped.indptr, grouped.indices, grouped.data


def _batch(tag: int, packing: _Packing, rows: _Rows) -> pa.RecordBatch:
    columns = {
        "feature_id": rows.feature_id.astype(np.int32, copy=False),
        "prompt_id": (rows.token >> packing.bits).astype(np.int64) + tag,
        "pos": packing.pos(rows.token).astype(np.int16),
        "activation": rows.activation,
    }
    return pa.RecordBatch.from_pydict({name: pa.array(values) for name, values in columns.items()})
