"""saelake compare: the model of a recipe in several libraries side by side."""

import click

from saelake.commands.options import force_option, lake_option, limit_option, open_lake, read_study


@click.command()
@click.argument("recipe")
@click.option(
    "--backends",
    default="transformers,transformer_lens",
    show_default=True,
    metavar="LIST",
    help="transformers (always the reference), padded (its batches), transformer_lens, nnsight.",
)
@click.option("--prompts", "n_prompts", type=click.IntRange(min=1), default=8, show_default=True, help="Prompts that are read.")
@lake_option
@limit_option
@force_option
def compare(recipe: str, backends: str, n_prompts: int, lake: str, limit: int | None, force: bool) -> None:
    """Read prompts of RECIPE's analysis with several libraries that run its model, and say where two of them part first.

    RECIPE is a .toml file or the name of a shipped one. Ingests if needed. What each reads is a run of its own, in the table
    readings; `saelake query backends` shows the first place again. Two part where their values lie farther apart than rounding
    explains, which is measured on the model itself.
    """
    study = read_study(recipe, limit).sending_nothing()
    from saelake.analysis import backends as side_by_side
    from saelake.commands.computed import print_runs
    from saelake.ingest.backends.opening import check_backends
    from saelake.ingest.study import open_study
    from saelake.warehouse.lake import Lake
    from saelake.warehouse.progress import Bar

    names = [name.strip() for name in backends.split(",") if name.strip()]
    check_backends(names)
    opened_study = open_study(study)
    with Bar() as progress:
        into = Lake.create(lake)
        records = side_by_side.compare_study(opened_study, into, names, n_prompts, force=force, progress=progress)
    print_runs(lake, [record.run_id for record in records])
    with open_lake(lake, study.name) as opened:
        for parting in side_by_side.partings(opened.query("backends")):
            if parting.backend in names:
                click.echo(parting)
                if parting.parts:
                    (text,) = opened.sql("select text from prompts where prompt_id = $1", [parting.prompt]).fetchall()[0]
                    click.echo(f"  prompt {parting.prompt}: {text!r}")


COMMANDS = (compare,)
