"""A judge of the user's own: `module:Class` in a recipe, loaded only where the user allows code."""

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saelake.analysis.judges.protocol import Answer, Need, Verdict
from saelake.ingest.recipe import Recipe
from saelake.warehouse.errors import UserError, one_line


class OwnJudge:
    """An instance of the user's class, which answers for each text True, False or None."""

    needs: frozenset[Need] = frozenset({"text", "first_token"})

    def __init__(self, name: str, class_name: str, made: Any, options: Mapping[str, object], labels: Sequence[str]) -> None:
        self._field, self._class_name, self._made, self._options = f"judges.{name}", class_name, made, dict(options)
        self.labels = tuple(labels)

    @property
    def identity(self) -> Mapping[str, object]:
        """The class with its options and its own identity; raises UserError if it has none that JSON can hold."""
        try:
            own = json.loads(json.dumps(self._made.identity, allow_nan=False))
        except Exception as error:
            raise UserError(
                f"{self._field}: {self._class_name} needs a property `identity` of JSON values, by which one version of it is "
                f"told from another ({type(error).__name__}: {one_line(error)})"
            ) from error
        return {"class": self._class_name, "options": self._options, "identity": own}

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        try:
            refused = list(self._made(list(answers)))
        except Exception as error:
            raise UserError(f"{self._field}: {self._class_name} failed ({type(error).__name__}: {one_line(error)})") from error
        if len(refused) != len(answers) or not all(map(_is_answer, refused)):
            raise UserError(f"{self._field}: {self._class_name} must give True, False or None for each of {len(answers)} answers")
        return [
            Verdict.of(None if one is None else bool(one), a.completion, None if one is None else float(one))
            for one, a in zip(refused, answers, strict=True)
        ]


def _is_answer(one: Any) -> bool:
    try:
        return one is None or (getattr(one, "shape", ()) == () and one in (True, False))  # rows of an array have no truth value
    except Exception:  # nor has pandas' NA; what cannot be compared is no answer
        return False


def load(name: str, recipe: Recipe) -> OwnJudge:
    """The judge of a table of the recipe; raises UserError without the user's leave, and for a class that cannot be made."""
    table = recipe.judges[name]
    assert table.class_ is not None, f"[judges.{name}] has no class"
    if not recipe.allows_code:
        raise UserError(
            f"judges.{name} would run code, {table.class_}: look at it, and say --allow-code if you trust it (from Python: "
            "recipe.allowing(code=True))"
        )
    module_name, _, class_name = table.class_.partition(":")
    try:
        made = getattr(_module(module_name, recipe.file), class_name)(**table.options)
    except Exception as error:
        raise UserError(
            f"judges.{name}.class: {table.class_} cannot be loaded ({type(error).__name__}: {one_line(error)})"
        ) from error
    return OwnJudge(name, table.class_, made, table.options, table.labels)


def _module(name: str, recipe_file: Path | None) -> Any:
    """A module beside the recipe, where there is one of that name, else an installed one."""
    folder, first = recipe_file.parent if recipe_file else Path.cwd(), name.partition(".")[0]
    if not ((folder / f"{first}.py").is_file() or (folder / first).is_dir()):
        return importlib.import_module(name)
    known = getattr(sys.modules.get(first), "__file__", None)
    if known is not None and folder.resolve() not in Path(known).resolve().parents:
        raise ImportError(f"another module is called {first} already: give the file beside the recipe another name")
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
