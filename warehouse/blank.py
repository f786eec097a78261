"""The views of a lake without runs, made once per process: copying these hundred takes a fifth of the time of binding them.

A lake has rows in few of its tables, so that most views of a connection or a catalog are these.
"""

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import duckdb

from saelake.warehouse.literals import literal
from saelake.warehouse.views import head, statements_without_runs

STORAGE_VERSION = "v1.2.0"
"""What a catalog is written as: every DuckDB from this one on opens it, whichever wrote it.

Its views say `case`, not `if`: DuckDB 2 saves that as a function, which DuckDB 1 does not have."""


class Blank(NamedTuple):
    """A database of views, as its file holds it, and how it was made."""

    content: bytes
    made: Mapping[str, str]
    """What is created in it -> the statement that did."""


@cache
def blank() -> Blank:
    """The views of a lake without runs."""
    statements = list(statements_without_runs())
    with tempfile.TemporaryDirectory(prefix="saelake-catalog-") as folder:
        file = Path(folder) / "blank.duckdb"
        with duckdb.connect(file, config={"storage_compatibility_version": STORAGE_VERSION}) as con:
            con.begin()
            for statement in statements:
                con.execute(statement)
            con.commit()
        return Blank(file.read_bytes(), {head(one): one for one in statements})


def copy_blank(con: duckdb.DuckDBPyConnection) -> Mapping[str, str]:
    """Makes these views on a connection to memory; gives what is created -> the statement that did."""
    with tempfile.TemporaryDirectory(prefix="saelake-catalog-") as folder:
        file = Path(folder) / "blank.duckdb"
        file.write_bytes(blank().content)
        con.execute(f"attach {literal(str(file))} as blank (read_only)")
        con.execute("copy from database blank to memory")
        con.execute("detach blank")
    return blank().made
