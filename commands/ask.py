"""The commands that ask: SQL, the shipped questions, and the list of runs. None of them imports torch."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saelake.commands.options import lake_option, open_lake, output_options, study_option

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duckdb import DuckDBPyConnection, DuckDBPyRelation

    from saelake import OpenLake


@click.command()
@click.argument("statement")
@lake_option
@study_option
@click.option(
    "--files",
    multiple=True,
    metavar="PATH",
    type=click.Path(exists=True, path_type=Path),
    help="A local file or folder that the statement may read, by its absolute path; may be repeated.",
)
@output_options
def sql(statement: str, lake: str, recipe: str | None, files: tuple[Path, ...], kind: str | None, output: Path | None) -> None:
    """Run a SQL STATEMENT, which may only read; - takes it from standard input.

    The tables are those of `saelake sql "show tables"`, with the current runs; all_runs.NAME has every run. Of all files it
    reads only the lake's own and those of --files, and nothing from a network.
    """
    from saelake.queries.statements import check_reads

    statement = sys.stdin.read() if statement == "-" else statement
    check_reads(statement)
    _answer(lake, recipe, lambda opened: opened.sql(statement), kind, output, files)


class Questions(click.Group):
    """A command for each question in queries/, listed or not, with an option for each parameter that it declares."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from saelake import queries

        return queries.names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        from saelake import queries

        asked = queries.load(cmd_name)

        @lake_option
        @study_option
        @output_options
        @click.option(
            "--engine", type=click.Choice(["duckdb", "spark"]), default="duckdb", help="What computes; spark needs Java."
        )
        @click.option("--sql", "as_sql", is_flag=True, help="Print the statement itself, for any DuckDB shell.")
        def ask(
            lake: str,
            recipe: str | None,
            kind: str | None,
            output: Path | None,
            engine: str,
            as_sql: bool,
            **values: str | None,
        ) -> None:
            from saelake.queries import why_no_rows

            given = {name: value for name, value in values.items() if value is not None}
            if as_sql:
                with open_lake(lake, recipe) as opened:
                    click.echo(opened.statement(cmd_name, **given) + ";")
            else:
                _answer(
                    lake,
                    recipe,
                    lambda opened: opened.query(cmd_name, engine=engine, **given),
                    kind,
                    output,
                    why=lambda con: why_no_rows(con, cmd_name, given),
                )

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


@click.command(cls=Questions, subcommand_metavar="NAME [OPTIONS]")
def query() -> None:
    """Answer one of the shipped questions; `saelake query NAME --help` documents it.

    Questions that only stages or the explorer's pages ask (queries/stages/, queries/pages/) are answered too, but not listed.
    """


@click.command("queries")
def list_queries() -> None:
    """Print what every shipped question answers, with its parameters."""
    from saelake import queries

    click.echo("\n\n\n".join(queries.load(name).help for name in queries.names()))


@click.command()
@lake_option
@study_option
@output_options
def runs(lake: str, recipe: str | None, kind: str | None, output: Path | None) -> None:
    """List the lake's runs: stage, recipe, when, how long, how many rows; every column with --format csv, json or parquet."""
    from saelake.warehouse.literals import literal

    brief = kind in (None, "table") and output is None
    shown = ("run_id", "stage", "recipe", "current", "started", "seconds", "rows", "device") if brief else ("*",)
    # A set that was added under another name has runs that call themselves by their first one.
    own = f"current or recipe = {literal(recipe)}" if recipe else "true"
    _answer(lake, recipe, lambda opened: opened.query("runs").filter(own).select(*shown), kind, output)


def _answer(
    lake: str,
    recipe: str | None,
    ask: "Callable[[OpenLake], DuckDBPyRelation]",
    kind: str | None,
    output: Path | None,
    files: "Sequence[Path]" = (),
    why: "Callable[[DuckDBPyConnection], Sequence[str]]" = lambda _: (),
) -> None:
    """Shows what is answered; where that is nothing, why."""
    from saelake.queries.output import printable, show
    from saelake.queries.statements import interruptible

    with open_lake(lake, recipe, files) as opened:

        def explain() -> None:
            for sentence in why(opened.connection):
                click.echo(f"no rows: {printable(sentence)}", err=True)

        interruptible(opened.connection, lambda: show(ask(opened), kind, output, explain))


COMMANDS = (sql, query, list_queries, runs)
