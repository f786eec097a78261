"""Whose verdicts a question shows: the recipe's oracle, unless another judge of the lake is named."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from saelake.queries.parameters import Parameter, QueryError
from saelake.warehouse.literals import literal

if TYPE_CHECKING:
    import duckdb

ORACLE = "oracle"
"""What a question's default calls the judge that the searches of the study asked."""
CONTROL = "control"


def oracle(con: "duckdb.DuckDBPyConnection") -> str | None:
    """The judge whose verdicts were stored with the answers of the study; None before its analysis."""
    return _judges(con)[0]


def control(con: "duckdb.DuckDBPyConnection") -> str | None:
    """The judge whose verdicts count on all but target prompts, beside the oracle's on these; most often the oracle itself."""
    target, others = _judges(con)
    return others or target


STUDYS = {ORACLE: oracle, CONTROL: control}
"""The two judges of a study."""


def _judges(con: "duckdb.DuckDBPyConnection") -> tuple[str | None, str | None]:
    # These stages alone: an oracle that the recipe had earlier may stand in runs of chosen features.
    found = con.execute(
        "select config->'verdicts'->>'name', config->'verdicts'->'control'->>'name' "
        "from runs where stage in ('baseline', 'candidates') order by finished desc limit 1"
    ).fetchall()
    return found[0] if found else (None, None)


def written(con: "duckdb.DuckDBPyConnection", declared: Parameter, value: Any) -> Callable[[str | None], str]:
    """Writes a judge into a statement: `$judge` as asked for, `$judge(oracle)` and `$judge(control)` the study's two.

    `$judge(p)` is the one that counts on a prompt, a row p of `prompts`: beside the oracle on target prompts the control's on all
    others. Joined with another judge's rows it is `if(judge = $judge(oracle), $judge(control), judge)`.
    """
    asked = declared.literal(resolve(con, declared, value))

    def write(which: str | None) -> str:
        if which is None:
            return asked
        if which in STUDYS:
            name = STUDYS[which](con)
            return "null::varchar" if name is None else literal(name)
        return f"if({which}.label_role <> 'target' and {asked} = {write(ORACLE)}, {write(CONTROL)}, {asked})"

    return write


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
