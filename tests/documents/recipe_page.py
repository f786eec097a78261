"""docs/recipe.md from ingest/recipe/: every section and field of a recipe. `make pages` writes it, a test keeps it in step."""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, get_args

from pydantic import BaseModel

from saelake.ingest.recipe.sections import Section
from saelake.ingest.recipe.study import Recipe
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "recipe.md"
HEAD = """# The recipe

Every section of a recipe, every field with its type, default and meaning. This page is made from
[ingest/recipe/](../ingest/recipe/) by `make pages`; where it differs, the code is right. The shipped recipes are examples:
[organism](../recipes/organism.toml), [gemma-2-2b](../recipes/gemma-2-2b.toml). Paths are relative to the recipe's folder.

"""
TOP = "Top level"
FURTHER = {"more_saes"}
"""Fields that no file names: [[saes]] behind the first go there."""


def page() -> str:
    """The whole page; tables of one kind share a section."""
    titles: dict[type[BaseModel], list[str]] = {}
    for title, model in _sections():
        titles.setdefault(model, []).append(title)
    return HEAD + "".join(_section(named, model) for model, named in titles.items())


def undocumented() -> list[str]:
    """The sections and fields that have no meaning yet, as Class or Class.field."""
    sections = {m.__name__ for _, m in _sections() if not m.__doc__ or m.__doc__ == Section.__doc__}
    fields = {f"{m.__name__}.{n}" for _, m in _sections() for n in m.model_fields if not _meanings(m).get(n)}
    return sorted(sections | fields - _headings())


def _headings() -> set[str]:
    """Fields that are sections of their own: their class says what they mean."""
    return {f"{m.__name__}.{n}" for _, m in _sections() for n, f in m.model_fields.items() if next(_models(f.annotation), None)}


def _sections() -> list[tuple[str, type[BaseModel]]]:
    """The top level, then every table of a recipe as TOML writes it, below it the tables in it."""
    found: list[tuple[str, type[BaseModel]]] = [(TOP, Recipe)]

    def visit(model: type[BaseModel], path: str) -> None:
        for name, field in _written(model):
            for inner in _models(field.annotation):
                is_list = "tuple[" in str(field.annotation)
                title = f"{path}{name}" + (".NAME" if "dict[" in str(field.annotation) else "")
                if any(title == known.strip("[]") and inner is other for known, other in found):
                    continue
                found.append((f"[[{title}]]" if is_list else f"[{title}]", inner))
                visit(inner, f"{title}.")

    visit(Recipe, "")
    return found


def _written(model: type[BaseModel]) -> list[tuple[str, Any]]:
    """The fields that a file can name: not those that further tables of a list go into."""
    return [(name, field) for name, field in model.model_fields.items() if name not in FURTHER]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif isinstance(annotation, UnionType) or get_args(annotation):
        seen: list[type[BaseModel]] = []
        for part in get_args(annotation):
            seen += [model for model in _models(part) if model not in seen]
        yield from seen


def _section(titles: list[str], model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    meanings = _meanings(model)
    rows = []
    for name, field in _written(model):
        one = schema["properties"].get(field.alias or name, {})
        given = "required" if field.is_required() else _default(one.get("default"), "$ref" in one)
        meaning = meanings.get(name) or ("its own table, below" if next(_models(field.annotation), None) else "")
        rows.append(f"| `{field.alias or name}` | {_type(one, schema.get('$defs', {}))} | {given} | {_cell(meaning)} |")
    about = " ".join((model.__doc__ or "").split())
    table = "| field | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    heading = ", ".join(title if title == TOP else f"`{title}`" for title in titles)
    return f"## {heading}\n\n{about}\n\n{table}\n"


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """What the docstrings below the fields of a class and its bases say."""
    found: dict[str, str] = {}
    for one in reversed([c for c in model.__mro__ if issubclass(c, BaseModel) and c is not BaseModel]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = following.value if isinstance(following, ast.Expr) else None
                found[statement.target.id] = " ".join(str(text.value).split()) if isinstance(text, ast.Constant) else ""
    return found


def _default(value: Any, is_table: bool) -> str:
    if is_table:
        return ""
    return "none" if value is None else f"`{_cell(json.dumps(value, ensure_ascii=False))}`"


def _type(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """A JSON schema in words: `integer, at least 1`."""
    if "$ref" in schema:
        named = defs[schema["$ref"].rsplit("/", 1)[-1]]
        return "table" if named.get("type") == "object" else _type(named, defs)
    for union in ("anyOf", "oneOf"):
        if union in schema:
            parts = [_type(part, defs) for part in schema[union] if part.get("type") != "null"]
            return " or ".join(dict.fromkeys(parts))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "any")
    if kind == "array":
        items = schema["prefixItems"] if "prefixItems" in schema else [schema.get("items", {})]
        of = " and ".join(_type(item, defs) for item in items)
        return f"list of {of}" + (", not empty" if schema.get("minItems") else "")
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"table of {_type(inner, defs)}" if isinstance(inner, dict) and inner else "table"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{word} {schema[name]:g}" for name, word in words.items() if name in schema]
    form = {"path": "path", "date": "date"}.get(schema.get("format", ""), kind)
    return ", ".join([form, *limits, *([f"matching `{_cell(schema['pattern'])}`"] if "pattern" in schema else [])])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
