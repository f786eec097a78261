"""Parameters that name something of a lake: a condition, prompt sets, a layer. A name that is not there is a mistake."""

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saelake.queries.parameters import CHOSEN, LISTS, NUMBERS, PATTERNS, Parameter, QueryError, integers, listed
from saelake.warehouse.arguments import shown

if TYPE_CHECKING:
    import duckdb

MOST_SHOWN = 30
"""Names that a sentence lists."""


def check_choices(con: "duckdb.DuckDBPyConnection", parameters: Mapping[str, Parameter], values: Mapping[str, Any]) -> None:
    """Raises QueryError for a value that names nothing in the lake; where there is nothing at all to name, it may be anything."""
    for name, value in values.items():
        declared = parameters.get(name)
        if declared is None or value is None or (declared.nullable and value == "null"):
            continue
        kind = LISTS.get(declared.type, declared.type)
        if kind == "feature":
            _check_feature(con, parameters, declared, values)
        elif kind in CHOSEN:
            known = _known(con, *CHOSEN[kind])
            for one in _named(declared, value):
                if known and one not in known:
                    raise QueryError(f"{name}: the lake has no {kind.replace('_', ' ')} {shown(one)}{_choices(str(one), known)}")
        elif kind in PATTERNS:
            column, table = PATTERNS[kind]
            known = _known(con, column, table)
            if known and not _known(con, f"{column} as name", f"{table} where name like {declared.literal(value)}"):
                raise QueryError(f"{name}: the lake has no condition like {shown(value)}{_choices(str(value), known)}")


def _check_feature(
    con: "duckdb.DuckDBPyConnection", parameters: Mapping[str, Parameter], declared: Parameter, values: Mapping[str, Any]
) -> None:
    """Raises QueryError for a number that is not a feature of the SAEs of the layer, or of the SAE, that is asked for with it."""
    given = {
        name: parameters[name].literal(values[name]) for name in ("layer", "sae_id") if name in values and name in parameters
    }
    where = " and ".join(f"coalesce({name} = {value}, {value} is null)" for name, value in given.items()) or "true"
    widths = _known(con, "width", f"saes where {where}")
    declared.literal(values[declared.name])  # which names it as it was given, where it is none
    (number,) = integers(declared, [values[declared.name]])
    if widths and not 0 <= number < max(widths):
        of = "".join(f" of {name} {values[name]}" for name in given)
        raise QueryError(f"{declared.name}: there is no feature {number}{of}: its features are 0 to {max(widths) - 1}")


def _named(declared: Parameter, value: Any) -> list[Any]:
    """The names in a value, which may be a list of them, and text: integers where names are."""
    if declared.type in NUMBERS:
        return integers(declared, value)
    if declared.type in LISTS:
        return listed(declared, value)
    declared.literal(value)
    return [value]


def _known(con: "duckdb.DuckDBPyConnection", column: str, table: str) -> list[Any]:
    import duckdb

    try:
        found = con.execute(f"select distinct {column} from {table} order by all").fetchall()
    except duckdb.BinderException:  # the statement above is wrong
        raise
    except duckdb.Error:  # damaged or left out of a shared set: a question that reads the table says so
        return []
    return [one for (one,) in found if one not in (None, "")]


def _choices(given: str, known: list[Any]) -> str:
    close = difflib.get_close_matches(given, [one for one in known if isinstance(one, str)], n=1, cutoff=0.8)
    near = f": did you mean {close[0]}?" if close else ""
    more = f" and {len(known) - MOST_SHOWN} more" if len(known) > MOST_SHOWN else ""
    return f"{near or ':'} it has {', '.join(map(str, known[:MOST_SHOWN]))}{more}"
