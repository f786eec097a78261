"""No module imports itself by way of others, not while it is loaded, nor later, in a function or for types; none is too long."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent


def modules() -> dict[str, Path]:
    """Dotted name -> file, of the package and of the folders that it links to."""
    folders = [path.resolve() for path in (ROOT / "saelake").iterdir() if path.is_dir()]
    files = [ROOT / "cli.py", *(ROOT / "saelake").glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    parts = {file: file.relative_to(ROOT).with_suffix("").parts for file in files if not file.is_symlink()}
    return {".".join(("saelake", *(p for p in name if p not in ("saelake", "__init__")))): file for file, name in parts.items()}


def imported(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that a file imports anywhere."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            yield from (name if (name := f"{node.module}.{alias.name}") in known else node.module for alias in node.names)


def test_imports_run_one_way() -> None:
    known = modules()
    assert {"saelake", "saelake.cli", "saelake.ingest.job", "saelake.queries", "saelake.analysis.engine.engine"} <= known.keys()
    graph = {name: set(imported(file, known)) - {name} for name, file in known.items()}
    assert graph["saelake.ingest.job"] >= {"saelake.ingest.shards", "saelake.ingest.runs"}
    list(TopologicalSorter(graph).static_order())  # raises graphlib.CycleError, which names the circle


def test_the_package_is_links_to_what_lies_beside_it() -> None:
    """A copy would not change with it, and an editor that writes a file anew makes one of a link."""
    for name in ("analysis", "cli.py", "commands", "formats", "ingest", "queries", "recipes", "warehouse"):
        assert (ROOT / "saelake" / name).is_symlink(), name


def test_no_module_is_too_long_to_read() -> None:
    files = [*modules().values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in files}
    assert not {name for name, lines in lengths.items() if lines > 350}
