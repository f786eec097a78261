"""Parameters of a query: how a head comment declares them, which values they take, and how a value is written as SQL.

    -- $k integer = 10: features a layer
    -- $layer integer? = null: only this layer; all layers if null
    -- $order difference|rate = difference: what comes first
    -- $features features: which features

A declaration is a name, a type, a default (none makes the parameter required) and a meaning, which may go on in indented
lines. `?` lets the value be null. Values are written as typed literals and never as SQL, so a value cannot become a statement;
and since the statement is complete, the planner sees every value, and people can paste it into a DuckDB shell.
"""

import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from saelake.warehouse.literals import literal, literals

DECLARATION = re.compile(
    r"\$(?P<name>[a-z]\w*) (?P<type>[a-z0-9_|]+)(?P<nullable>\?)?(?: = (?P<default>[^:]+))?: (?P<meaning>.+)"
)
TYPES = {"integer": "bigint", "number": "double", "text": "varchar", "boolean": "boolean", "integers": "bigint[]"}
CHOSEN = {
    "condition": ("condition", "ablations"),
    "prompt_set": ('"set"', "prompts"),
    "label": ("label", "prompts"),
    "split": ("split", "prompts"),
    "category": ("category", "prompts"),
    "method": ("method", "critical_features"),
    "model": ("model", "fm_embeddings"),
    "sae": ("sae_id", "saes"),
    "run": ("run_id", "all_runs.runs"),
    "stage": ("stage", "all_runs.runs"),
    "recipe": ("recipe", "all_runs.runs"),
}
"""Types whose values are names that a lake holds, and the column and table that hold them (see choices.py)."""
LISTS = {"conditions": "condition", "prompt_sets": "prompt_set"}
"""Types that are lists of such names, as texts or as one text with commas between them."""
INT64 = range(-(2**63), 2**63)


class QueryError(ValueError):
    """A question that cannot be asked so: what is wrong and how to mend it, in one sentence."""


@dataclass(frozen=True)
class Parameter:
    """One declared parameter of a query."""

    name: str
    type: str
    """integer, number, text, boolean, integers, features, judge, of CHOSEN or LISTS, or the words to choose from: own|chosen"""
    nullable: bool
    default: str | None
    """As declared; None makes the parameter required."""
    meaning: str

    @property
    def required(self) -> bool:
        return self.default is None

    @property
    def declaration(self) -> str:
        default = "" if self.default is None else f" = {self.default}"
        return f"{self.name} {self.type}{'?' if self.nullable else ''}{default}"

    def literal(self, value: Any) -> str:
        """`value`, a Python value or the text of one, as a SQL literal of the declared type; raises QueryError."""
        sql_type = TYPES.get(self.type, "varchar[]" if self.type in LISTS else "varchar")
        if value is None or (self.nullable and value == "null"):
            if not self.nullable:
                raise QueryError(f"{self.name} cannot be null: give {_article(self.type)}")
            return f"null::{sql_type}"
        if self.type in ("integer", "number"):
            # Parentheses: the minus of -1::bigint would bind after the cast.
            return f"({_number(self, value)!r})::{sql_type}"
        if self.type == "integers":
            return f"[{', '.join(map(str, _integers(self, value)))}]::{sql_type}"
        if self.type in LISTS:
            return literals(listed(self, value))
        if self.type == "boolean":
            return str(_boolean(self, value)).lower()
        if not isinstance(value, str) or "\0" in value:
            raise self.mistyped(value)
        if "|" in self.type and value not in self.type.split("|"):
            raise self.mistyped(value)
        return literal(value)

    def mistyped(self, value: object) -> QueryError:
        return QueryError(f"{self.name} is {_article(self.type)}, not {_shown(value)}")


def parameter(comment: str) -> Parameter | None:
    """The parameter that a comment line declares, if it does."""
    found = DECLARATION.fullmatch(comment)
    if not found:
        return None
    default = found["default"].strip() if found["default"] else None
    return Parameter(found["name"], found["type"], bool(found["nullable"]), default, found["meaning"])


def _number(declared: Parameter, value: Any) -> int | float:
    if isinstance(value, bool):
        raise declared.mistyped(value)
    number: int | float
    try:
        if declared.type == "integer":
            number = int(value) if isinstance(value, str) else operator.index(value)
            fits = number in INT64
        else:
            number = float(value)
            fits = math.isfinite(number)
    except (TypeError, ValueError, OverflowError):
        raise declared.mistyped(value) from None
    if not fits:
        raise declared.mistyped(value)
    return number


def _integers(declared: Parameter, value: Any) -> list[int]:
    if isinstance(value, str):
        value = value.split(",") if value.strip() else []
    if not isinstance(value, Iterable):
        value = [value]
    one = Parameter(declared.name, "integer", False, None, "")
    try:
        return [int(_number(one, item)) for item in value]
    except QueryError:
        raise declared.mistyped(value) from None


def listed(declared: Parameter, value: Any) -> list[str]:
    """The names of a list, given as such or as text, where spaces around commas mean nothing."""
    if not isinstance(value, Iterable):
        raise declared.mistyped(value)
    parts = value.split(",") if isinstance(value, str) else list(value)
    if not all(isinstance(part, str) and "\0" not in part for part in parts):
        raise declared.mistyped(value)
    return [part.strip() for part in parts if part.strip()]


def _boolean(declared: Parameter, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise declared.mistyped(value)


def _article(kind: str) -> str:
    words = {
        "integer": "an integer",
        "number": "a number",
        "text": "text",
        "judge": "the name of a judge, or oracle for the recipe's own",
        "conditions": "a list of conditions, such as none,random",
        "prompt_sets": "a list of prompt sets, such as a,b",
        "boolean": "true or false",
        "integers": "a list of integers, such as 0,1",
        "features": "a list of features: layer:feature_id,... or the name of a table, or a select, with layer and feature_id",
    }
    words |= {name: f"the name of a {name.replace('_', ' ')}" for name in CHOSEN}
    return words.get(kind) or "one of " + ", ".join(kind.split("|"))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
