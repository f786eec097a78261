"""The command line: one verb a command, each a thin layer over the function that does the work.

    saelake analyze organism --lake ./lake
    saelake query asr --lake ./lake --format csv

Everything heavy is imported by the command that needs it, so that help and SQL answer at once.
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import cli_lake
import cli_meaning
import cli_prepare
import cli_sharing
from cli_options import (
    OneSentence,
    force_option,
    lake_option,
    limit_option,
    output_options,
    read_recipe,
    study_option,
    workers_option,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from duckdb import DuckDBPyRelation

    from analysis.crew import RayCrew
    from ingest.job import Study
    from saelake import OpenLake
    from warehouse.records import Lake


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
@workers_option
def ingest(recipe: str, lake: str, limit: int | None, force: bool, workers: int | None) -> None:
    """Run RECIPE's prompts through its model and SAEs into the lake.

    RECIPE is a .toml file or the name of a shipped one. Finds what is there, resumes what was stopped.
    """
    study = read_recipe(recipe, limit)  # before the imports: a mistake in it is told at once
    from ingest import job
    from warehouse.progress import Bar
    from warehouse.records import Lake

    opened = job.open_study(study)  # before there is a lake: a mistake leaves nothing behind
    into = Lake.create(lake)
    with Bar() as progress, _crew(workers, opened, into) as crew:
        compute = partial(crew.compute, job.ingest_spec(opened)) if crew else None
        record = job.ingest_study(opened, into, force=force, progress=progress, compute=compute)
    _print_runs(lake, [record.run_id])


@main.command()
@click.argument("recipe")
@lake_option
@limit_option
@force_option
@workers_option
def analyze(recipe: str, lake: str, limit: int | None, force: bool, workers: int | None) -> None:
    """Bring every stage of RECIPE up to date, ingest included, and show what came out.

    RECIPE is a .toml file or the name of a shipped one. Finds what is there, resumes what was stopped.
    """
    study = read_recipe(recipe, limit)  # before the imports: a mistake in it is told at once
    from analysis import stages
    from warehouse.progress import Bar
    from warehouse.records import Lake

    analysed = stages.open_analysis(study)  # before there is a lake: a mistake leaves nothing behind
    into = Lake.create(lake)
    with Bar() as progress, _crew(workers, analysed, into) as crew:
        records = stages.analyze_study(analysed, into, force=force, progress=progress, crew=crew)
    _print_runs(lake, [record.run_id for record in records])
    with _open(lake, study.name) as opened:
        _print_findings(opened, study.verdicts.oracle)


@main.command()
@click.argument("recipe")
@click.option("--judge", "name", required=True, metavar="NAME", help="first_token, phrases or harmbench.")
@lake_option
@limit_option
@force_option
def judge(recipe: str, name: str, lake: str, limit: int | None, force: bool) -> None:
    """Let another judge read the stored answers of RECIPE, without ablating anything again, and show the shares that flip.

    RECIPE is a .toml file or the name of a shipped one, which is analysed in the lake already.
    """
    study = read_recipe(recipe, limit)
    from analysis import stages
    from warehouse.progress import Bar
    from warehouse.records import Lake

    with Bar() as progress:
        record = stages.judge(study, Lake.existing(lake), name, force=force, progress=progress)
    _print_runs(lake, [record.run_id])
    with _open(lake, study.name) as opened:
        _print_findings(opened, name)


@main.command()
@click.argument("recipe")
@click.option("--features", required=True, metavar="LIST", help="LAYER:ID,... or a select with the columns layer and feature_id.")
@click.option("--condition", required=True, metavar="NAME", help="What the answers are called in ablations.condition.")
@click.option("--value", type=float, default=0.0, show_default=True, help="Clamp them to this activation; 0 ablates.")
@lake_option
@limit_option
@force_option
def ablate(recipe: str, features: str, condition: str, value: float, lake: str, limit: int | None, force: bool) -> None:
    """Ablate features of your choice together on the prompts of RECIPE's analysis, and show the shares that flip.

    RECIPE is a .toml file or the name of a shipped one. Ingests if needed. The same NAME with other features replaces it.
    """
    study = read_recipe(recipe, limit)
    from analysis import stages
    from queries.formats import show
    from warehouse.progress import Bar
    from warehouse.records import Lake

    with Bar() as progress:
        record = stages.ablate(study, Lake.existing(lake), condition, features, value=value, force=force, progress=progress)
    _print_runs(lake, [record.run_id])
    with _open(lake, study.name) as opened:
        rates = opened.query("asr", judge=study.verdicts.oracle).filter(f"condition in ('none', '{condition}')")
        show(rates.select("condition", "label", "n_prompts", "asr", "n_refused_at_baseline", "asr_of_refused"))


@main.command()
@click.argument("recipe")
@click.argument("other")
@click.option("--min-cosine", type=float, default=0.7, show_default=True, help="Of decoder rows, to hold two features for one.")
@lake_option
@limit_option
@output_options
def trainings(
    recipe: str, other: str, min_cosine: float, lake: str, limit: int | None, kind: str | None, output: Path | None
) -> None:
    """Tell how far RECIPE and OTHER, whose SAEs were trained from different seeds, find the same minimal sets.

    Both are analysed in the lake already. Features are matched by their decoder rows; jaccard is the mean over prompts.
    """
    mine, theirs = read_recipe(recipe, limit), read_recipe(other, limit)
    from dataclasses import asdict

    import pyarrow as pa

    from analysis.interactions.trainings import compare_trainings
    from queries.formats import show
    from warehouse.records import Lake

    found = compare_trainings(Lake.existing(lake), mine, theirs, min_cosine)
    import duckdb

    with duckdb.connect() as con:
        show(con.from_arrow(pa.Table.from_pylist([asdict(found)])), kind, output)


@main.command()
@click.argument("recipe")
@lake_option
@limit_option
def status(recipe: str, lake: str, limit: int | None) -> None:
    """Tell which stages of RECIPE are done, and why the others are not."""
    study = read_recipe(recipe, limit)
    from analysis import stages
    from queries.formats import Rows, show_table
    from warehouse.records import Lake

    to_be_made = not Lake.at(lake).published.names("")
    found = stages.status(study, Lake.at(lake) if to_be_made else Lake.existing(lake))
    names = ("stage", "state", "run_id", "why")
    show_table(Rows(names, ["VARCHAR"] * 4, iter([[getattr(s, name) or None for name in names] for s in found])), sys.stdout)


@main.command()
@click.argument("statement")
@lake_option
@study_option
@output_options
def sql(statement: str, lake: str, recipe: str | None, kind: str | None, output: Path | None) -> None:
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
            given = {name: value for name, value in values.items() if value is not None}
            if as_sql:
                with _open(lake, recipe) as opened:
                    click.echo(asked.statement(opened.connection, given) + ";")
            else:
                _answer(lake, recipe, lambda opened: opened.query(cmd_name, engine=engine, **given), kind, output)

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
def runs(lake: str, recipe: str | None, kind: str | None, output: Path | None) -> None:
    """List the lake's runs: which stage, from which runs, how long, how many rows."""
    brief = kind in (None, "table") and output is None
    shown = ("run_id", "stage", "recipe", "current", "started", "seconds", "rows", "device") if brief else ("*",)
    _answer(lake, None, lambda opened: opened.query("runs", study=recipe).select(*shown), kind, output)


def _crew(workers: int | None, study: "Study", lake: "Lake") -> "AbstractContextManager[RayCrew | None]":
    """The workers of --workers; 0 stands for as many as the cluster has room for."""
    if workers is None:
        return nullcontext()
    from analysis.crew import RayCrew

    return RayCrew(study, lake, workers or None)


def _open(lake: str, recipe: str | None) -> "AbstractContextManager[OpenLake]":
    import saelake

    return saelake.open(lake, recipe)


def _answer(
    lake: str, recipe: str | None, ask: "Callable[[OpenLake], DuckDBPyRelation]", kind: str | None, output: Path | None
) -> None:
    from queries.formats import show
    from queries.statements import interruptible

    with _open(lake, recipe) as opened:
        interruptible(opened.connection, lambda: show(ask(opened), kind, output))


def _print_runs(lake: str, run_ids: list[str]) -> None:
    from queries.formats import show

    with _open(lake, None) as opened:
        found = opened.query("runs").filter(f"list_contains({run_ids!r}, run_id)")
        show(found.select("run_id", "stage", "seconds", "rows"))


def _print_findings(opened: "OpenLake", judge: str) -> None:
    """What the study came to, by the oracle: K chosen on half of the prompts, every condition's rate there, and Table 1."""
    from queries.formats import show

    own, chosen = (opened.query("k_choice", condition=name, judge=judge) for name in ("top_k_own", "top_k_chosen"))
    choice = own.union(chosen)
    ks = sorted({k for (k,) in choice.select("k").fetchall()})
    rates = opened.query("asr", judge=judge, k=ks).filter("tau is null")
    methods = opened.query("methods", judge=judge)
    for title, found in (
        (
            "Top K features a layer ablated: K chosen on half of the refused harmful prompts (0), reported on the other half (1)",
            choice,
        ),
        (f"Answered prompts by condition, at K = {', '.join(map(str, ks))}", rates),
        ("Critical features by method (Table 1)", methods),
    ):
        click.echo(f"\n{title}")
        show(found.select(f"* exclude ({'judge, tau' if found is rates else 'judge'})"))


for command in (*cli_prepare.COMMANDS, *cli_lake.COMMANDS, *cli_sharing.COMMANDS, *cli_meaning.COMMANDS):
    main.add_command(command)

if __name__ == "__main__":
    main()
