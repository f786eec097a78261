"""What the commands share: mistakes that end in one sentence, and the options that mean the same everywhere."""

import codecs
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from functools import reduce, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from saelake.warehouse.literals import is_unicode

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from saelake import OpenLake
    from saelake.ingest.recipe import Recipe

Command = Callable[..., Any]
RESUMABLE = ("ingest", "analyze", "judge", "ablate", "steer", "atlas", "audit", "compare", "explain", "synth", "train-saes")
"""Commands that, given again, find what they have finished."""
WRITE_ERRORS = {
    errno.ENOSPC: "disk full at {}: free space",
    errno.EDQUOT: "disk quota used up at {}: free space",
    errno.EFBIG: "file too large for the file system or its limits at {}: free space or raise the limit",
    errno.EROFS: "read-only file system at {}: make it writable",
    errno.EACCES: "no permission at {}: make it readable and writable",
    errno.ENAMETOOLONG: "the name is too long at {}: choose a shorter one",
}
PLAIN = "saelake_ascii"
LONGEST = 2_000
"""Characters of a sentence: what a stranger's file calls something may have millions."""
LONGEST_PLACE = 200
"""Characters of a path that a sentence shows."""


class Listing(click.Group):
    """A group that lists its commands with the whole first sentence of their help, which click would cut."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.short_help = cmd.short_help or " ".join((cmd.help or "").split("\n\n")[0].split())
        super().add_command(cmd, name)


class OneSentence(Listing):
    """A group of commands whose mistakes end in one sentence; SAELAKE_TRACEBACK=1 shows where they come from.

    Its help lists the commands by section, in the order in which they were added.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections: dict[str, Sequence[click.Command]] = {}

    def add_section(self, title: str, commands: Sequence[click.Command]) -> None:
        self.sections[title] = commands
        for command in commands:
            self.add_command(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, self.commands), default=0)
        for title, commands in self.sections.items():
            with formatter.section(title):  # names are padded, so that the columns of all sections are one
                formatter.write_dl([(str(one.name).ljust(widest), one.get_short_help_str()) for one in commands])

    def main(self, *args: Any, **kwargs: Any) -> Any:
        write_any_letter(sys.stdout, sys.stderr)
        return super().main(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for arg in args:
            if not is_unicode(arg):
                raise click.ClickException(_no_text(arg))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            resumes = ctx.invoked_subcommand in RESUMABLE
            click.echo("stopped; the same command continues" if resumes else "stopped", err=True)
            ctx.exit(130)
        except Exception as error:
            if os.environ.get("SAELAKE_TRACEBACK") == "1":
                raise
            raise click.ClickException(sentence(error, ctx.invoked_subcommand in RESUMABLE)) from error


def _no_text(argument: str) -> str:
    content = os.fsencode(argument)
    shown = content.decode("utf-8", "backslashreplace")[:LONGEST_PLACE]
    try:
        content.decode()
    except UnicodeDecodeError:
        return f"the argument {shown!r} is not text in UTF-8"
    return f"this locale has no letters for the argument {shown!r}: set PYTHONUTF8=1, or LC_ALL to one of UTF-8, such as C.UTF-8"


def write_any_letter(*streams: Any) -> None:
    """Lets text of any script be written: as UTF-8 to pipes and files, spelt out on a terminal that cannot show a letter."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            encoding = codecs.lookup(stream.encoding).name if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=PLAIN if encoding == "ascii" else encoding, errors="backslashreplace")


def _plain(name: str) -> codecs.CodecInfo | None:
    """ASCII by a name that click does not know: it writes UTF-8 to what calls itself ASCII, be it a terminal."""
    if name != PLAIN:
        return None
    known = codecs.lookup("ascii")
    return codecs.CodecInfo(*known, known.incrementalencoder, known.incrementaldecoder, name=PLAIN)


codecs.register(_plain)


def sentence(error: Exception, resumes: bool) -> str:
    """What a person can do about an error; `resumes` if the command finds its finished work again."""
    import duckdb

    from saelake.extras import missing
    from saelake.queries import QueryError
    from saelake.queries.formats import printable
    from saelake.warehouse.damage import HINT
    from saelake.warehouse.errors import UserError, view_errors

    try:
        with view_errors():
            raise error
    except Exception as caught:
        error = caught
    if isinstance(error, UserError | QueryError):
        text = str(error)
    elif isinstance(error, ImportError) and (needed := missing(error)):
        text = needed
    elif isinstance(error, duckdb.Error):
        # The first paragraph says what is wrong; what follows quotes the statement.
        text = " ".join(str(error).split("\n\n")[0].split("\nLINE ")[0].split())
        if "/data/" in text and ".parquet" in text:  # a file of a lake, damaged where its size does not show it
            text = f"{text.rstrip('.')}: {HINT}"
    elif isinstance(error, OSError) and error.errno in WRITE_ERRORS:
        kept = ", finished shards are kept" if resumes else ""
        place = str(error.filename or error)
        place = place if len(place) <= LONGEST_PLACE else f"{place[:LONGEST_PLACE]}..."
        text = f"{WRITE_ERRORS[error.errno].format(place)} and run the same command again{kept}"
    else:
        text = f"{type(error).__name__}: {error} (set SAELAKE_TRACEBACK=1 to see where, and report it)"
    text = " ".join(text.split("\n"))
    return printable(text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}")


def read_recipe(name: str, limit: int | None = None) -> "Recipe":
    """The recipe that a command is given, on a few prompts if it says so."""
    from saelake.ingest.recipe import load_recipe

    recipe = load_recipe(name)
    return recipe.limit(limit) if limit else recipe


def read_study(name: str, limit: int | None = None) -> "Recipe":
    """The recipe that a command computes with a model; what that needs is installed, or nothing is begun."""
    from saelake.extras import require

    recipe = read_recipe(name, limit)
    require("compute", "this command")
    return recipe


def open_lake(lake: str, recipe: str | None, files: Sequence[Path] = ()) -> "AbstractContextManager[OpenLake]":
    """The lake that a command asks, with the tables of one study if it is named; of other files only those given are read."""
    import saelake
    from saelake.warehouse.catalog import lock

    opened = saelake.open(lake, recipe)
    lock(opened.connection, opened.lake, files)
    return opened


def lake_option(command: Command) -> Command:
    place: dict[str, Any] = {"default": "lake", "show_default": True, "envvar": "SAELAKE_LAKE", "show_envvar": True}
    return click.option("--lake", metavar="DIR", help="The lake's folder, or s3://bucket/prefix.", **place)(command)


class Workers(click.ParamType):
    """`ray` or `ray:N`."""

    name = "workers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        engine, _, number = value.partition(":")
        if engine != "ray" or (number and not (number.isdecimal() and int(number))) or value.endswith(":"):
            self.fail(f"{value} is neither ray nor ray:N, with N workers", param, ctx)
        return int(number or 0)


def workers_option(command: Command) -> Command:
    text = "Compute on a Ray cluster (RAY_ADDRESS, else one started here) with N workers; by default one per GPU, else processor."
    return click.option("--workers", "n_workers", type=Workers(), metavar="ray[:N]", help=text)(command)


def judges_options(command: Command) -> Command:
    """What no recipe may allow itself."""
    hosts = click.option(
        "--allow-host",
        "hosts",
        multiple=True,
        metavar="HOST",
        help="Let judges of the recipe send prompts and answers to this host, too; to this machine they always may.",
    )
    code = click.option(
        "--allow-code", is_flag=True, help="Run the code of judges that the recipe names by class: look at it first."
    )
    return code(hosts(command))


class Computing(NamedTuple):
    """The options that commands which compute have in common."""

    lake: str
    limit: int | None
    force: bool
    n_workers: int | None = None
    allow_code: bool = False
    hosts: tuple[str, ...] = ()

    def study(self, recipe: str) -> "Recipe":
        """The recipe that is named, within the limit and with what its judges may do."""
        return read_study(recipe, self.limit).allowing(self.allow_code, self.hosts)


def computing_options(*, workers: bool = True, judges: bool = True) -> Callable[[Command], Command]:
    """The options of a command that computes, which it is given as one argument, `computing`.

    Args:
        workers: whether others than this process can compute.
        judges: whether a judge is asked, so that the recipe's may need permission.
    """

    def decorate(command: Command) -> Command:
        @wraps(command)
        def gathered(**given: Any) -> Any:
            common = {name: given.pop(name) for name in Computing._fields if name in given}
            return command(computing=Computing(**common), **given)

        options = [lake_option, limit_option, force_option, *[workers_option] * workers, *[judges_options] * judges]
        return reduce(lambda decorated, option: option(decorated), reversed(options), gathered)

    return decorate


def features_option(command: Command) -> Command:
    text = (
        "LAYER:ID,... (SAE_ID:ID where a layer has several); or a file or a select of rows with the columns sae (an sae_id or a "
        "layer) and feature."
    )
    return click.option("--features", required=True, metavar="LIST", help=text)(command)


def positions_option(command: Command) -> Command:
    text = (
        "Hold them at these positions, from either end, and roles of tokens (bos, template, system, user, assistant; answer: "
        "what is generated), as -1 or user,answer; by default everywhere."
    )
    return click.option("--positions", metavar="LIST", help=text)(command)


def study_option(command: Command) -> Command:
    return click.option("--recipe", metavar="NAME", help="Only this study, where the lake holds several.")(command)


def output_options(command: Command) -> Command:
    # Not click.Choice over queries.formats.FORMATS: help would have to import DuckDB.
    formats = click.Choice(["table", "csv", "json", "parquet"])
    file = click.Path(path_type=Path, dir_okay=False)
    command = click.option(
        "--output",
        "-o",
        type=file,
        metavar="FILE",
        help="Write to a file, whole or not at all; if it holds completions, for its owner alone.",
    )(command)
    by_default = (
        "How rows are written; by default as the file's suffix says, else a table. CSV puts an apostrophe before text that "
        "begins with = + - @, a tab or a carriage return, so that no spreadsheet runs it; numbers stay numbers."
    )
    return click.option("--format", "kind", type=formats, help=by_default)(command)


def limit_option(command: Command) -> Command:
    few = "Only N prompts of each set, label and split: a quick look."
    return click.option("--limit", type=click.IntRange(min=1), metavar="N", help=few)(command)


def force_option(command: Command) -> Command:
    return click.option("--force", is_flag=True, help="Compute again what is published, and compare.")(command)
