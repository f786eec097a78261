"""The command line: one verb a command, each a thin layer over the function that does the work.

    saelake analyze organism --lake ./lake
    saelake query asr --lake ./lake --format csv

Everything heavy is imported by the command that needs it, so that help and SQL answer at once.
"""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from ingest.recipe import Recipe
    from saelake import OpenLake

RESUMABLE = ("ingest", "analyze")
WRITE_ERRORS = {
    errno.ENOSPC: "disk full at {}: free space",
    errno.EDQUOT: "disk quota used up at {}: free space",
    errno.EFBIG: "file too large for the file system or its limits at {}: free space or raise the limit",
    errno.EROFS: "read-only file system at {}: make it writable",
    errno.EACCES: "no permission at {}: make it readable and writable",
}


class OneSentence(click.Group):
    """A group of commands whose mistakes end in one sentence; SAELAKE_TRACEBACK=1 shows where they come from."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            resumes = ctx.invoked_subcommand in RESUMABLE
            click.echo("stopped; the same command continues" if resumes else "stopped", err=True)
            ctx.exit(130)
        except Exception as error:
            if os.environ.get("SAELAKE_TRACEBACK") == "1":
                raise
            raise click.ClickException(sentence(error, ctx.invoked_subcommand in RESUMABLE)) from error


def sentence(error: Exception, resumes: bool) -> str:
    """What a person can do about an error; `resumes` if the command finds its finished work again."""
    import duckdb

    from queries import QueryError
    from queries.formats import printable
    from warehouse.errors import UserError

    if isinstance(error, UserError | QueryError):
        text = str(error)
    elif isinstance(error, duckdb.Error):
        # The first paragraph says what is wrong; what follows quotes the statement.
        text = " ".join(str(error).split("\n\n")[0].split("\nLINE ")[0].split())
    elif isinstance(error, OSError) and error.errno in WRITE_ERRORS:
        kept = ", finished shards are kept" if resumes else ""
        text = f"{WRITE_ERRORS[error.errno].format(error.filename or error)} and run the same command again{kept}"
    else:
        text = f"{type(error).__name__}: {error} (set SAELAKE_TRACEBACK=1 to see where, and report it)"
    return printable(" ".join(text.split("\n")))


Command = Callable[..., Any]


def lake_option(command: Command) -> Command:
    folder: dict[str, Any] = {"type": click.Path(path_type=Path), "default": Path("lake"), "show_default": "./lake"}
    environment: dict[str, Any] = {"envvar": "SAELAKE_LAKE", "show_envvar": True}
    return click.option("--lake", metavar="DIR", help="The lake's folder.", **folder, **environment)(command)


def study_option(command: Command) -> Command:
    return click.option("--recipe", metavar="NAME", help="Show only this study, where the lake holds several.")(command)


def output_options(command: Command) -> Command:
    # Not click.Choice over queries.formats.FORMATS: help would have to import DuckDB.
    formats = click.Choice(["table", "csv", "json", "parquet"])
    file = click.Path(path_type=Path, dir_okay=False)
    command = click.option("--output", "-o", type=file, metavar="FILE", help="Write to a file, whole or not at all.")(command)
    by_default = "How rows are written; by default as the file's suffix says, else a table."
    return click.option("--format", "kind", type=formats, help=by_default)(command)


def limit_option(command: Command) -> Command:
    few = "Only N prompts of each set, label and split: a quick look."
    return click.option("--limit", type=click.IntRange(min=1), metavar="N", help=few)(command)


def force_option(command: Command) -> Command:
    return click.option("--force", is_flag=True, help="Compute again what is published, and compare.")(command)


@click.group(cls=OneSentence, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="saelake")
def main() -> None:
    """A language model's sparse-autoencoder activations as a data lake: query them with SQL, find the features that cause a
    behaviour.

    Start with `saelake analyze organism`, then `saelake queries` and `saelake sql "show tables"`.
    """


@main.command()
@click.argument("recipe")
@lake_option
@limit_option
@force_option
def ingest(recipe: str, lake: Path, limit: int | None, force: bool) -> None:
    """Run RECIPE's prompts through its model and SAEs into the lake.

    RECIPE is a .toml file or the name of a shipped one. Finds what is there, resumes what was stopped.
    """
    study = _recipe(recipe, limit)  # before the imports: a mistake in it is told at once
    from ingest import job
    from warehouse.progress import Bar
    from warehouse.records import Lake

    with Bar() as progress:
        record = job.ingest(study, Lake.create(lake), force=force, progress=progress)
    _print_runs(lake, [record.run_id])


@main.command()
@click.argument("recipe")
@lake_option
@limit_option
@force_option
def analyze(recipe: str, lake: Path, limit: int | None, force: bool) -> None:
    """Bring every stage of RECIPE up to date, ingest included, and show what came out.

    RECIPE is a .toml file or the name of a shipped one. Finds what is there, resumes what was stopped.
    """
    study = _recipe(recipe, limit)  # before the imports: a mistake in it is told at once
    from analysis import stages
    from warehouse.progress import Bar
    from warehouse.records import Lake

    with Bar() as progress:
        records = stages.analyze(study, Lake.create(lake), force=force, progress=progress)
    _print_runs(lake, [record.run_id for record in records])
    with _open(lake, study.name) as opened:
        _print_findings(opened, study.verdicts.oracle)


@main.command()
@click.argument("recipe")
@lake_option
@limit_option
def status(recipe: str, lake: Path, limit: int | None) -> None:
    """Tell which stages of RECIPE are done, and why the others are not."""
    study = _recipe(recipe, limit)
    from analysis import stages
    from queries.formats import Rows, show_table
    from warehouse.records import Lake

    found = stages.status(study, Lake.existing(lake) if lake.exists() else Lake(lake))
    names = ("stage", "state", "run_id", "why")
    show_table(Rows(names, ["VARCHAR"] * 4, iter([[getattr(s, name) or None for name in names] for s in found])), sys.stdout)


@main.command()
@click.argument("statement")
@lake_option
@study_option
@output_options
def sql(statement: str, lake: Path, recipe: str | None, kind: str | None, output: Path | None) -> None:
    """Answer a SQL STATEMENT that reads; - reads it from standard input.

    The tables are those of `saelake sql "show tables"`, with the current runs; all_runs.NAME has every run.
    """
    from queries.statements import check_reads

    statement = sys.stdin.read() if statement == "-" else statement
    check_reads(statement)
    _answer(lake, recipe, lambda opened: opened.sql(statement), kind, output)


class Questions(click.Group):
    """A command for each file in queries/, with an option for each parameter that it declares."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        import queries

        return queries.names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        import queries

        asked = queries.load(cmd_name)

        @lake_option
        @study_option
        @output_options
        @click.option("--sql", "as_sql", is_flag=True, help="Print the statement itself, for any DuckDB shell.")
        def ask(
            lake: Path, recipe: str | None, kind: str | None, output: Path | None, as_sql: bool, **values: str | None
        ) -> None:
            given = {name: value for name, value in values.items() if value is not None}
            if as_sql:
                with _open(lake, recipe) as opened:
                    click.echo(asked.statement(opened.connection, given) + ";")
            else:
                _answer(lake, recipe, lambda opened: opened.query(cmd_name, **given), kind, output)

        # click would rewrap the documentation: \b keeps each paragraph as it stands.
        doc = "\n\n".join("\b\n" + paragraph for paragraph in asked.doc.split("\n\n"))
        command = click.command(cmd_name, help=doc, short_help=asked.summary)(ask)
        command.params[:0] = [_option(parameter) for parameter in asked.parameters]
        return command


def _option(parameter: Any) -> click.Option:
    """A query's parameter as an option; the value stays text, so that the query itself judges it."""
    flags = dict.fromkeys([f"--{parameter.name.replace('_', '-')}", f"--{parameter.name}"])
    needed = "required" if parameter.required else f"default: {parameter.default}"
    # A boolean may stand without a value: --bos is --bos true.
    bare: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if parameter.type == "boolean" else {}
    return click.Option([*flags, parameter.name], metavar=parameter.type, help=f"{parameter.meaning} [{needed}]", **bare)


@main.command(cls=Questions, subcommand_metavar="NAME [OPTIONS]")
def query() -> None:
    """Answer one of the shipped questions; `saelake query NAME --help` documents it."""


@main.command("queries")
def list_queries() -> None:
    """Print what every shipped question answers, with its parameters."""
    import queries

    click.echo("\n\n\n".join(queries.load(name).help for name in queries.names()))


@main.command()
@lake_option
@study_option
@output_options
def runs(lake: Path, recipe: str | None, kind: str | None, output: Path | None) -> None:
    """List the lake's runs: which stage, from which runs, how long, how many rows."""
    brief = kind in (None, "table") and output is None
    shown = ("run_id", "stage", "recipe", "current", "started", "seconds", "rows", "device") if brief else ("*",)
    _answer(lake, None, lambda opened: opened.query("runs", study=recipe).select(*shown), kind, output)


def _recipe(name: str, limit: int | None) -> "Recipe":
    from ingest.recipe import load_recipe

    recipe = load_recipe(name)
    return recipe.limit(limit) if limit else recipe


def _open(lake: Path, recipe: str | None) -> "AbstractContextManager[OpenLake]":
    import saelake

    return saelake.open(lake, recipe)


def _answer(
    lake: Path, recipe: str | None, ask: "Callable[[OpenLake], DuckDBPyRelation]", kind: str | None, output: Path | None
) -> None:
    from queries.formats import show
    from queries.statements import interruptible

    with _open(lake, recipe) as opened:
        interruptible(opened.connection, lambda: show(ask(opened), kind, output))


def _print_runs(lake: Path, run_ids: list[str]) -> None:
    from queries.formats import show

    with _open(lake, None) as opened:
        found = opened.query("runs").filter(f"list_contains({run_ids!r}, run_id)")
        show(found.select("run_id", "stage", "seconds", "rows"))


def _print_findings(opened: "OpenLake", judge: str) -> None:
    """K chosen on half the prompts, and the share that every condition flips without a K, or at a chosen one."""
    from queries.formats import show

    own, chosen = (opened.query("k_choice", condition=name, judge=judge) for name in ("top_k_own", "top_k_chosen"))
    choice = own.union(chosen)
    ks = {k for (k,) in choice.select("k").fetchall()}
    if ks:
        show(choice)
    rates = opened.query("asr", judge=judge, k=sorted(ks))
    show(rates.select("condition", "label", "k", "n_prompts", "asr", "n_refused_at_baseline", "asr_of_refused"))
