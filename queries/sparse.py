"""Activations as sparse matrices of SciPy or PyTorch, from a lake or from the files of a shared set."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelake.queries.loader import run
from saelake.queries.parameters import QueryError
from saelake.warehouse import arguments
from saelake.warehouse.errors import UserError
from saelake.warehouse.literals import literal, parquet, paths

if TYPE_CHECKING:
    import duckdb

PROMPTS = "select prompt_id from prompts order by prompt_id"
TOKENS = "select prompt_id, unnest(range(n_tokens)) as pos from prompts order by prompt_id, pos"
"""What the rows of a matrix are."""
NO_TOKENS = "select null::bigint as prompt_id, null::smallint as pos, null::varchar as role where false"
INSTEAD = {
    "prompts": (
        "select prompt_id, max(pos) + 1 as n_tokens from activations group by prompt_id",
        "rows are the prompts on which something fires, each up to the last token on which it does",
    ),
    "saes": (
        "select layer, sae_id, max(feature_id) + 1 as width from activations group by layer, sae_id",
        "columns are the features of the SAEs that fire, each up to the last one that does",
    ),
}
"""Table -> what is read from activations where a set has no such table, and what that means."""


class Sparse(NamedTuple):
    """A sparse matrix and what its rows and columns are."""

    matrix: Any
    """(n_rows, n_features) float32: scipy.sparse.csr_array, or a torch tensor in CSR layout"""
    rows: dict[str, np.ndarray]
    """prompt_id (n_rows,) int64, and pos (n_rows,) where a row is a token"""
    features: dict[str, np.ndarray]
    """layer, sae_id and feature_id, (n_features,) each"""


def sparse(con: "duckdb.DuckDBPyConnection", *, library: str = "scipy", **parameters: Any) -> Sparse:
    """The matrix that the question `sparse` describes, on a connection that shows `activations`, `prompts` and `saes`.

    Its shape is that of the study: all prompts (or all their tokens) by all features of the SAEs, whatever fires.

    Args:
        library: scipy or torch.
        parameters: layer, rows ("prompt" or "token") and bos, as `saelake query sparse --help` says; bos=False reads `tokens`.
    Raises QueryError for a wrong parameter, UserError for another library.
    """
    if library not in ("scipy", "torch"):
        raise UserError(f"library is scipy or torch, not {arguments.shown(library)}")
    import scipy.sparse

    found = run(con, "sparse", **parameters).fetchnumpy()
    by_token = parameters.get("rows") == "token"
    rows = con.execute(TOKENS if by_token else PROMPTS).fetchnumpy()
    features = _features(con, parameters.get("layer"))
    places = tuple(found[name].astype(np.int64) for name in ("row_index", "column_index"))
    shape = (len(rows["prompt_id"]), len(features["feature_id"]))
    matrix = scipy.sparse.csr_array((np.asarray(found["activation"], dtype=np.float32), places), shape=shape)
    return Sparse(_to_torch(matrix) if library == "torch" else matrix, {k: np.asarray(v) for k, v in rows.items()}, features)


def _features(con: "duckdb.DuckDBPyConnection", layer: Any) -> dict[str, np.ndarray]:
    """What the columns are: every feature of every SAE, or of those of one layer."""
    saes = con.execute("select layer, sae_id, width from saes order by layer, sae_id").fetchall()
    asked = [sae for sae in saes if layer in (None, "null") or sae[0] == int(layer)]
    widths = [width for *_, width in asked]
    return {
        "layer": np.repeat(np.array([of for of, *_ in asked], dtype=np.int16), widths),
        "sae_id": np.repeat(np.array([sae_id for _, sae_id, _ in asked], dtype=object), widths),
        "feature_id": np.concatenate([np.arange(width, dtype=np.int32) for width in widths] or [np.empty(0, np.int32)]),
    }


def sparse_of_files(files: str, **options: Any) -> Sparse:
    """`sparse` over Parquet files by a path or pattern, as `set/data/activations/*.parquet`.

    Rows and columns are those of the set's prompts and saes, which stand beside its activations; where the files are not all of
    the set's, columns are those of the SAEs that fire in them. A set without one of these tables is read as far as the
    activations themselves show, with a warning that says so. Raises QueryError if bos is false and there are no tokens.
    """
    import duckdb

    exactly = paths([files]) if Path(files).exists() else literal(files)
    folder = Path(files).parent
    beside = {name: sorted((folder.parent / name).glob("*.parquet")) for name in ("tokens", *INSTEAD)}
    if not beside["tokens"] and options.get("bos") in (False, "false"):
        raise QueryError("which tokens are BOS stands in the table tokens, which is not beside these files: leave bos true")
    with duckdb.connect() as con:
        con.execute(f"create view activations as select * from {parquet(exactly)}")
        for name, found in beside.items():
            select, used = INSTEAD.get(name, (NO_TOKENS, ""))
            con.execute(f"create view {name} as {f'select * from {parquet(paths(found))}' if found else select}")
            if used and not found:
                warnings.warn(f"the table {name} is not beside these files: {used}", stacklevel=3)
        read = con.execute(f"select file_name from parquet_file_metadata({exactly})").fetchall()
        if len(read) < len(list(folder.glob("*.parquet"))):
            con.execute("create temp view saes as select * from memory.main.saes semi join activations using (sae_id)")
        return sparse(con, **options)


def _to_torch(matrix: Any) -> Any:
    from importlib import import_module

    from saelake.extras import require

    require("compute", 'library="torch"', "torch")
    torch = import_module("torch")  # asked for by name: questions themselves never need it
    parts = (torch.from_numpy(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices))
    return torch.sparse_csr_tensor(*parts, torch.from_numpy(matrix.data), size=matrix.shape)
