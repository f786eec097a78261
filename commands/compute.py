"""The commands that compute a study, ingest, analyze and ablate, or compare its trainings; and status: what is left to do."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saelake.commands.computed import print_findings, print_runs, workers_of
from saelake.commands.options import (
    Computing,
    computing_options,
    features_option,
    judges_options,
    lake_option,
    limit_option,
    open_lake,
    output_options,
    positions_option,
    read_recipe,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@click.command()
@click.argument("recipe")
@computing_options(judges=False)
def ingest(recipe: str, computing: Computing) -> None:
    """Run RECIPE's prompts through its model and SAEs into the lake.

    RECIPE is a .toml file or the name of a shipped one. Finds what is there, resumes what was stopped.
    """
    study = computing.study(recipe)  # before the imports: a mistake in it is reported at once
    from saelake.ingest.job import ingest_study
    from saelake.ingest.runs import ingest_runs
    from saelake.ingest.study import open_study
    from saelake.warehouse.lake import Lake
    from saelake.warehouse.progress import Bar

    opened = open_study(study)  # before there is a lake: a mistake leaves nothing behind
    with Bar() as progress, workers_of(computing.n_workers, opened, Lake.at(computing.lake)) as workers:
        into = Lake.create(computing.lake)
        compute = partial(workers.ingest, opened, ingest_runs(opened, into)) if workers else None
        found = ingest_study(opened, into, force=computing.force, progress=progress, compute=compute)
    print_runs(computing.lake, found.run_ids)


@click.command()
@click.argument("recipe")
@computing_options()
def analyze(recipe: str, computing: Computing) -> None:
    """Bring every stage of RECIPE up to date, ingest included, and show what came out.

    RECIPE is a .toml file or the name of a shipped one. Finds what is there, resumes what was stopped.
    """
    study = computing.study(recipe)  # before the imports: a mistake in it is reported at once
    from saelake.analysis import verbs
    from saelake.analysis.search.directions import NoDirection
    from saelake.queries.fetched import ShownRows
    from saelake.queries.output import show_table
    from saelake.warehouse.lake import Lake
    from saelake.warehouse.progress import Bar

    analysed = verbs.open_analysis(study)  # before there is a lake: a mistake leaves nothing behind
    with Bar() as progress, workers_of(computing.n_workers, analysed, Lake.at(computing.lake)) as workers:
        into = Lake.create(computing.lake)
        try:
            records = verbs.analyze_study(analysed, into, force=computing.force, progress=progress, workers=workers)
        except NoDirection as end:
            types = ["INTEGER"] * 3 + ["FLOAT"] * 2 + ["VARCHAR"]
            show_table(ShownRows(end.names, types, iter(end.rows)), sys.stdout)
            click.echo(str(end))  # an answer, as far as the study goes
            return
    print_runs(computing.lake, [record.run_id for record in records])
    with open_lake(computing.lake, study.name) as opened:
        print_findings(opened, study.verdicts.oracle, study.words)


@click.command()
@click.argument("recipe")
@features_option
@click.option("--condition", required=True, metavar="NAME", help="What the answers are called in ablations.condition.")
@click.option("--value", type=float, default=0.0, show_default=True, help="Clamp them to this activation; 0 ablates.")
@positions_option
@computing_options(workers=False)
def ablate(recipe: str, features: str, condition: str, value: float, positions: str | None, computing: Computing) -> None:
    """Ablate or clamp features of your choice together on the prompts of RECIPE's analysis, and show the shares that flip.

    RECIPE is a .toml file or the name of a shipped one. Ingests if needed. The same NAME with other features replaces it. Rows of
    a file (.csv, .json, .jsonl, .parquet, ...) or a select may say value and positions of each feature; --value and --positions
    are for those that do not.
    """
    study = computing.study(recipe)
    from saelake.analysis import verbs
    from saelake.queries.output import show
    from saelake.warehouse.lake import Lake
    from saelake.warehouse.literals import literal
    from saelake.warehouse.progress import Bar

    held: dict[str, Any] = {"value": value, "positions": positions}
    # Before there is a lake, as above.
    opened_study = verbs.open_ablation(study, Lake.at(computing.lake), condition, features, **held)
    with Bar() as progress:
        into = Lake.create(computing.lake)
        record = verbs.ablate_study(opened_study, into, condition, features, **held, force=computing.force, progress=progress)
    print_runs(computing.lake, [record.run_id])
    with open_lake(computing.lake, study.name) as opened:
        rates = opened.query("asr", judge=study.verdicts.oracle).filter(f"condition in ('none', {literal(condition)})")
        if not rates.filter("condition = 'none'").fetchall():
            rates = rates.select("* replace (null as n_refused_at_baseline)")
            click.echo(f"what the unmodified model answers is not known here: `saelake analyze {recipe}` computes it")
        show(rates.select("condition", "label", "n_prompts", "asr", "n_refused_at_baseline", "asr_of_refused"))


@click.command()
@click.argument("recipe")
@click.argument("other")
@click.option(
    "--min-cosine", type=float, default=0.7, show_default=True, help="Least cosine of two decoder rows that count as one feature."
)
@lake_option
@limit_option
@output_options
def trainings(
    recipe: str, other: str, min_cosine: float, lake: str, limit: int | None, kind: str | None, output: Path | None
) -> None:
    """Show how far RECIPE and OTHER, whose SAEs were trained from different seeds, find the same minimal sets.

    Both are .toml files or names of shipped ones, which are analysed in the lake already. Features are matched by their decoder
    rows; jaccard is the mean over prompts.
    """
    mine, theirs = read_recipe(recipe, limit), read_recipe(other, limit)
    from dataclasses import asdict

    import pyarrow as pa

    from saelake.analysis.interactions.retrained import compare_trainings
    from saelake.queries.output import show
    from saelake.warehouse.lake import Lake

    found = compare_trainings(Lake.existing(lake), mine, theirs, min_cosine)
    import duckdb

    with duckdb.connect() as con:
        show(con.from_arrow(pa.Table.from_pylist([asdict(found)])), kind, output)


@click.command()
@click.argument("recipe")
@lake_option
@limit_option
@judges_options
def status(recipe: str, lake: str, limit: int | None, allow_code: bool, hosts: tuple[str, ...]) -> None:
    """Show which stages of RECIPE are done, and why the others are not.

    RECIPE is a .toml file or the name of a shipped one.
    """
    study = read_recipe(recipe, limit).allowing(allow_code, hosts)
    from saelake.analysis.notices import reasoning_notice, target_notice
    from saelake.analysis.study_status import study_status
    from saelake.ingest.loading import read_targets
    from saelake.queries.fetched import ShownRows
    from saelake.queries.output import show_table
    from saelake.warehouse.lake import Lake

    to_be_made = not Lake.at(lake).published.names("")
    kept = Lake.at(lake) if to_be_made else Lake.existing(lake)
    found = study_status(study, kept)
    notices = [reasoning_notice(study)]
    if any(s.stage == "baseline" and s.state == "done" for s in found) and (study.name, "baseline") in kept.current():
        with open_lake(lake, study.name) as opened:
            notices.append(_unless_left_out(lambda: target_notice(opened.connection, study.words)))
    names = ("stage", "state", "run_id", "why")
    show_table(ShownRows(names, ["VARCHAR"] * 4, iter([[getattr(s, name) or None for name in names] for s in found])), sys.stdout)
    click.echo(f"\ntarget tokens: {', '.join(map(str, read_targets(study.model)))}")
    for notice in filter(None, notices):
        click.echo(f"! {notice}")


def _unless_left_out(look: "Callable[[], str | None]") -> str | None:
    """What is noticed in a study's tables; nothing where it came without one of them."""
    from saelake.warehouse.errors import LeftOut, view_errors

    try:
        with view_errors():
            return look()
    except LeftOut:
        return None


COMMANDS = (ingest, analyze, status, ablate, trainings)
