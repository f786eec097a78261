"""Turns what pydantic reports about a recipe into one sentence that names the field and the fix."""

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def sentence(error: ValidationError, root: type[BaseModel]) -> str:
    """The first mistake, in words: `model.dtype: Input should be 'float32' or 'bfloat16', not 'float64'`"""
    mistakes = error.errors(include_url=False)
    # A misspelt field is often reported as a missing one too: the misspelling is the cause.
    first = next((one for one in mistakes if one["type"] == "extra_forbidden"), mistakes[0])
    location = first["loc"]
    field = _field(location)
    if first["type"] == "extra_forbidden":
        known = _fields_at(root, location[:-1])
        hint = nearest(str(location[-1]), known) or f": the fields there are {', '.join(known)}"
        return f"there is no field {field}{hint}"
    if first["type"] == "missing":
        return f"the field {field} is missing"
    message = "Input should be a table" if first["type"] == "model_type" else first["msg"].removeprefix("Value error, ")
    given = first["input"]
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool) and "should" in message else ""
    return f"{field + ': ' if field else ''}{message.rstrip('.')}{shown}"


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _field(location: tuple[int | str, ...]) -> str:
    """`prompts[1].label.column` from pydantic's location, without the names that it adds for the members of a union."""
    if location[:1] == ("prompts",) and location[2:3] and location[2] in {"label", "category", "split"}:
        location = location[:3] + tuple(part for part in location[4:] if part != "shares")
    if location[:1] == ("more_saes",) and len(location) > 1 and isinstance(location[1], int):
        location = ("saes", location[1] + 1, *location[2:])  # as the file has it
    shown = ""
    for part in location:
        if isinstance(part, int):
            shown += f"[{part}]"
        elif part not in {"str", "int", "float", "bool"} and not part.startswith(("tuple[", "constrained-", "function-")):
            shown += f".{part}" if shown else part
    return shown


def _fields_at(root: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The fields of the table at a location, found by walking the models' annotations."""
    model = root
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = next(iter(_models_in(model.model_fields[part].annotation)), model)
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
