"""Activations as a matrix by rows, without sorting: in their files they lie feature by feature, which is a matrix by columns.

One pass of a counting sort turns that around, so that a non-zero takes 8 bytes as it is read and 8 where it goes, and no more.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelake.warehouse.literals import literal

if TYPE_CHECKING:
    import duckdb

BATCH_ROWS = 1 << 16
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
    import scipy.sparse

    is_left_out = None if without is None else _in_block(without, block)
    clauses = [_clause(block, sae) for sae in saes]
    counts = [int(con.execute(f"select count(*) from activations where {clause}").fetchall()[0][0]) for clause in clauses]
    index = np.int32 if max(sum(counts), block.n_rows) < 2**31 else np.int64
    row, value = np.empty(sum(counts), dtype=index), np.empty(sum(counts), dtype=np.float32)
    ends, n = [np.zeros(1, dtype=index)], 0
    for sae, clause, count in zip(saes, clauses, counts, strict=True):
        n_of = np.zeros(sae.width, dtype=np.int64)
        if count:
            after = _fill(row, value, n, n_of, _batches(con, block, clause, by_token, is_left_out))
            if after is None:  # not as a run's files lie
                n_of[:] = 0
                after = _fill(row, value, n, n_of, _batches(con, block, f"{clause} order by {IN_ORDER}", by_token, is_left_out))
                assert after is not None, "what is sorted is in order"
            n = after
        ends.append((ends[-1][-1] + np.cumsum(n_of)).astype(index))
    shape = block.n_rows, sum(sae.width for sae in saes)
    return scipy.sparse.csc_array((value[:n], row[:n], np.concatenate(ends)), shape=shape).tocsr()


def _fill(row: np.ndarray, value: np.ndarray, n: int, n_of: np.ndarray, batches: Iterator[Firings]) -> int | None:
    """Writes an SAE's columns behind the first `n` entries, and counts the entries of each; gives the end.

    None if they do not come in the order of columns and rows.
    """
    last_feature, last_row = -1, -1
    for feature_id, rows, values in batches:
        step, down = np.diff(feature_id, prepend=last_feature), np.diff(rows, prepend=last_row)
        if last_feature == feature_id[0] and last_row == rows[0]:  # a prompt of which the batch before has tokens too
            value[n - 1] = max(value[n - 1], values[0])
            feature_id, rows, values, step, down = feature_id[1:], rows[1:], values[1:], step[1:], down[1:]
        if ((step < 0) | ((step == 0) & (down <= 0))).any():
            return None
        if len(rows):
            row[n : n + len(rows)], value[n : n + len(rows)] = rows, values
            n_of += np.bincount(feature_id, minlength=len(n_of))
            n += len(rows)
            last_feature, last_row = int(feature_id[-1]), int(rows[-1])
    return n


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
    for rows in con.execute(f"select {columns} from activations where {clause}").to_arrow_reader(BATCH_ROWS):
        feature_id, prompt, pos = (rows[name].to_numpy() for name in ("feature_id", "prompt", "pos"))
        activation, row = rows["activation"].to_numpy(), block.row[prompt]
        kept = row >= 0
        if is_left_out is not None:
            kept &= ~is_left_out[block.token[prompt] + pos]
        if not kept.all():
            feature_id, row, pos, activation = feature_id[kept], row[kept], pos[kept], activation[kept]
        if not len(row):
            continue
        if by_token:
            yield Firings(feature_id, row + pos, activation)
            continue
        new = np.flatnonzero((np.diff(feature_id, prepend=-1) != 0) | (np.diff(row, prepend=-1) != 0))
        yield Firings(feature_id[new], row[new], np.maximum.reduceat(activation, new))
