"""Loads the questions beside this file and in stages/ and pages/, and asks them; loads the statements of steps/."""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelake.queries import choices, judges
from saelake.queries.parameters import Parameter, QueryError, parameter

if TYPE_CHECKING:  # documentation is printed without DuckDB
    import duckdb

FOLDER = Path(__file__).parent
STAGES = FOLDER / "stages"
"""Questions that stages and commands ask: anyone may, but they are not listed."""
PAGES = FOLDER / "pages"
"""Questions that pages ask, of the explorer and of shared sets: not listed either."""
STEPS = FOLDER / "steps"
"""Statements that are not questions: each belongs to one module, or to several statements."""
RENAMED = {
    "layer_diagnostic": "direction_by_layer",
    "methods": "search_methods",
    "redundant": "self_repair",
    "stability": "set_overlap",
}
"""Former name -> name of a question."""
PLACEHOLDER = re.compile(r"\$([a-z]\w*)(?:\((\w+(?:\|\w+)?)\))?")
INCLUDED = re.compile(r"\$step\((\w+)\)")
"""Where a statement takes one of steps/ for a table: what several ask alike stands there once."""
FIRST_SENTENCE = re.compile(r".+?[.?](?= |$)")
WHOLE_LAKE = "Over the whole lake:"
"""How the documentation of a question about all studies of a lake begins; all others are about one study."""


@dataclass(frozen=True)
class Query:
    """One question: its documentation, its parameters by declaration, and its statement with `$name` for their values."""

    name: str
    doc: str
    parameters: tuple[Parameter, ...]
    sql: str

    @property
    def summary(self) -> str:
        """The first sentence of the documentation."""
        text = " ".join(self.doc.removeprefix(WHOLE_LAKE).split("\n\n")[0].split())
        found = FIRST_SENTENCE.match(text)
        return text[:1].upper() + (found[0] if found else text)[1:]

    @property
    def of_one_study(self) -> bool:
        return not self.doc.startswith(WHOLE_LAKE)

    @property
    def help(self) -> str:
        """Name, documentation and parameters, as plain text."""
        declared = [f"  {p.declaration}\n      {p.meaning}" for p in self.parameters]
        return "\n".join([self.name, "", self.doc, *(["", "Parameters:", *declared] if declared else [])])

    def statement(self, con: "duckdb.DuckDBPyConnection", values: Mapping[str, Any], *, by_layer: bool = True) -> str:
        """The statement with all values written in; raises QueryError for a missing, unknown or ill-typed one.

        Args:
            by_layer: look up lists of features only in the files of their layers, by the catalog's macros, which only DuckDB has.
        """
        known = {p.name: p for p in self.parameters}
        for name in values:
            if name not in known:
                hint = _nearest(name, known) or f": its parameters are {', '.join(known) or 'none'}"
                raise QueryError(f"the query {self.name} has no parameter {name}{hint}")
        given = {p.name: values.get(p.name, p.default) for p in self.parameters}
        for name, value in given.items():
            if value is None and name not in values:
                raise QueryError(f"the query {self.name} needs {name}: {known[name].meaning}")
        written = {name: _written(con, known[name], value, by_layer) for name, value in given.items()}
        # One pass: what a value holds is not looked at again.
        return PLACEHOLDER.sub(lambda found: written[found[1]](found[2]), self.sql)


def _written(con: "duckdb.DuckDBPyConnection", declared: Parameter, value: Any, by_layer: bool) -> Callable[[str | None], str]:
    """Writes a parameter into the statement: a literal for `$name`, a list of features as rows for `$name(table)`.

    `$name(one|other)` is the first table if a boolean is true, else the second: the other is not read at all. What a judge's
    `$name(...)` stands for is said in `judges.written`.
    """
    if declared.type == "features":
        from saelake.queries.features import resolve, subquery

        features = resolve(con, declared, value)
        return lambda table: subquery(con, str(table), features, by_layer=by_layer)
    if declared.type == "judge":
        return judges.written(con, declared, value)
    literal = declared.literal(value)
    return lambda tables: tables.split("|")[literal == "false"] if tables else literal


def names() -> list[str]:
    """The names of the listed questions."""
    return sorted(file.stem for file in FOLDER.glob("*.sql"))


def names_of_stages() -> list[str]:
    """The names of the questions in stages/."""
    return sorted(file.stem for file in STAGES.glob("*.sql"))


def names_of_pages() -> list[str]:
    """The names of the questions in pages/."""
    return sorted(file.stem for file in PAGES.glob("*.sql"))


@cache
def step(name: str) -> str:
    """A statement of steps/, which one module executes with prepared parameters of its own, or others take for a table."""
    lines = (STEPS / f"{name}.sql").read_text(encoding="utf-8").splitlines()
    return _with_steps("\n".join(line for line in lines if not line.startswith("--")))


def _with_steps(sql: str) -> str:
    return INCLUDED.sub(lambda found: f"(\n{step(found[1])}\n)", sql)


@cache
def load(name: str) -> Query:
    """One question, listed or not; raises QueryError for an unknown name."""
    name = RENAMED.get(name, name)
    for folder, known in ((FOLDER, names()), (STAGES, names_of_stages()), (PAGES, names_of_pages())):
        if name in known:
            return _parse(name, (folder / f"{name}.sql").read_text(encoding="utf-8"))
    raise QueryError(f"there is no query {name}{_nearest(name, names()) or ': `saelake queries` lists them'}")


def run(con: "duckdb.DuckDBPyConnection", name: str, **parameters: Any) -> "duckdb.DuckDBPyRelation":
    """Asks a question on a connection that shows a lake's tables; parameters as Python values or as text; raises QueryError."""
    return con.sql(load(name).statement(con, parameters))


def check_choices(con: "duckdb.DuckDBPyConnection", name: str, values: Mapping[str, Any]) -> None:
    """Raises QueryError for a parameter that names what the lake does not have, and says what it has."""
    choices.check_choices(con, {p.name: p for p in load(name).parameters}, values)


def _parse(name: str, text: str) -> Query:
    """A question from its file: comment lines at the head are documentation and declarations, the rest is the statement."""
    lines = text.splitlines()
    n_head = next(i for i, line in enumerate(lines) if not line.startswith("--"))
    doc: list[str] = []
    declarations: list[str] = []
    for line in lines[:n_head]:
        comment = line.removeprefix("--").removeprefix(" ")
        if comment.startswith("$"):
            declarations.append(comment)
        elif declarations and comment.startswith("  "):
            declarations[-1] += " " + comment.strip()
        else:
            doc.append(comment)
    parameters = [parameter(declaration) for declaration in declarations]
    assert all(parameters), f"{name}.sql: not a declaration: {declarations[parameters.index(None)]}"
    return Query(name, "\n".join(doc).strip(), tuple(p for p in parameters if p), _with_steps("\n".join(lines[n_head:]).strip()))


def _nearest(name: str, known: Mapping[str, object] | list[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ""
