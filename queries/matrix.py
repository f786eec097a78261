"""Activations as a matrix by rows, without sorting: in their files they lie feature by feature, which is a matrix by columns.

One pass of a counting sort turns that around, a strip of features after another. Strips are kept in pieces of rows, each of which
is given back as soon as it stands in the matrix: beside the 8 bytes that a non-zero takes there, few are ever held.
"""

import mmap
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelake.warehouse.errors import UserError
from saelake.warehouse.literals import literal

if TYPE_CHECKING:
    import duckdb

BATCH_ROWS = 1 << 16
N_STRIPS, N_PIECES = 8, 16
"""Into how many strips of features, and pieces of rows, what is read is cut: a part of all that is held twice at a time."""
IN_ORDER = "feature_id, prompt_id, pos"
PROMPTS = "select prompt_id, n_tokens from prompts order by prompt_id"
BOS = "select prompt_id, pos from tokens where role = 'bos' order by prompt_id"


class SaeColumns(NamedTuple):
    """One SAE, whose features are columns."""

    layer: int
    sae_id: str
    width: int
    is_alone: bool
    """It is the only SAE of its layer."""


class Block(NamedTuple):
    """The prompts of one run, whose ids follow one another: rows of the matrix that lie together."""

    first_id: int
    row: np.ndarray
    """(ids from first_id on,) int64: the prompt's row in the block, -1 where there is no such prompt."""
    token: np.ndarray
    """The same of the prompt's first token, where each token has a row."""
    n_rows: int
    n_tokens: int


class Firings(NamedTuple):
    """Non-zeros in the order of columns, of one batch."""

    feature_id: np.ndarray
    row: np.ndarray
    activation: np.ndarray


def blocks(con: "duckdb.DuckDBPyConnection", by_token: bool) -> list[Block]:
    """All prompts, run by run, in the order of their ids."""
    found = con.execute(PROMPTS).fetchnumpy()
    ids, lengths = np.asarray(found["prompt_id"]), np.asarray(found["n_tokens"]).astype(np.int64)
    runs = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(ids >> 32)) + 1) if len(ids) else []
    return [_block(ids[mine], lengths[mine], by_token) for mine in runs]


def _block(ids: np.ndarray, lengths: np.ndarray, by_token: bool) -> Block:
    place = ids - ids[0]
    token, row = np.full(place[-1] + 1, -1, dtype=np.int64), np.full(place[-1] + 1, -1, dtype=np.int64)
    token[place], row[place] = np.cumsum(lengths) - lengths, np.arange(len(ids))
    n_tokens = int(lengths.sum())
    return Block(int(ids[0]), token if by_token else row, token, n_tokens if by_token else len(ids), n_tokens)


class Places(NamedTuple):
    """Tokens, by prompt and position."""

    prompt_id: np.ndarray
    pos: np.ndarray


def bos_places(con: "duckdb.DuckDBPyConnection") -> Places:
    """Where BOS stands, in the order of the prompts' ids."""
    found = con.execute(BOS).fetchnumpy()
    return Places(np.asarray(found["prompt_id"]), np.asarray(found["pos"]))


def matrix(
    con: "duckdb.DuckDBPyConnection", block: Block, saes: Sequence[SaeColumns], by_token: bool, without: Places | None
) -> Any:
    """(rows of the block, features of the SAEs) float32, a SciPy CSR array; of a prompt the largest value over its tokens.

    Args:
        without: tokens that count for nothing.
    """
    is_left_out = None if without is None else _in_block(without, block)
    counts = [int(con.execute(f"select count(*) from activations where {_clause(block, sae)}").fetchall()[0][0]) for sae in saes]
    most = max(sum(counts) // N_STRIPS, BATCH_ROWS)
    edges = np.linspace(0, block.n_rows, min(N_PIECES, max(block.n_rows, 1)) + 1).astype(np.int64)
    pieces: list[list[Any]] = [[] for _ in edges[1:]]
    for sae, count in zip(saes, counts, strict=True):
        for strip in _strips(con, block, sae, count, by_token, is_left_out, most):
            for piece, first, last in zip(pieces, edges[:-1], edges[1:], strict=True):
                piece.append(_apart(strip[first:last]))
    shape = block.n_rows, sum(sae.width for sae in saes)
    return _whole(pieces, edges, shape)


def _apart(part: Any) -> Any:
    """The same SciPy CSR array in memory of its own, which the system has again with it: what is freed may stay the process's."""
    for name in ("data", "indices"):
        values = getattr(part, name)
        if values.nbytes:
            own = np.frombuffer(mmap.mmap(-1, values.nbytes), values.dtype)
            own[:] = values
            setattr(part, name, own)
    return part


def _whole(pieces: list[list[Any]], edges: np.ndarray, shape: tuple[int, int]) -> Any:
    """The matrix of its pieces, which are given back one by one."""
    import scipy.sparse

    n = sum(int(strip.indptr[-1]) for piece in pieces for strip in piece)
    index = np.int32 if max(n, *shape) < 2**31 else np.int64
    value, column, starts = np.empty(n, np.float32), np.empty(n, index), np.zeros(shape[0] + 1, index)
    at = 0
    for number, (first, last) in enumerate(pairwise(edges.tolist())):
        if not shape[1] or first == last:
            continue
        some = scipy.sparse.hstack(pieces[number], format="csr")
        pieces[number] = []
        end = at + int(some.indptr[-1])
        value[at:end], column[at:end] = some.data, some.indices
        starts[first + 1 : last + 1] = some.indptr[1:].astype(index) + index(at)
        at = end
    return scipy.sparse.csr_array((value, column, starts), shape=shape)


def _strips(
    con: "duckdb.DuckDBPyConnection",
    block: Block,
    sae: SaeColumns,
    count: int,
    by_token: bool,
    is_left_out: np.ndarray | None,
    most: int,
) -> list[Any]:
    """An SAE's columns as SciPy CSR arrays side by side, of about `most` entries each.

    Raises UserError for a row that comes twice.
    """
    import scipy.sparse

    if not count:
        return [scipy.sparse.csr_array((block.n_rows, sae.width), dtype=np.float32)]
    clause = _clause(block, sae)
    found = _cut(block, sae, most, _batches(con, block, clause, by_token, is_left_out))
    if found is None:  # not as a run's files lie
        found = _cut(block, sae, most, _batches(con, block, f"{clause} order by {IN_ORDER}", by_token, is_left_out))
        if found is None:  # sorted, and still not in order
            raise UserError(f"activations of {sae.sae_id} hold a row twice: give the files of each run once")
    return found


def _cut(block: Block, sae: SaeColumns, most: int, batches: Iterator[Firings]) -> list[Any] | None:
    """Strips of whole columns; None if entries do not come in the order of columns and rows."""
    strips: list[Any] = []
    held: list[Firings] = []
    n_held, first, last = 0, 0, -1
    for batch in batches:
        feature_id, row, value = batch
        key = (feature_id.astype(np.int64) << 32) | row
        if key[0] == last:  # a prompt of which the batch before has tokens too
            held[-1].activation[-1] = max(held[-1].activation[-1], value[0])
            feature_id, row, value, key = feature_id[1:], row[1:], value[1:], key[1:]
        if not len(key):
            continue
        if key[0] < last or (key[1:] <= key[:-1]).any():
            return None
        held.append(Firings(feature_id, row, value))
        n_held, last = n_held + len(key), int(key[-1])
        if n_held >= most and feature_id[-1] > first:
            held, first = _flush(strips, block, held, first, int(feature_id[-1]))
            n_held = sum(len(one.row) for one in held)
    _flush(strips, block, held, first, sae.width)
    return strips


def _flush(strips: list[Any], block: Block, held: list[Firings], first: int, end: int) -> tuple[list[Firings], int]:
    """Makes a strip of the columns from `first` up to `end`; gives what is held of later ones, and where they begin."""
    import scipy.sparse

    cuts = [int(np.searchsorted(one.feature_id, end)) for one in held]
    n_of = np.zeros(end - first, dtype=np.int64)
    for one, cut in zip(held, cuts, strict=True):
        if cut:
            low = int(one.feature_id[0])
            counted = np.bincount(one.feature_id[:cut] - low)
            n_of[low - first : low - first + len(counted)] += counted
    row = np.concatenate([np.empty(0, np.int32), *(one.row[:cut] for one, cut in zip(held, cuts, strict=True))])
    value = np.concatenate([np.empty(0, np.float32), *(one.activation[:cut] for one, cut in zip(held, cuts, strict=True))])
    ends = np.concatenate([np.zeros(1, row.dtype), np.cumsum(n_of).astype(row.dtype)])
    strips.append(scipy.sparse.csc_array((value, row, ends), shape=(block.n_rows, end - first)).tocsr())
    left = [Firings(*(column[cut:] for column in one)) for one, cut in zip(held, cuts, strict=True) if cut < len(one.row)]
    return left, end


def _clause(block: Block, sae: SaeColumns) -> str:
    """Which rows of `activations` are an SAE's on the block's prompts."""
    prompts = f"prompt_id between {block.first_id} and {block.first_id + len(block.row) - 1}"
    return f"layer = {sae.layer} and {prompts}" + ("" if sae.is_alone else f" and sae_id = {literal(sae.sae_id)}")


def _in_block(places: Places, block: Block) -> np.ndarray:
    """(tokens of the block,) bool: those that are among some tokens."""
    mine = (places.prompt_id >= block.first_id) & (places.prompt_id < block.first_id + len(block.row))
    found = np.zeros(block.n_tokens, dtype=bool)
    found[block.token[places.prompt_id[mine] - block.first_id] + places.pos[mine]] = True
    return found


def _batches(
    con: "duckdb.DuckDBPyConnection", block: Block, clause: str, by_token: bool, is_left_out: np.ndarray | None
) -> Iterator[Firings]:
    """What fires, column by column and in a column row by row, each place once within a batch."""
    columns = f"feature_id, (prompt_id - {block.first_id})::integer as prompt, pos, activation"
    row_of = block.row.astype(np.int32) if block.n_rows < 2**31 else block.row
    has_all = bool((block.row >= 0).all()) and is_left_out is None
    for rows in con.sql(f"select {columns} from activations where {clause}").to_arrow_reader(BATCH_ROWS):
        feature_id, prompt, pos = (rows[name].to_numpy() for name in ("feature_id", "prompt", "pos"))
        activation, row = rows["activation"].to_numpy(), row_of[prompt]
        if not has_all:
            kept = row >= 0
            if is_left_out is not None:
                kept &= ~is_left_out[block.token[prompt] + pos]
            feature_id, row, pos, activation = feature_id[kept], row[kept], pos[kept], activation[kept]
        if not len(row):
            continue
        if by_token:
            yield Firings(feature_id, row + pos, activation.copy())
            continue
        is_new = np.ones(len(row), dtype=bool)
        is_new[1:] = (feature_id[1:] != feature_id[:-1]) | (row[1:] != row[:-1])
        new = np.flatnonzero(is_new)
        yield Firings(feature_id[new], row[new], np.maximum.reduceat(activation, new))
