"""The commands that come before there is a lake: what a study needs, and SAEs where there are none."""

import sys
from typing import TYPE_CHECKING

import click

from saelake.commands.options import limit_option, read_recipe, read_study

if TYPE_CHECKING:
    from saelake.analysis.trial import Trial


@click.command()
@click.argument("recipe")
@limit_option
@click.option(
    "--measure/--no-measure", default=None, help="Capture a sample to estimate rows and bytes; by default where it is quick."
)
@click.option(
    "--trial",
    type=click.IntRange(min=1),
    metavar="N",
    help="Time N prompts in each kind of pass, and every stage by that; model, SAEs and prompts must be here.",
)
@click.option("--format", "kind", type=click.Choice(["table", "json"]), default="table", help="How the plan is written.")
def plan(recipe: str, limit: int | None, measure: bool | None, trial: int | None, kind: str) -> None:
    """Show what RECIPE needs before it downloads anything: access, sizes, memory, rows and bytes, passes and hours.

    RECIPE is a .toml file or the name of a shipped one. Ends with exit code 1 where a licence or memory is missing.
    """
    study = read_recipe(recipe, limit)
    import json
    import shutil

    from saelake.ingest.plan.estimate import make_plan
    from saelake.ingest.plan.table import render

    found = make_plan(study, measure=measure)
    tried = None
    if trial is not None and not found.problems:
        from saelake.analysis.trial import try_study

        tried = try_study(study, trial, found.stages)
    if kind == "json":
        click.echo(json.dumps(found.to_json() | ({"trial": tried.to_json()} if tried else {}), indent=1))
    else:
        click.echo(render(found, shutil.get_terminal_size((120, 24)).columns))
        if tried:
            _show(tried)
    sys.exit(1 if found.problems else 0)


def _show(trial: "Trial") -> None:
    from saelake.ingest.plan.table import size, time
    from saelake.queries.fetched import ShownRows
    from saelake.queries.output import show_table

    kinds = trial.kinds
    click.echo(
        f"\ntrial · {trial.n_prompts} prompts, ms a pass: {kinds.captured * 1e3:.3g} read by every SAE, "
        f"{kinds.ablated * 1e3:.3g} ablated, {kinds.answered * 1e3:.3g} ablated and answered"
    )
    shown = [[one.stage, one.passes, one.answers, round(one.seconds, 1)] for one in trial.stages]
    kinds_of = ["VARCHAR", "BIGINT", "BIGINT", "DOUBLE"]
    show_table(ShownRows(("stage", "passes", "answers", "seconds"), kinds_of, iter(shown)), sys.stdout)
    click.echo(f"all: {time(trial.seconds / 3600)}; the trial took {size(trial.memory)} of memory")


@click.command("train-saes")
@click.argument("recipe")
@click.option("--force", is_flag=True, help="Train new SAEs in the place of those that are there.")
@click.option("--update", is_flag=True, help="Train only what is missing or was made from something else than RECIPE names now.")
def train_saes(recipe: str, force: bool, update: bool) -> None:
    """Train SAEs on RECIPE's model, where there are no public ones, into the folders that its saes.path names.

    RECIPE is a .toml file or the name of a shipped one; its [train_saes] says how. They must explain enough of the variance with
    about as many active latents as asked for, on texts that they have not seen, or none is kept. Of several [[saes]] those are
    trained whose folders are missing; SAEs of one layer differ by their seed. A training that was killed goes on from the SAEs
    that were finished.
    """
    if force and update:
        raise click.UsageError("--force trains all SAEs, --update only some: give one of them")
    study = read_study(recipe)
    from saelake.ingest.saes.train import train_saes as train
    from saelake.queries.fetched import ShownRows
    from saelake.queries.output import show_table
    from saelake.warehouse.progress import Bar

    with Bar() as progress:
        trained = train(study, force=force, update=update, progress=progress)
    if not trained:
        click.echo("all SAEs are there, made from what the recipe names")
        return
    names = ("layer", "explained_variance", "l0", "dead", "folder")
    shown = [[one.layer, *(round(value, 4) for value in one.fit), str(one.folder)] for one in trained]
    show_table(ShownRows(names, ["INTEGER", "DOUBLE", "DOUBLE", "DOUBLE", "VARCHAR"], iter(shown)), sys.stdout)


COMMANDS = (plan, train_saes)
