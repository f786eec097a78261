"""Whose verdicts a question shows: the recipe's oracle, unless another judge of the lake is named."""

from typing import TYPE_CHECKING, Any

from saelake.queries.parameters import Parameter, QueryError

if TYPE_CHECKING:
    import duckdb

ORACLE = "oracle"
"""What a question's default calls the judge that the searches of the study asked."""


def oracle(con: "duckdb.DuckDBPyConnection") -> str | None:
    """The judge whose verdicts were stored with the answers of the study; None before its analysis."""
    # These stages alone: an oracle that the recipe had earlier may stand in runs of chosen features.
    found = con.execute(
        "select config->'verdicts'->>'name' from runs where stage in ('baseline', 'candidates') order by finished desc limit 1"
    ).fetchall()
    return found[0][0] if found else None


def resolve(con: "duckdb.DuckDBPyConnection", declared: Parameter, value: Any) -> Any:
    """The judge that `value` names; raises QueryError for one that has read none of the answers that there are."""
    if value == ORACLE:
        return oracle(con) or value
    if not isinstance(value, str) or (declared.nullable and value == "null"):
        return value
    known = [name for (name,) in con.execute("select distinct judge from verdicts order by judge").fetchall()]
    if known and value not in known:
        raise QueryError(f"{declared.name}: {value!r} has judged no answer here; there are verdicts of {', '.join(known)}")
    return value
