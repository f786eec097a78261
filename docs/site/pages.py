"""What `make site` adds to docs/: the README as its first page, pages made from code, and every file that a page links to.

A hook of mkdocs. A link from a page to a file of the repository outside docs/ leads to a page that shows the file, so that the
site is whole by itself and true of this checkout.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

import saelake
from saelake import cli, queries

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")
FENCED = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
API = {
    "The model and its edits": ("Subject", "Engine", "Ablate", "MeanAblate", "Clamp", "Add", "ProjectOut", "Site"),
    "Searches": ("minimal_set", "attribution", "FactorizationMachine", "compare"),
    "Lakes": ("open", "OpenLake", "sparse", "UserError"),
}
"""Heading -> names of saelake.__all__, in the order in which one meets them."""
RETURNED = (
    "analysis.engine.library.Answers",
    "analysis.engine.library.NextTokens",
    "analysis.search.one_prompt.MinimalSet",
    "analysis.interactions.estimator.Pair",
    "analysis.backends.Parting",
    "queries.sparse.Sparse",
    "analysis.rows_dataset.LakeRows",
    "ingest.tokenized.Tokenized",
    "ingest.subject.Batch",
)
"""What these return, in the same order: one meets it without ever importing it. All fields are shown, explained or not."""
RAISED = ("queries.parameters.QueryError",)
"""What they raise beside UserError."""
ALL_FIELDS = """    options:
      show_if_no_docstring: true
      filters: ["!^_"]
"""


def on_files(files: "Files", config: Any) -> "Files":
    """Adds what is made from code, and what is linked to."""
    from mkdocs.structure.files import File, InclusionLevel

    made = {"questions.md": _questions(), "commands.md": _commands(), "api.md": _api(), "pages.css": CSS}
    made["index.md"] = _rebased((ROOT / "README.md").read_text("utf-8"), PurePosixPath("README.md"), PurePosixPath("index.md"))
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    for linked in sorted(linked_files()):
        files.append(File.generated(config, str(_place(linked)), content=_shown(linked), inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def linked_files() -> set[Path]:
    """Files and folders outside docs/ that its pages, or pages that these link to, lead to."""
    waiting, found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], set[Path]()
    while waiting:
        page = waiting.pop()
        for target, _ in LINK.findall(FENCED.sub("", page.read_text("utf-8"))):
            linked = Path(os.path.normpath(page.parent / target))
            if linked.exists() and linked not in found and ROOT / "docs" not in linked.parents and linked != ROOT / "README.md":
                found.add(linked)
                waiting += [linked] if linked.suffix == ".md" else []
    return found


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page of docs/ with its links as they are in the site."""
    path = PurePosixPath(page.file.src_path)
    in_docs = (ROOT / "docs" / path).is_file()
    return _rebased(markdown, PurePosixPath("docs") / path, path) if in_docs else markdown


def _rebased(markdown: str, source: PurePosixPath, page: PurePosixPath) -> str:
    """A text of the repository as a page of the site: links lead to the same files there; code is left as it is."""

    def leads(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(ROOT / source.parent / found[1]))
        return os.path.relpath(_place(target), page.parent) + (found[2] or "")

    return "".join(part if part.startswith("```") else LINK.sub(leads, part) for part in FENCED.split(markdown))


def _place(target: Path) -> PurePosixPath:
    """Where a file or folder of the repository stands in the site."""
    path = PurePosixPath(target.relative_to(ROOT).as_posix())
    if path == PurePosixPath("README.md"):
        return PurePosixPath("index.md")
    if path.parts[0] == "docs":
        return path.relative_to("docs")
    return path if path.suffix == ".md" else PurePosixPath(f"{path}.md")


def _shown(target: Path) -> str:
    path = PurePosixPath(target.relative_to(ROOT).as_posix())
    if target.suffix == ".md":
        return _rebased(target.read_text("utf-8"), path, _place(target))
    if target.is_dir():
        names = sorted(one.name for one in target.iterdir() if not one.name.startswith(("_", ".")))
        return f"# {path}/\n\n" + "".join(f"- `{name}`\n" for name in names)
    language = {".py": "python", ".toml": "toml", ".sql": "sql", ".jsonl": "json"}.get(target.suffix, "text")
    lines = target.read_text("utf-8").splitlines()
    shown = "\n".join(lines[:600])
    more = f"\n{len(lines) - 600:,} more lines.\n" if len(lines) > 600 else ""
    return f"# {path}\n\n~~~~{language}\n{shown}\n~~~~\n{more}"


def _questions() -> str:
    """Every shipped question: documentation, parameters, statement."""
    parts = [
        "# The shipped questions\n\n`saelake query NAME`, `lake.query(NAME, ...)`. This page is made from `queries/`: "
        "the head comment of each is its documentation.\n"
    ]
    for name in queries.names():
        query = queries.load(name)
        parameters = [f"- `${p.declaration}`: {p.meaning}" for p in query.parameters]
        parts.append("\n".join([f"\n## {name}\n", query.doc, "", *parameters, "", '??? note "SQL"', "", "    ```sql"]))
        parts.append("\n".join(f"    {line}" for line in query.sql.splitlines()) + "\n    ```\n")
    return "\n".join(parts)


def _commands() -> str:
    """Every verb with its help, as the command line prints it."""
    parts = ["# The command line\n\nThis page is what `saelake VERB --help` prints.\n"]

    def visit(name: str, command: click.Command) -> None:
        context = click.Context(command, info_name=name, max_content_width=110, terminal_width=110)
        parts.append(f"\n## {name}\n\n~~~~text\n{command.get_help(context)}\n~~~~\n")
        if isinstance(command, click.Group) and name != "saelake query":
            for inner in command.list_commands(context):
                found = command.get_command(context, inner)
                assert found is not None
                visit(f"{name} {inner}", found)

    visit("saelake", cli.main)
    return "".join(parts)


def _api() -> str:
    """Every public name, and what its calls return and raise, from their docstrings."""
    assert sorted(name for names in API.values() for name in names) == sorted(saelake.__all__), "docs/site/pages.py names all"
    parts = ["# The Python API\n\nAll that is public is what `saelake` exports; [versions](versions.md) says what that means.\n"]
    for heading, names in API.items():
        parts.append(f"\n## {heading}\n")
        for name in names:
            where = getattr(saelake, name)
            parts.append(f"\n::: {where.__module__}.{where.__name__}\n")
    parts.append("\n## What calls return and raise\n")
    parts += [f"\n::: saelake.{name}\n{ALL_FIELDS}" for name in (*RETURNED, *RAISED)]
    return "".join(parts)


CSS = """.md-grid { max-width: 84rem; }
.md-typeset pre > code { font-size: .62rem; }
.md-typeset table:not([class]) { font-size: .66rem; }
"""
