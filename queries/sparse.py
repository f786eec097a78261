"""Activations as sparse matrices of SciPy or PyTorch, from a lake or from the files of a shared set."""

import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelake.queries.loader import load
from saelake.queries.matrix import SaeColumns, blocks, bos_places, matrix
from saelake.queries.parameters import QueryError, plain
from saelake.warehouse import arguments
from saelake.warehouse.errors import UserError, one_line
from saelake.warehouse.literals import literal, parquet, paths

if TYPE_CHECKING:
    import duckdb

PROMPTS = "select prompt_id from prompts order by prompt_id"
TOKENS = "select prompt_id, unnest(range(n_tokens)) as pos from prompts order by prompt_id, pos"
"""What the rows of a matrix are."""
BESIDE = {"tokens": "prompt_id, pos, role", "prompts": "prompt_id, n_tokens", "saes": "layer, sae_id, width"}
"""Tables that stand beside a set's activations -> the columns that are read of them."""
INSTEAD = {
    "tokens": "select null::bigint as prompt_id, null::smallint as pos, null::varchar as role where false",
    "prompts": "select prompt_id, max(pos)::integer + 1 as n_tokens from activations group by prompt_id",
    "saes": "select layer, sae_id, max(feature_id) + 1 as width from activations group by layer, sae_id",
}
"""Such a table -> what is read from activations where a set has it not."""
MEANING = {
    "prompts": "rows are the prompts on which something fires, each up to the last token on which it does",
    "saes": "columns are the features of the SAEs that fire, each up to the last one that does",
}
"""Such a table -> what it means that it is not there."""


class Sparse(NamedTuple):
    """A sparse matrix and what its rows and columns are."""

    matrix: Any
    """(n_rows, n_features) float32: scipy.sparse.csr_array, or a torch tensor in CSR layout"""
    rows: dict[str, np.ndarray]
    """prompt_id (n_rows,) int64, and pos (n_rows,) where a row is a token"""
    features: dict[str, np.ndarray]
    """layer, sae_id and feature_id, (n_features,) each"""


def sparse(con: "duckdb.DuckDBPyConnection", /, *, library: str = "scipy", **parameters: Any) -> Sparse:
    """The matrix that the question `sparse` describes, on a connection that shows `activations`, `prompts` and `saes`.

    Its shape is that of the study: all prompts (or all their tokens) by all features of the SAEs, whatever fires.

    Args:
        library: scipy or torch.
        parameters: layer, rows ("prompt" or "token") and bos, as `saelake query sparse --help` says; bos=False reads `tokens`.
    Raises QueryError for a wrong parameter, UserError for another library.
    """
    arguments.one_of("library", library, ("scipy", "torch"))
    load("sparse").statement(con, parameters)  # for what is wrong with the parameters
    by_token, bos = parameters.get("rows") == "token", parameters.get("bos") not in (False, "false")
    saes = sae_columns(con, parameters.get("layer"))
    without = None if bos else bos_places(con)
    parts = [matrix(con, block, saes, by_token, without) for block in blocks(con, by_token)]
    rows = con.execute(TOKENS if by_token else PROMPTS).fetchnumpy()
    found = _stacked(parts, sum(sae.width for sae in saes))
    return Sparse(
        to_torch(found) if library == "torch" else found, {k: np.asarray(v) for k, v in rows.items()}, features_of(saes)
    )


def sae_columns(con: "duckdb.DuckDBPyConnection", layer: Any) -> list[SaeColumns]:
    """The SAEs whose features are columns: all, or those of one layer. Raises QueryError for a layer without any."""
    rows = con.execute("select layer, sae_id, width from saes order by layer, sae_id").fetchall()
    layers = [of for of, *_ in rows]
    asked = [row for row in rows if layer in (None, "null") or row[0] == int(layer)]
    if rows and not asked:
        raise QueryError(f"layer: there is no SAE in layer {layer}: SAEs are in {', '.join(map(str, dict.fromkeys(layers)))}")
    return [SaeColumns(int(of), str(sae_id), int(width), layers.count(of) == 1) for of, sae_id, width in asked]


def features_of(saes: Sequence[SaeColumns]) -> dict[str, np.ndarray]:
    """What the columns are: every feature of every SAE."""
    widths = [sae.width for sae in saes]
    return {
        "layer": np.repeat(np.array([sae.layer for sae in saes], dtype=np.int16), widths),
        "sae_id": np.repeat(np.array([sae.sae_id for sae in saes], dtype=object), widths),
        "feature_id": np.concatenate([np.arange(width, dtype=np.int32) for width in widths] or [np.empty(0, np.int32)]),
    }


def _stacked(parts: list[Any], n_columns: int) -> Any:
    """One matrix of those of the runs; a single one is that itself."""
    import scipy.sparse

    if not parts:
        return scipy.sparse.csr_array((0, n_columns), dtype=np.float32)
    return parts[0] if len(parts) == 1 else scipy.sparse.csr_array(scipy.sparse.vstack(parts, format="csr"))


def sparse_of_files(files: str, **options: Any) -> Sparse:
    """`sparse` over Parquet files by a path or pattern, as `set/data/activations/*.parquet`.

    Rows and columns are those of the set's prompts and saes, which stand beside its activations; where the files are not all of
    the set's, columns are those of the SAEs that fire in them. A set without one of these tables is read as far as the
    activations themselves show, with a warning that says so. Raises QueryError for a wrong parameter, also if bos is false and
    there are no tokens; UserError for another library, and for files that are not there or hold no activations.
    """
    import duckdb

    options = plain(options)
    form = "give Parquet files of activations, as SET/data/activations/*.parquet"
    if not files:
        raise UserError(f"the files have no name: {form}")
    with duckdb.connect() as con:
        try:
            exactly = paths([files]) if Path(files).exists() else literal(files)
            _show_set(con, exactly, needs_bos=options.get("bos") in (False, "false"))
            return sparse(con, **options)
        except UserError:
            raise
        except (duckdb.Error, OSError, ValueError) as error:
            raise UserError(f"{files} cannot be read ({one_line(error)}): {form}") from error


def _show_set(con: "duckdb.DuckDBPyConnection", files: str, needs_bos: bool) -> None:
    """Makes views of the activations in some files (SQL), and of the tables that stand beside those that are really read.

    Raises ValueError for a file that holds none.
    """
    con.execute(f"create view activations as select * from {parquet(files)}")
    schemas = f"select file_name, bool_or(name = 'activation') from parquet_schema({files}) group by all order by all"
    read = con.execute(schemas).fetchall()
    if other := next((name for name, holds_them in read if not holds_them), None):
        raise ValueError(f"{other} holds no activations")
    folders = sorted({Path(name).absolute().parent for name, _ in read if "://" not in name})
    for name, columns in BESIDE.items():
        by_folder = [sorted((folder.parent / name).glob("*.parquet")) for folder in folders]
        if any(by_folder) and not all(by_folder):
            raise UserError(f"some of these sets have the table {name} and some have not: read them one by one")
        if any(by_folder):  # each row once: every run of activations has one of its SAE
            select = f"select distinct {columns} from {parquet(paths(chain.from_iterable(by_folder)))}"
        elif name == "tokens" and needs_bos:
            raise QueryError("which tokens are BOS stands in the table tokens, which is not beside these files: leave bos true")
        else:
            select = INSTEAD[name]
            if name in MEANING:
                warnings.warn(f"the table {name} is not beside these files: {MEANING[name]}", stacklevel=4)
        con.execute(f"create view {name} as {select}")
    if len(read) < sum(len(list(folder.glob("*.parquet"))) for folder in folders):
        con.execute("create temp view saes as select * from memory.main.saes semi join activations using (sae_id)")


def to_torch(matrix: Any) -> Any:
    """A SciPy CSR array as a torch tensor in CSR layout, in the same memory."""
    from importlib import import_module

    from saelake.extras import require

    require("compute", 'library="torch"', "torch")
    torch = import_module("torch")  # asked for by name: questions themselves never need it
    parts = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices))  # the same memory, as are the values
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")  # what torch says of every such tensor
        return torch.sparse_csr_tensor(*parts, torch.from_numpy(matrix.data), size=matrix.shape)
