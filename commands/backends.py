"""saelake compare: the model of a recipe, as several libraries run it, side by side."""

import click

from saelake.commands.options import Computing, computing_options, listed, open_lake


@click.command()
@click.argument("recipe")
@click.option(
    "--backends",
    default="transformers,transformer_lens",
    show_default=True,
    metavar="LIST",
    help="What reads them: transformers (always, as the reference), padded (its batches), transformer_lens, nnsight.",
)
@click.option(
    "--prompts", "n_prompts", type=click.IntRange(min=1), default=8, show_default=True, metavar="N", help="How many are read."
)
@computing_options(workers=False, judges=False)
def compare(recipe: str, backends: str, n_prompts: int, computing: Computing) -> None:
    """Read prompts of RECIPE's analysis with several libraries that run its model, and say where each first diverges.

    RECIPE is a .toml file or the name of a shipped one. Ingests if needed. What each library reads is a run of its own, in the
    table readings; `saelake query backends` shows the first divergence again. Two libraries diverge where their values lie
    farther apart than rounding explains, which is measured on the model itself.
    """
    study = computing.study(recipe).sending_nothing()
    from saelake.analysis import backends as side_by_side
    from saelake.commands.computed import print_runs
    from saelake.ingest.backends.opening import check_backends
    from saelake.ingest.study import open_study
    from saelake.warehouse.lake import Lake
    from saelake.warehouse.progress import Bar

    names = listed(backends)
    check_backends(names)
    opened_study = open_study(study)
    with Bar() as progress:
        into = Lake.create(computing.lake)
        records = side_by_side.compare_study(opened_study, into, names, n_prompts, force=computing.force, progress=progress)
    print_runs(computing.lake, [record.run_id for record in records])
    with open_lake(computing.lake, study.name) as opened:
        for parting in side_by_side.partings(opened.query("backends")):
            if parting.backend in names:
                click.echo(parting)
                if parting.parts:
                    (text,) = opened.sql("select text from prompts where prompt_id = $1", [parting.prompt]).fetchall()[0]
                    click.echo(f"  prompt {parting.prompt}: {text!r}")


COMMANDS = (compare,)
