"""The commands that maintain a lake: check it, drop a run, collect garbage, make a synthetic one."""

import sys

import click

from saelake.commands.options import lake_option


@click.command()
@lake_option
def check(lake: str) -> None:
    """Read everything in the lake and say what is damaged, and which run to repeat.

    Files are read through pyarrow with page checksums; hashes, counts, ranges and keys between tables are compared. Ends with
    exit code 1 if anything is damaged; garbage that no run lists is only noted.
    """
    from saelake.queries.output import printable
    from saelake.warehouse.check import check as check_lake
    from saelake.warehouse.lake import Lake
    from saelake.warehouse.progress import Bar

    opened = Lake.existing(lake)
    with Bar() as progress:
        findings = check_lake(opened, progress)
    for finding in findings:
        click.echo(printable(str(finding)))
    damaged = [finding for finding in findings if not finding.note]
    n_runs = len(opened.run_ids())
    click.echo(f"{len(damaged)} damaged, in {n_runs} runs" if damaged else f"sound: {n_runs} runs")
    sys.exit(1 if damaged else 0)


@click.command()
@click.argument("run_id")
@lake_option
def drop(run_id: str, lake: str) -> None:
    """Take the run RUN_ID out of the lake; refuses while other runs depend on it.

    Its files stay until `saelake gc`, so that whoever reads them now can finish. Repeat a drop that was killed.
    """
    from saelake.warehouse.housekeeping import drop as drop_run
    from saelake.warehouse.lake import Lake

    is_new = drop_run(Lake.existing(lake), run_id)
    click.echo(f"{'dropped' if is_new else 'already dropped:'} {run_id}; `saelake gc` frees its space")


@click.command()
@lake_option
@click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
@click.option("--landings", is_flag=True, help="Delete also the landed shards of unfinished runs, which could be resumed.")
@click.option(
    "--older-than", type=click.FloatRange(min=0), metavar="MINUTES", help="Keep what is newer. [default: 15, on S3 a day]"
)
def gc(lake: str, dry_run: bool, landings: bool, older_than: float | None) -> None:
    """Delete the files that no run record lists: those of dropped runs, and what killed processes left.

    A catalog.duckdb that a killed process left older than the runs is built again, as `check` does too.
    """
    from saelake.queries.output import printable
    from saelake.warehouse.housekeeping import gc as collect
    from saelake.warehouse.lake import Lake

    opened, seconds = Lake.existing(lake), None if older_than is None else older_than * 60
    garbage = collect(opened, dry_run=dry_run, older_than_seconds=seconds, landings=landings)
    for one in garbage:
        click.echo(printable(f"{one.n_bytes:>14,}  {one.path}  ({one.why})"))
    freed = sum(one.n_bytes for one in garbage)
    click.echo(f"{freed:,} bytes {'would be' if dry_run else 'were'} freed")
    if older_than is None:
        young = sum(one.n_bytes for one in collect(opened, dry_run=True, older_than_seconds=0, landings=landings))
        if young := young - (freed if dry_run else 0):
            click.echo(f"{young:,} bytes are kept a while for those who may still read them; --older-than 0 deletes them too")


@click.command()
@lake_option
@click.option("--rows", type=click.IntRange(min=1), default=1_000_000, show_default=True, help="About so many activations.")
@click.option("--layers", type=click.IntRange(1, 1 << 15), default=14, show_default=True, help="Layers, with one SAE each.")
@click.option("--width", type=click.IntRange(min=8), default=65_536, show_default=True, help="Features a layer.")
@click.option("--l0", type=click.FloatRange(min=1), default=73, show_default=True, help="Mean active features a token.")
@click.option(
    "--zipf", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Exponent of the rates at which features fire."
)
@click.option(
    "--round",
    "rounding",
    type=click.Choice(["bfloat16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="What activations are rounded to.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all that is drawn.")
def synth(lake: str, rows: int, layers: int, width: int, l0: float, zipf: float, rounding: str, seed: int) -> None:
    """Make a synthetic lake with the shape of a real one, for benchmarks and capacity planning.

    It is the ingest run of a study called synth; every shipped question works on it.
    """
    from saelake.warehouse.lake import Lake
    from saelake.warehouse.progress import Bar
    from saelake.warehouse.synth import Shape, synthesize

    shape = Shape.of_rows(rows, n_layers=layers, width=width, l0=l0, zipf=zipf, round=rounding)
    with Bar() as progress:
        record = synthesize(Lake.create(lake), shape, seed=seed, progress=progress)
    click.echo(f"{record.run_id}: {record.n_rows('activations'):,} activations in {sum(f.n_bytes for f in record.files):,} bytes")


COMMANDS = (check, drop, gc, synth)
