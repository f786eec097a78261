"""The commands for looking at features: fetch explanations, let people annotate, browse the explorer."""

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from saelake.commands.groups import Listing
from saelake.commands.options import Command, force_option, lake_option, read_study, study_option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def server_options(command: Command) -> Command:
    port = click.option(
        "--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="Port to listen on; 0 takes a free one."
    )
    return click.option(
        "--host", default="127.0.0.1", show_default=True, help="Address to listen on; another one lets other machines in."
    )(port(command))


@click.command()
@click.argument("recipe")
@click.option("--source", required=True, metavar="SOURCE", help="neuronpedia, neuronpedia-bulk, or a file of your own.")
@lake_option
@force_option
def explain(recipe: str, source: str, lake: str, force: bool) -> None:
    """Bring explanations of RECIPE's features into the lake: public ones of exactly these SAEs, or your own.

    RECIPE is a .toml file or the name of a shipped one, which is analysed in the lake already. neuronpedia asks its API for the
    features that the stages found, neuronpedia-bulk takes whole SAEs; a .csv, .jsonl, .json or .parquet file needs the columns
    sae_id, feature_id and description. What was stopped continues.
    """
    from saelake.analysis.meaning.explanations import explain as fetch
    from saelake.ingest.recipe import load_recipe
    from saelake.warehouse.lake import Lake
    from saelake.warehouse.progress import Bar

    study = load_recipe(recipe)
    with Bar() as progress:
        record = fetch(study, Lake.existing(lake), source, force=force, progress=progress)
    click.echo(f"{record.run_id}: {record.n_rows('explanations'):,} explanations")


@click.group(cls=Listing)
def study() -> None:
    """Annotation studies: do people see in a feature what it fires on?"""


def _drawn_option(flag: str, name: str, default: int, words: str) -> "Callable[[Command], Command]":
    """How many features of a kind are drawn."""
    return click.option(flag, name, type=click.IntRange(min=0), default=default, show_default=True, help=words)


@study.command()
@click.argument("name")
@click.option(
    "--annotator",
    "annotators",
    multiple=True,
    metavar="NAME",
    help="An annotator, once for each; by default three without names.",
)
@_drawn_option("--per-group", "per_group", 10, "Critical features for each number of categories.")
@_drawn_option("--random", "n_random", 23, "Random features that fire on prompts with a category.")
@_drawn_option("--silent", "n_silent", 7, "Features that fire on none of these.")
@click.option(
    "--population",
    type=click.Choice(["candidates", "critical", "stage3", "stage3_new", "redundant"]),
    default="stage3",
    show_default=True,
    help="Which features count as critical.",
)
@click.option(
    "--mapping",
    type=click.Choice(["literal", "user"]),
    default="literal",
    show_default=True,
    help="Categories are counted by firing anywhere (literal) or on the user's tokens (user).",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the draw and the order.")
@lake_option
@study_option
def create(
    name: str,
    annotators: tuple[str, ...],
    per_group: int,
    n_random: int,
    n_silent: int,
    population: str,
    mapping: str,
    seed: int,
    lake: str,
    recipe: str | None,
) -> None:
    """Draw the features of an annotation study called NAME, blind and shuffled: critical, random and silent ones."""
    from saelake.analysis.meaning import annotation_study as studies
    from saelake.warehouse.catalog import one_study
    from saelake.warehouse.lake import Lake

    opened = Lake.existing(lake)
    people = annotators or ("annotator-1", "annotator-2", "annotator-3")
    sampling = studies.Sampling(population, mapping, per_group, n_random, n_silent, seed)
    made = studies.create(opened, one_study(opened, recipe), name, people, sampling)
    strata = [item.stratum for item in made.items]
    counts = ", ".join(f"{strata.count(stratum)} {stratum}" for stratum in ("critical", "random", "silent"))
    click.echo(f"{len(strata)} features: {counts}; `saelake annotate {name}` shows them to {', '.join(people)}")


@click.command()
@click.argument("name")
@server_options
@lake_option
def annotate(name: str, host: str, port: int, lake: str) -> None:
    """Serve the annotation study NAME as a local page, with a link for each annotator, until it is interrupted.

    Whoever has a link can answer as that person. Answers are on disk before the next feature is shown.
    """
    _check_installed()
    from saelake.analysis.meaning import annotation_study as studies
    from saelake.analysis.meaning.annotating import add_study
    from saelake.analysis.served.server import LOOPBACK, listen, new_app, serve
    from saelake.warehouse.lake import Lake

    opened = Lake.existing(lake)
    loaded = studies.load(opened, name)
    with listen(host, port) as listening:
        app = new_app(LOOPBACK if host in LOOPBACK else ())
        add_study(app, opened, loaded)
        done = {one: len(mine) for one, mine in studies.state(opened, loaded).answers.items()}
        paths = {f"{one} ({done[one]} of {len(loaded.items)})": f"/a/{token}" for one, token in loaded.tokens.items()}
        _print_links(host, listening.getsockname()[1], paths)
        with suppress(KeyboardInterrupt):
            serve(app, listening)


@click.command()
@server_options
@lake_option
@study_option
@click.option(
    "--live", metavar="RECIPE", help="Load the subject and SAEs of RECIPE, whose study is shown, and let edits be tried."
)
def browse(host: str, port: int, lake: str, recipe: str | None, live: str | None) -> None:
    """Serve the explorer of a study as local pages, until it is interrupted.

    It has lists of features with a card each, prompts, conditions, runs and SQL; with --live, prompts of your own are answered
    under edits, beside the unmodified model. Only the printed link opens it. It shows what features fire on: do not give it to
    the annotators of an annotation study.
    """
    _check_installed()
    import secrets
    from contextlib import closing

    from saelake.analysis.explorer.explorer import add_explorer
    from saelake.analysis.explorer.study import ShownStudy
    from saelake.analysis.served.server import LOOPBACK, listen, new_app, serve
    from saelake.warehouse.catalog import one_study
    from saelake.warehouse.errors import UserError
    from saelake.warehouse.lake import Lake

    subject = None if live is None else read_study(live)
    if subject is not None and recipe not in (None, subject.name):
        raise UserError(f"--live {live} is the study {subject.name}, not {recipe}: name one of them")
    opened = Lake.existing(lake)
    study = one_study(opened, recipe if subject is None else subject.name)
    with (
        listen(host, port) as listening,
        closing(ShownStudy.open(opened, study, secrets.token_urlsafe(16), live is not None)) as shown,
    ):
        app = new_app(LOOPBACK if host in LOOPBACK else ())
        with suppress(KeyboardInterrupt):
            if subject is None:
                add_explorer(app, shown)
            else:
                from saelake.analysis.explorer.live import Live

                add_explorer(app, shown, Live(subject))
            _print_links(host, listening.getsockname()[1], {study: shown.base})
            serve(app, listening)


@study.command()
@click.argument("name")
@click.option("--unfinished", is_flag=True, help="Close although answers are missing.")
@lake_option
def close(name: str, unfinished: bool, lake: str) -> None:
    """Publish the answers of the annotation study NAME as a run; it takes none from then on."""
    from saelake.analysis.meaning import annotation_study as studies
    from saelake.warehouse.lake import Lake

    opened = Lake.existing(lake)
    loaded = studies.load(opened, name)
    record = studies.close(opened, loaded, unfinished=unfinished)
    n = sum(len(mine) for mine in studies.state(opened, loaded).answers.values())
    click.echo(f"{record.run_id}: {n:,} answers; `saelake study score {name}` compares them with what the features fire on")


@study.command()
@click.argument("name")
@click.option(
    "--mapping",
    type=click.Choice(["literal", "user", "specific"]),
    default="literal",
    show_default=True,
    help="True categories: fires anywhere in their prompts (literal), on the user's tokens (user), more than chance (specific).",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the bootstrap.")
@lake_option
def score(name: str, mapping: str, seed: int, lake: str) -> None:
    """Score the annotation study NAME, which is closed: accuracy, precision, Krippendorff's alpha and Cohen's kappa.

    Intervals are 95% from a bootstrap over features.
    """
    import sys

    from saelake.analysis.meaning import annotation_study as studies
    from saelake.analysis.meaning import scores
    from saelake.queries.fetched import ShownRows
    from saelake.queries.output import show_table
    from saelake.warehouse.lake import Lake

    opened = Lake.existing(lake)
    loaded = studies.load(opened, name)
    found = scores.score(opened, loaded, mapping=mapping, seed=seed)
    names, types = ("measure", "of", "features", "estimate", "low", "high"), ["VARCHAR", "VARCHAR", "INTEGER", *["DOUBLE"] * 3]
    rows: list[list[Any]] = [[one.measure, one.of, one.measured.n, *map(_number, one.measured[1:])] for one in found]
    show_table(ShownRows(names, types, iter(rows)), sys.stdout)


def _number(value: float) -> float | None:
    return None if value != value else value


def _check_installed() -> None:
    from saelake.extras import require

    require("annotate", "a page that is served")


def _print_links(host: str, port: int, paths: "Mapping[str, str]") -> None:
    """The addresses to open, by whom or what they are for; nobody else can guess them."""
    from saelake.queries.output import printable

    shown = f"[{host}]" if ":" in host else host
    for who, path in paths.items():
        click.echo(printable(f"{who}: http://{shown}:{port}{path}"))


COMMANDS = (explain, study, annotate, browse)
