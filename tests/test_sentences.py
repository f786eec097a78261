"""A sentence for the user reaches the user: nobody takes a UserError for the ValueError of a library."""

import ast
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from saelake.ingest.sources import read_rows
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.storage import Folder
from tests.conftest import ROOT

FOLDERS = ("analysis", "commands", "formats", "ingest", "queries", "warehouse")
WIDE = {"ValueError", "Exception", "BaseException"}
COMMON = {
    "append",
    "open",
    "read",
    "read_text",
    "exists",
    "close",
    "get",
    "join",
    "items",
    "values",
    "keys",
    "add",
    "pop",
    "split",
    "sum",
    "min",
    "max",
    "update",
    "run",
}
"""Methods of Python's own types, whose names functions of ours have too."""


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        if path.relative_to(ROOT).as_posix() != "commands/groups.py":  # it shows every error, whatever its kind
            yield path, ast.parse(path.read_text("utf-8"))


def called(node: ast.AST) -> set[str]:
    names = set()
    for call in (n for n in ast.walk(node) if isinstance(n, ast.Call)):
        if isinstance(call.func, ast.Name | ast.Attribute):
            names.add(call.func.id if isinstance(call.func, ast.Name) else call.func.attr)
    return names - COMMON


def raises(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Raise) and n.exc is not None and "UserError" in ast.dump(n.exc) for n in ast.walk(node))


def caught(handler: ast.ExceptHandler) -> set[str]:
    if handler.type is None:
        return {"BaseException"}
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return {kind.id if isinstance(kind, ast.Name) else getattr(kind, "attr", "") for kind in kinds}


def test_no_sentence_is_taken_for_the_mistake_of_a_library() -> None:
    """Every `except` that takes a ValueError around a call which may raise a UserError lets that one through first."""
    functions = [n for _, tree in sources() for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    speaking = {function.name for function in functions if raises(function)}
    speaking |= {function.name for function in functions if called(function) & speaking}  # and who calls them
    wrong = []
    for path, tree in sources():
        for attempt in (n for n in ast.walk(tree) if isinstance(n, ast.Try)):
            body = ast.Module(attempt.body, [])
            for handler in attempt.handlers:
                if "UserError" in caught(handler):
                    break
                passes_on = any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(handler))
                if caught(handler) & WIDE and not passes_on and (raises(body) or called(body) & speaking):
                    wrong.append(f"{path.relative_to(ROOT)}:{handler.lineno}: {', '.join(called(body) & speaking)}")
    assert "\n".join(wrong) == "", "put `except UserError: raise` before these"


def test_a_sentence_about_rows_is_not_wrapped_in_another(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[1]")
    with pytest.raises(UserError) as refused:
        list(read_rows(tmp_path / "rows.json", "prompts[0]"))
    assert "not a readable" not in str(refused.value)


def test_a_place_that_cannot_be_read_is_no_damaged_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record behind a network that is gone must not be called damaged, nor its run be taken for one without parents."""
    lake = Lake.create(tmp_path / "lake")

    def gone(_place: Folder, _key: str) -> str:
        raise UserError("the bucket is out of reach")

    monkeypatch.setattr(Folder, "read", gone)
    for ask in (lambda: lake.record("x"), lambda: lake.parents("x"), lambda: Lake.existing(lake.root)):
        with pytest.raises(UserError, match=r"^the bucket is out of reach$"):
            ask()


@pytest.mark.parametrize("key", ["saelake.json", "runs/ingest_000000000000.json", "current/a/ingest"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "zero"])
def test_a_pipe_or_a_device_in_a_lake_is_told_and_not_waited_for(key: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    path = lake.root / key
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    with pytest.raises(UserError, match=r"is not a regular file"):
        Lake.existing(lake.root), lake.records(), lake.current()
