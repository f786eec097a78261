"""The commands that bring in what other tools have written, and write what they read."""

from pathlib import Path

import click

from saelake.commands.options import lake_option
from saelake.formats.names import names

LISTED = ", ".join(names())


@click.command(
    "import",
    help=f"""Verify what another tool has written and publish it in the lake, as a run that says where it is from.

    The formats are {LISTED}; docs/formats.md says whether FORMAT is read, what it holds and which options it has. SOURCE is
    a file or, of some, a folder. What the lake holds stays as it is; the run can be dropped like any other.
    """,
)
@click.argument("format")
@click.argument("source")
@lake_option
@click.option("--recipe", metavar="NAME", help="The study that it joins, where the lake holds several; or a new one's name.")
@click.option("--sae", metavar="SAE_ID", help="The SAE that it is about, where it does not say so itself.")
@click.option("--layer", type=click.IntRange(min=0), metavar="N", help="The layer whose resid_post a vector is a direction of.")
@click.option("--judge", metavar="NAME", help="What the judge of its verdicts is called; phrases reads answers that have none.")
@click.option("--refused", metavar="COLUMN", help="The column, or metric, that is true or 1 where an answer is a refusal.")
@click.option("--condition", metavar="NAME", help="Under what its answers were given. [default: none, the unmodified model]")
@click.option(
    "--label", type=click.Choice(["target", "control", "other"]), help="What its prompts are taken for. [default: target]"
)
@click.option(
    "--weights", metavar="FOLDER", help="Where the weights of SAEs are that encode what it holds; {layer} is filled in."
)
@click.option(
    "--tokenizer", metavar="PLACE", help="The tokenizer of its token ids, a folder or hub id: compared with the study's."
)
@click.option("--model", metavar="NAME", help="What it calls the study's model, where that is another name.")
def import_(
    format: str,
    source: str,
    lake: str,
    recipe: str | None,
    sae: str | None,
    layer: int | None,
    judge: str | None,
    refused: str | None,
    condition: str | None,
    label: str | None,
    weights: str | None,
    tokenizer: str | None,
    model: str | None,
) -> None:
    from saelake.formats.registry import Asked
    from saelake.formats.transfer import bring_in
    from saelake.queries.output import printable
    from saelake.warehouse.progress import Bar

    asked = Asked(recipe, sae, layer, judge, refused, condition, label, weights=weights, tokenizer=tokenizer, model=model)
    with Bar() as progress:
        record = bring_in(lake, format, source, asked, progress)
    click.echo(f"{record.run_id}: " + ", ".join(f"{table.n_rows:,} {table.name}" for table in record.tables))
    for what, value in record.about.items():
        click.echo(printable(f"  {what}: {value}"))


@click.command(
    help=f"""Write what a study holds as files that another tool reads, into the new or empty folder DIR.

    The formats are {LISTED}; docs/formats.md says whether FORMAT is written, and with which options.
    """
)
@click.argument("format")
@click.argument("dir", type=click.Path(path_type=Path))
@lake_option
@click.option("--recipe", metavar="NAME", help="Only this study, where the lake holds several.")
@click.option("--sae", metavar="SAE_ID", help="Only this SAE.")
@click.option(
    "--features",
    metavar="LIST",
    help="These features: LAYER:ID,..., or a file or a select of rows with the columns sae and feature.",
)
def export(format: str, dir: Path, lake: str, recipe: str | None, sae: str | None, features: str | None) -> None:
    from saelake.formats.registry import Asked
    from saelake.formats.transfer import write_out

    written = write_out(lake, format, dir, Asked(recipe, sae, features=features))
    for file, n_rows in written.items():
        click.echo(f"{dir / file}: {n_rows:,} rows")


COMMANDS = (import_, export)
