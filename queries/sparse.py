"""Activations as sparse matrices of SciPy or PyTorch, from a lake or from the files of a shared set."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelake.queries.loader import run
from saelake.queries.parameters import QueryError
from saelake.warehouse.literals import literal, parquet, paths

if TYPE_CHECKING:
    import duckdb


class Sparse(NamedTuple):
    """A sparse matrix and what its rows and columns are."""

    matrix: Any
    """(n_rows, n_features) float32: scipy.sparse.csr_array, or a torch tensor in CSR layout"""
    rows: dict[str, np.ndarray]
    """prompt_id (n_rows,) int64, and pos (n_rows,) where a row is a token"""
    features: dict[str, np.ndarray]
    """layer, sae_id and feature_id, (n_features,) each"""


def sparse(con: "duckdb.DuckDBPyConnection", *, library: str = "scipy", **parameters: Any) -> Sparse:
    """The matrix that the question `sparse` describes, on a connection that shows `activations`.

    Args:
        library: scipy or torch.
        parameters: layer, rows ("prompt" or "token") and bos, as `saelake query sparse --help` tells.
    Raises QueryError for a wrong parameter, ValueError for another library.
    """
    if library not in ("scipy", "torch"):
        raise ValueError(f"library is scipy or torch, not {library!r}")
    import scipy.sparse

    found = run(con, "sparse", **parameters).fetchnumpy()
    row, column = (found[name].astype(np.int64) for name in ("row_index", "column_index"))
    of_rows, of_features = (np.unique(numbers, return_index=True)[1] for numbers in (row, column))
    by_token = parameters.get("rows") == "token"
    rows = {name: np.asarray(found[name][of_rows]) for name in ("prompt_id", *(["pos"] if by_token else []))}
    features = {name: np.asarray(found[name][of_features]) for name in ("layer", "sae_id", "feature_id")}
    shape = (len(of_rows), len(of_features))
    matrix = scipy.sparse.csr_array((np.asarray(found["activation"], dtype=np.float32), (row, column)), shape=shape)
    return Sparse(_to_torch(matrix) if library == "torch" else matrix, rows, features)


def sparse_of_files(files: str, **options: Any) -> Sparse:
    """`sparse` over Parquet files by a path or pattern, as `set/data/activations/*.parquet`.

    Which tokens are BOS is read from the set's tokens beside them; raises QueryError if bos is false and they are not there.
    """
    import duckdb

    exactly = paths([files]) if Path(files).exists() else literal(files)
    tokens = sorted((Path(files).parent.parent / "tokens").glob("*.parquet"))
    if not tokens and options.get("bos") in (False, "false"):
        raise QueryError("which tokens are BOS is told by the table tokens, which is not beside these files: leave bos true")
    with duckdb.connect() as con:
        con.execute(f"create view activations as select * from {parquet(exactly)}")
        known = "select null::bigint as prompt_id, null::smallint as pos, null::varchar as role where false"
        con.execute(f"create view tokens as {f'select prompt_id, pos, role from {parquet(paths(tokens))}' if tokens else known}")
        return sparse(con, **options)


def _to_torch(matrix: Any) -> Any:
    from importlib import import_module

    from saelake.extras import require

    require("compute", 'library="torch"', "torch")
    torch = import_module("torch")  # asked for by name: questions themselves never need it
    parts = (torch.from_numpy(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices))
    return torch.sparse_csr_tensor(*parts, torch.from_numpy(matrix.data), size=matrix.shape)
