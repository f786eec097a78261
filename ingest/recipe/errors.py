"""Turns what pydantic reports about a recipe into one sentence that names the field and the fix."""

import difflib
from collections.abc import Iterable
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo

OF_EITHER_KIND = {"label", "category", "split", "system"}
"""Fields of [[prompts]] that are a text or a table: pydantic names the kind behind the field."""
ADDED = {"str", "int", "float", "bool", "[key]"}
"""What pydantic adds to a location for the members of a union, and for what is wrong with a name in a table."""
IN_TOML = {
    "model_type": "Input should be a table",
    "dict_type": "Input should be a table",
    "tuple_type": "Input should be a list",
    "too_short": "the list should not be empty",
    "too_long": "the list is too long",
}
"""Type of a mistake -> what it is called where people write TOML. No list of any length asks for more than one item."""


def sentence(error: ValidationError, root: type[BaseModel]) -> str:
    """The first mistake, in words: `model.dtype: Input should be 'float32' or 'bfloat16', not 'float64'`"""
    mistakes = error.errors(include_url=False)
    # A misspelt field is often reported as a missing one too: the misspelling is the cause.
    first = next((one for one in mistakes if one["type"] == "extra_forbidden"), mistakes[0])
    location, given = first["loc"], first["input"]
    field = _field(root, location)
    if first["type"] == "extra_forbidden":
        known = _names_at(root, location[:-1])
        if twice := next((names for names in known if location[-1] in names), None):
            return f"{_before(root, location)}{' and '.join(twice)} are two names of one field: give one"
        every = [name for names in known for name in names]
        hint = nearest(str(location[-1]), every) or f": the fields there are {', '.join(every)}"
        return f"there is no field {field}{hint}"
    if first["type"] == "missing":
        return (
            f"{_before(root, location)}the list is too short"
            if isinstance(location[-1], int)
            else f"the field {field} is missing"
        )
    message = IN_TOML.get(first["type"], first["msg"].removeprefix("Value error, "))
    if first["type"] == "tuple_type" and _is_of_tables(root, location):
        message = "Input should be a list of tables" if "[" in field else f"write each set as [[{field}]]"
    if first["type"] == "model_type" and location[:1] == ("prompts",) and set(location[2:3]) & OF_EITHER_KIND:
        message = "Input should be a text or a table"
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool) and "should" in message else ""
    return f"{field + ': ' if field else ''}{message.rstrip('.')}{shown}"


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _before(root: type[BaseModel], location: tuple[int | str, ...]) -> str:
    table = _field(root, location[:-1])
    return f"{table}: " if table else ""


def _field(root: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """`prompts[1].label.column` from pydantic's location, without the names that it adds for keys and the members of a union."""
    if location[:1] == ("prompts",) and location[2:3] and location[2] in OF_EITHER_KIND:
        location = location[:3] + tuple(part for part in location[4:] if part != "shares")
    if location[:1] == ("more_saes",) and len(location) > 1 and isinstance(location[1], int):
        location = ("saes", location[1] + 1, *location[2:])  # as the file has it
    shown, annotation = "", root
    for part in location:
        is_added = str(part) in ADDED or str(part).startswith(("tuple[", "constrained-", "function-"))
        if isinstance(part, int):
            shown += f"[{part}]"
        elif not is_added or _values_of(annotation) is not None:  # a key of the user's own
            shown += f".{part}" if shown else part
        annotation = _at(annotation, part)
    return shown


def _at(annotation: Any, part: int | str) -> Any:
    """The annotation of a part of what is annotated so; the same for what pydantic adds to a location."""
    if isinstance(part, int):
        return next((get_args(one)[0] for one in _members(annotation) if get_origin(one) in (list, tuple)), annotation)
    for model in (one for one in _members(annotation) if isinstance(one, type) and issubclass(one, BaseModel)):
        if part in model.model_fields:
            return model.model_fields[part].annotation
    values = _values_of(annotation)
    return annotation if values is None else values


def _values_of(annotation: Any) -> Any:
    """What the values of a table of the user's own keys are annotated as; None for anything else."""
    return next((get_args(one)[1] for one in _members(annotation) if get_origin(one) is dict), None)


def _members(annotation: Any) -> list[Any]:
    """The types of a union, or the one that there is, without what is said of them beside."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [one for member in get_args(annotation) for one in _members(member)]
    return [annotation]


def _names_at(root: type[BaseModel], location: tuple[int | str, ...]) -> list[list[str]]:
    """The fields of the table at a location, each with all names that a file may call it; there `more_saes` are [[saes]] too."""
    fields = _model_at(root, location).model_fields
    return [_names(name, field) for name, field in fields.items() if name != "more_saes"]


def _names(name: str, field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [alias if isinstance(alias, str) else name]


def _is_of_tables(root: type[BaseModel], location: tuple[int | str, ...]) -> bool:
    """Whether what stands at a location is a field whose values are tables."""
    field = _model_at(root, location[:-1]).model_fields.get(str(location[-1]))
    return field is not None and bool(_models_in(field.annotation))


def _model_at(root: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The table at a location, found by walking the models' annotations."""
    model = root
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = next(iter(_models_in(model.model_fields[part].annotation)), model)
    return model


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
