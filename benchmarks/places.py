"""Where a module can be changed by one small thing, and to what: the places of mutants, and what is left out."""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

LIKE = {"Add": "Sub|Mul", "Sub": "Add|Mul", "Mul": "Add|Div", "Div": "Mul|FloorDiv", "FloorDiv": "Div|Mod", "Mod": "FloorDiv"}
LIKE |= {"Pow": "Mul", "BitAnd": "BitOr", "BitOr": "BitAnd", "BitXor": "BitOr", "LShift": "RShift", "RShift": "LShift"}
LIKE |= {"Lt": "LtE|Gt", "LtE": "Lt|GtE", "Gt": "GtE|Lt", "GtE": "Gt|LtE", "Eq": "NotEq|LtE|GtE", "NotEq": "Eq|Lt|Gt"}
LIKE |= {"Is": "IsNot", "IsNot": "Is", "In": "NotIn", "NotIn": "In"}
"""An operator -> those that take its place."""
GUARDS = ("strict", "code_version", "frozen")
"""Arguments that decide no result: a check of what holds anyway, how a stage names its code, whether a value may change."""
PACE = {
    "ANSWERING",
    "AT_ONCE",
    "CAPTURED_TOKENS",
    "CHUNK",
    "CHUNK_ROWS",
    "COMPACT",
    "DENSE",
    "FREE_SHARE",
    "GATHER_TOKENS",
    "KEPT",
    "KEPT_BYTES",
}
PACE |= {"LOGITS", "MOST_TOKENS", "PART_BYTES", "ROWS", "SHARD_PASSES", "UNKNOWN", "WHOLE"}
"""Constants that say how much is done or kept at a time: time and memory depend on them, and no result does."""
UNARY = ("UnaryOperator_Delete_USub", "UnaryOperator_Delete_Not", "UnaryOperator_Delete_Invert")


class Place(NamedTuple):
    """Where a module can be changed."""

    file: str
    start: tuple[int, int]
    changes: Sequence[tuple[str, int]]
    """Operators of Cosmic Ray that apply there, each with the occurrence that this place is in the file."""


def places(copy: Path, file: Path) -> Iterator[Place]:
    """Where a file of the copy can be changed, from its first line to its last."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    source = file.read_text(encoding="utf-8")
    annotated = list(_left_out(source))
    found: dict[tuple[Any, Any], list[tuple[str, int]]] = {}
    nodes = list(ast_nodes(get_ast(source)))
    for name in plugins.operator_names():
        operator = plugins.get_operator(name)
        if operator.arguments() or not _is_sensible(name.split("/")[-1]):
            continue
        positions = [place for node in nodes for place in operator().mutation_positions(node)]
        for occurrence, (start, end) in enumerate(positions):
            if not any(first <= tuple(start) and tuple(end) <= last for first, last in annotated):
                found.setdefault((tuple(start), tuple(end)), []).append((name, occurrence))
    for (start, _end), changes in sorted(found.items()):
        yield Place(str(file.relative_to(copy)), start, changes)


def _is_sensible(operator: str) -> bool:
    kind, _, change = operator.partition("Operator_")
    if kind.endswith("Unary"):
        return f"UnaryOperator_{change}" in UNARY
    if kind.endswith(("Binary", "Comparison")):
        old, new = change.split("_")
        return new in LIKE.get(old, "").split("|")
    return operator != "NoOp"


def _left_out(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations and guards begin and end."""
    for node in ast.walk(ast.parse(source)):
        guard = node.value if isinstance(node, ast.keyword) and node.arg in GUARDS else None
        for noted in (getattr(node, "annotation", None), getattr(node, "returns", None), guard):
            if isinstance(noted, ast.expr):
                yield (noted.lineno, noted.col_offset), (noted.end_lineno or 0, noted.end_col_offset or 0)
    for statement in ast.parse(source).body:
        if not isinstance(statement, ast.Assign):
            continue
        names, noted = {getattr(one, "id", "") for one in statement.targets}, statement.value
        if names & PACE or "CODE_VERSION" in names or isinstance(noted, ast.BinOp | ast.Subscript):  # these name types
            yield (noted.lineno, noted.col_offset), (noted.end_lineno or 0, noted.end_col_offset or 0)
