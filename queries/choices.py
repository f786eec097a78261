"""Parameters that name something of a lake: a condition, prompt sets, a label. A name that is not there is a mistake."""

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saelake.queries.parameters import CHOSEN, LISTS, Parameter, QueryError, listed

if TYPE_CHECKING:
    import duckdb

MOST_SHOWN = 30
"""Names that a sentence lists."""


def check_choices(con: "duckdb.DuckDBPyConnection", parameters: Mapping[str, Parameter], values: Mapping[str, Any]) -> None:
    """Raises QueryError for a value that names nothing in the lake; where there is nothing at all to name, it may be anything."""
    for name, value in values.items():
        declared = parameters.get(name)
        kind = LISTS.get(declared.type, declared.type) if declared else ""
        if declared is None or kind not in CHOSEN or value is None or (declared.nullable and value == "null"):
            continue
        column, table = CHOSEN[kind]
        found = con.execute(f"select distinct {column} from {table} where {column} is not null order by all").fetchall()
        known = [str(one) for (one,) in found]
        for one in listed(declared, value) if declared.type in LISTS else [value]:
            if known and one not in known:
                raise QueryError(f"{name}: the lake has no {kind.replace('_', ' ')} {one!r}{_choices(str(one), known)}")


def _choices(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.8)
    near = f": did you mean {close[0]}?" if close else ""
    more = f" and {len(known) - MOST_SHOWN} more" if len(known) > MOST_SHOWN else ""
    return f"{near or ':'} it has {', '.join(known[:MOST_SHOWN])}{more}"
