"""The commands that take results out of a lake: a report, and data sets that travel from lake to lake."""

from pathlib import Path

import click

from saelake.commands.options import lake_option, listed, study_option


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@lake_option
@study_option
@click.option("--runs", metavar="LIST", help="Only these runs, by id, separated by commas; by default all current ones.")
@click.option("--tables", metavar="LIST", help="Only these tables, separated by commas.")
@click.option("--restrict", multiple=True, metavar="SET", help="Leave out the text of this prompt set too; may be repeated.")
@click.option("--with-completions", is_flag=True, help="Include the completions to all prompts.")
@click.option("--site", is_flag=True, help="Write pages too, which show the set on any static host that answers range requests.")
@click.option(
    "--push", "repository", metavar="ORGANISATION/NAME", help="Then upload it to the hub as this data set, private if new."
)
@click.option("--public", is_flag=True, help="A data set that --push makes is public.")
def share(
    folder: Path,
    lake: str,
    recipe: str | None,
    runs: str | None,
    tables: str | None,
    restrict: tuple[str, ...],
    with_completions: bool,
    site: bool,
    repository: str | None,
    public: bool,
) -> None:
    """Write runs of the lake to FOLDER as a Parquet data set that any reader loads and others can add to their lake.

    Completions to all prompts but those of the control label are left out, and so is the text of prompt sets that their recipe
    calls restricted.
    """
    from functools import partial

    from saelake.warehouse.catalog import one_study
    from saelake.warehouse.lake import Lake
    from saelake.warehouse.progress import Bar
    from saelake.warehouse.sharing.push import push, require_login
    from saelake.warehouse.sharing.share import Choice
    from saelake.warehouse.sharing.share import share as share_runs

    if repository:
        require_login()
    opened = Lake.existing(lake)
    choice = Choice(recipe, listed(runs), listed(tables), restrict, with_completions, by_ranges=site)
    pages = None
    if site:
        from saelake.analysis.static_pages.write import write_pages

        pages = partial(write_pages, study=one_study(opened, recipe))
    with Bar() as progress:
        records = share_runs(opened, folder, choice, progress, pages)
    files = [file for record in records for file in record.files]
    click.echo(
        f"{folder}: {len(records)} runs, {len(files)} files, {sum(f.n_bytes for f in files):,} bytes; README.md is its card"
    )
    left_out = sorted({name for record in records for name in record.withheld})
    if left_out:
        click.echo(f"left out, in part or whole: {', '.join(left_out)}")
    if site:
        click.echo(f"{folder / 'index.html'}: pages of {one_study(opened, recipe)}, to be served by any static host")
    if repository:
        click.echo(f"pushed to {push(folder, repository, public=public)}")


@click.command()
@click.argument("source")
@lake_option
@click.option("--as", "name", metavar="NAME", help="What its study is called here, where the lake has one of that name.")
def add(source: str, lake: str, name: str | None) -> None:
    """Verify the shared set at SOURCE and publish its runs in the lake, beside those that are there.

    SOURCE is a folder that `saelake share` wrote, hf://datasets/ORGANISATION/NAME or s3://bucket/prefix. The lake is made if it
    is not there.
    """
    from saelake.warehouse.lake import Lake
    from saelake.warehouse.progress import Bar
    from saelake.warehouse.sharing.add import add as add_set
    from saelake.warehouse.sharing.read import read_records
    from saelake.warehouse.sharing.sources import fetched

    with fetched(source) as folder, Bar() as progress:
        read_records(folder)  # before there is a lake: a mistake leaves nothing behind
        added = add_set(Lake.create(lake), folder, name=name, progress=progress)
    click.echo(f"{len(added.published)} runs added, {len(added.known)} were there; study: {', '.join(added.studies)}")


@click.command()
@lake_option
@study_option
@click.option(
    "--output",
    "-o",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    metavar="FILE",
    help="The page, one HTML file that needs nothing else.",
)
@click.option("--with-completions", is_flag=True, help="Include the completions to target prompts, folded.")
@click.option(
    "--claims", is_flag=True, help="Print what the study shows of each of the paper's claims, and what it cannot; write no page."
)
def report(lake: str, recipe: str | None, target: Path, with_completions: bool, claims: bool) -> None:
    """Write every table and figure of a study to one HTML page that works offline.

    It is made from the lake's tables alone: nothing is computed. What has not been run says so and names the command.
    """
    from saelake.analysis.report.page import claims_of, write_report
    from saelake.queries.output import printable
    from saelake.warehouse.lake import Lake

    if claims:
        for one in claims_of(Lake.existing(lake), recipe):
            click.echo(f"{one.row}  {printable(one.claim)}")
            click.echo(f"    shows: {printable(one.shows)}\n    cannot show: {printable(one.cannot)}")
        return
    n_bytes = write_report(Lake.existing(lake), recipe, target, with_completions=with_completions)
    click.echo(f"{target}: {n_bytes:,} bytes")


COMMANDS = (report, share, add)
