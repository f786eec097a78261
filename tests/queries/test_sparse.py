"""Sparse matrices mean by BOS what every question means by it: the tokens of that role, not the first ones."""

from pathlib import Path

import pytest

from saelake.queries import QueryError
from saelake.queries.sparse import sparse, sparse_of_files
from saelake.warehouse.catalog import connect
from saelake.warehouse.sharing.share import Choice, share
from tests.lakes import build_lake


def test_bos_is_a_role(tmp_path: Path) -> None:
    lake = build_lake(tmp_path / "lake")
    with connect(lake) as con:
        n_all, n_without = (sparse(con, rows="token", bos=bos).matrix.nnz for bos in (True, False))
        assert n_all - n_without == 7, "feature 0 on six BOS tokens, and one more on prompt 0's"
        con.execute("create temp view tokens as select * replace ('template' as role) from memory.main.tokens")
        assert sparse(con, rows="token", bos=False).matrix.nnz == n_all, "without a BOS token none is left out"
    share(lake, tmp_path / "set")
    share(lake, tmp_path / "part", Choice(tables=("activations",)))
    files = "data/activations/*.parquet"
    assert sparse_of_files(str(tmp_path / "set" / files), rows="token", bos=False).matrix.nnz == n_without
    assert sparse_of_files(str(tmp_path / "part" / files), rows="token").matrix.nnz == n_all
    with pytest.raises(QueryError, match="not beside these files"):
        sparse_of_files(str(tmp_path / "part" / files), bos=False)
