"""Parameters of a query: how a head comment declares them, which values they take, and how a value is written as SQL.

    -- $k integer = 10: features per SAE
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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from saelake.warehouse.arguments import shown
from saelake.warehouse.errors import UserError
from saelake.warehouse.literals import is_unicode, literal, literals

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
    "layer": ("layer", "saes"),
    "prompt": ("prompt_id", "prompts"),
    "measure": ("measure", "comparisons"),
    "compared_label": ("label", "comparisons"),
    "annotation_study": ("study", "annotations"),
    "run": ("run_id", "all_runs.runs"),
    "stage": ("stage", "all_runs.runs"),
    "recipe": ("recipe", "all_runs.runs"),
}
"""Types whose values are names that a lake holds, and the column and table that hold them (see choices.py)."""
LISTS = {"conditions": "condition", "prompt_sets": "prompt_set", "layers": "layer", "prompts": "prompt"}
"""Types that are lists of such names, as texts or as one text with commas between them."""
PATTERNS = {
    "conditions_like": ("condition", "ablations"),
    "compared_like": ("name", "(select unnest([a, b]) as name from comparisons)"),
}
"""Types that are patterns of `like`, and the names of which at least one must fit."""
NUMBERS = {"feature": "integer", "layer": "integer", "prompt": "integer", "layers": "integers", "prompts": "integers"}
"""Types that name something by a whole number, or list such names; the number of a feature is below its SAE's width."""
INT64 = range(-(2**63), 2**63)


class QueryError(UserError):
    """A question that cannot be asked so: what is wrong and how to fix it, in one sentence."""


@dataclass(frozen=True)
class Parameter:
    """One declared parameter of a query."""

    name: str
    type: str
    """integer (from 0 up: how many, or which), number, text, boolean, integers, feature, features, judge, of CHOSEN, LISTS or
    PATTERNS, or words: own|chosen"""
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
        kind = NUMBERS.get(self.type, self.type)
        sql_type = TYPES.get(kind, "varchar[]" if kind in LISTS else "varchar")
        if value is None or (self.nullable and isinstance(value, str) and value == "null"):
            if not self.nullable:
                raise QueryError(f"{self.name} cannot be null: give {_article(self.type)}")
            return f"null::{sql_type}"
        if kind in ("integer", "number"):
            # Parentheses: the minus of -1::bigint would bind after the cast.
            return f"({_number(self, kind, value)!r})::{sql_type}"
        if kind == "integers":
            return f"[{', '.join(map(str, integers(self, value)))}]::{sql_type}"
        if kind in LISTS:
            return literals(listed(self, value))
        if self.type == "boolean":
            return str(_boolean(self, value)).lower()
        if not is_unicode(value) or "\0" in value:
            raise self.mistyped(value)
        if "|" in self.type and value not in self.type.split("|"):
            raise self.mistyped(value)
        return literal(value)

    def mistyped(self, value: object) -> QueryError:
        return QueryError(f"{self.name} is {_article(self.type)}, not {shown(value)}")


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with lists in the place of arrays, columns and iterators, which do not compare as lists, or are read once only."""
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    for method in ("tolist", "to_list"):  # NumPy's and PyTorch's; pandas' and Polars'
        if callable(as_list := getattr(value, method, None)) and not isinstance(value, type):
            return as_list()
    return list(value) if isinstance(value, Iterator) else value


def parameter(comment: str) -> Parameter | None:
    """The parameter that a comment line declares, if it does."""
    found = DECLARATION.fullmatch(comment)
    if not found:
        return None
    default = found["default"].strip() if found["default"] else None
    return Parameter(found["name"], found["type"], bool(found["nullable"]), default, found["meaning"])


def _number(declared: Parameter, kind: str, value: Any) -> int | float:
    if isinstance(value, bool):
        raise declared.mistyped(value)
    number: int | float
    try:
        if kind == "integer":
            number = int(value) if isinstance(value, str) else operator.index(value)
            fits = number in INT64 and (number >= 0 or declared.type != "integer")
        else:
            number = float(value)
            fits = math.isfinite(number)
    except (TypeError, ValueError, OverflowError):
        raise declared.mistyped(value) from None
    if not fits:
        raise declared.mistyped(value)
    return number


def integers(declared: Parameter, value: Any) -> list[int]:
    """The integers of a list, given as such, as text, or as a single one."""
    parts = value
    if isinstance(value, str):
        parts = value.split(",") if value.strip() else []
    elif not isinstance(value, Iterable):
        parts = [value]
    try:
        return [int(_number(declared, "integer", part)) for part in parts]
    except QueryError:
        raise declared.mistyped(value) from None


def listed(declared: Parameter, value: Any) -> list[str]:
    """The names of a list, given as such or as text, where spaces around commas mean nothing."""
    if not isinstance(value, Iterable):
        raise declared.mistyped(value)
    parts = value.split(",") if isinstance(value, str) else list(value)
    if not all(is_unicode(part) and "\0" not in part for part in parts):
        raise declared.mistyped(value)
    return [part.strip() for part in parts if part.strip()]


def _boolean(declared: Parameter, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in ("true", "false"):
        return value == "true"
    raise declared.mistyped(value)


def _article(kind: str) -> str:
    words = {
        "integer": "a whole number from 0 up",
        "number": "a number",
        "text": "text",
        "judge": "the name of a judge, or oracle for the recipe's own",
        "conditions": "a list of conditions, such as none,random",
        "prompt_sets": "a list of prompt sets, such as a,b",
        "feature": "the number of a feature",
        "layer": "the number of a layer",
        "layers": "a list of layers, such as 0,1",
        "prompt": "the prompt_id of a prompt",
        "prompts": "a list of prompt_ids",
        "boolean": "true or false",
        "integers": "a list of integers, such as 0,1",
        "features": "a list of features: layer:feature_id,... or the name of a table, or a select, with layer and feature_id",
    }
    words |= dict.fromkeys(PATTERNS, "a pattern of `like`, such as top_k_%")
    words = {name: f"the name of a {name.replace('_', ' ')}" for name in CHOSEN} | words
    return words.get(kind) or "one of " + ", ".join(kind.split("|"))
