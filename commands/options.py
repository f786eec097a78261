"""The options that mean the same in every command, and what they open: a recipe, a lake."""

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from saelake import OpenLake
    from saelake.ingest.recipe import Recipe

Command = Callable[..., Any]


def read_recipe(name: str, limit: int | None = None) -> "Recipe":
    """The recipe that a command is given, on a few prompts if it says so."""
    from saelake.ingest.recipe import load_recipe

    recipe = load_recipe(name)
    return recipe.limit(limit) if limit else recipe


def read_study(name: str, limit: int | None = None) -> "Recipe":
    """The recipe that a command computes with a model; what that needs is installed, or nothing is begun."""
    from saelake.extras import require

    recipe = read_recipe(name, limit)
    require("compute", "this command")
    return recipe


def open_lake(lake: str, recipe: str | None, files: Sequence[Path] = ()) -> "AbstractContextManager[OpenLake]":
    """The lake that a command asks, with the tables of one study if it is named; of other files only those given are read."""
    import saelake
    from saelake.warehouse.catalog import lock

    opened = saelake.open(lake, recipe)
    lock(opened.connection, opened.lake, files)
    return opened


def listed(names: str | None) -> tuple[str, ...]:
    """What an option lists, with commas between."""
    return tuple(name.strip() for name in (names or "").split(",") if name.strip())


def lake_option(command: Command) -> Command:
    place: dict[str, Any] = {"default": "lake", "show_default": True, "envvar": "SAELAKE_LAKE", "show_envvar": True}
    return click.option("--lake", metavar="DIR", help="The lake's folder, or s3://bucket/prefix.", **place)(command)


class Workers(click.ParamType):
    """`ray` or `ray:N`."""

    name = "workers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        engine, _, number = value.partition(":")
        if engine != "ray" or (number and not (number.isdecimal() and int(number))) or value.endswith(":"):
            self.fail(f"{value} is neither ray nor ray:N, with N workers", param, ctx)
        return int(number or 0)


def workers_option(command: Command) -> Command:
    text = "Compute on a Ray cluster (RAY_ADDRESS, else one started here) with N workers; by default one per GPU, else processor."
    return click.option("--workers", "n_workers", type=Workers(), metavar="ray[:N]", help=text)(command)


def judges_options(command: Command) -> Command:
    """What no recipe may allow itself."""
    hosts = click.option(
        "--allow-host",
        "hosts",
        multiple=True,
        metavar="HOST",
        help="Let judges of the recipe send prompts and answers to this host, too; to this machine they always may.",
    )
    code = click.option(
        "--allow-code", is_flag=True, help="Run the code of judges that the recipe names by class: look at it first."
    )
    return code(hosts(command))


class Computing(NamedTuple):
    """The options that commands which compute have in common."""

    lake: str
    limit: int | None
    force: bool
    n_workers: int | None = None
    allow_code: bool = False
    hosts: tuple[str, ...] = ()

    def study(self, recipe: str) -> "Recipe":
        """The recipe that is named, within the limit and with what its judges may do."""
        return read_study(recipe, self.limit).allowing(self.allow_code, self.hosts)


def computing_options(*, workers: bool = True, judges: bool = True) -> Callable[[Command], Command]:
    """The options of a command that computes, which it is given as one argument, `computing`.

    Args:
        workers: whether others than this process can compute.
        judges: whether a judge is asked, so that the recipe's may need permission.
    """

    def decorate(command: Command) -> Command:
        @wraps(command)
        def gathered(**given: Any) -> Any:
            common = {name: given.pop(name) for name in Computing._fields if name in given}
            return command(computing=Computing(**common), **given)

        decorated: Command = gathered
        if judges:
            decorated = judges_options(decorated)
        if workers:
            decorated = workers_option(decorated)
        return lake_option(limit_option(force_option(decorated)))

    return decorate


def features_option(command: Command) -> Command:
    text = (
        "LAYER:ID,... (SAE_ID:ID where a layer has several); or a file or a select of rows with the columns sae (an sae_id or a "
        "layer) and feature."
    )
    return click.option("--features", required=True, metavar="LIST", help=text)(command)


def positions_option(command: Command) -> Command:
    text = (
        "Hold them at these positions, from either end, and roles of tokens (bos, template, system, user, assistant; answer: "
        "what is generated), as -1 or user,answer; by default everywhere."
    )
    return click.option("--positions", metavar="LIST", help=text)(command)


def study_option(command: Command) -> Command:
    return click.option("--recipe", metavar="NAME", help="Only this study, where the lake holds several.")(command)


def output_options(command: Command) -> Command:
    # Not click.Choice over queries.output.FORMATS: help would have to import DuckDB.
    formats = click.Choice(["table", "csv", "json", "parquet"])
    file = click.Path(path_type=Path, dir_okay=False)
    command = click.option(
        "--output",
        "-o",
        type=file,
        metavar="FILE",
        help="Write to a file, whole or not at all; if it holds completions, for its owner alone.",
    )(command)
    by_default = (
        "How rows are written; by default as the file's suffix says, else a table. CSV puts an apostrophe before text that "
        "begins with = + - @, a tab or a carriage return, so that no spreadsheet runs it; numbers stay numbers."
    )
    return click.option("--format", "kind", type=formats, help=by_default)(command)


def limit_option(command: Command) -> Command:
    few = "Only N prompts of each set, label and split: a quick look."
    return click.option("--limit", type=click.IntRange(min=1), metavar="N", help=few)(command)


def force_option(command: Command) -> Command:
    return click.option("--force", is_flag=True, help="Compute again what is published, and compare.")(command)
