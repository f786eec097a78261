"""The groups that commands stand in: how their help lists them, and how every mistake ends in one sentence."""

import codecs
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from saelake.warehouse.literals import is_unicode

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
                raise click.ClickException(_not_text(arg))
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


def _not_text(argument: str) -> str:
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
    from saelake.queries.output import printable
    from saelake.warehouse.damage import HINT
    from saelake.warehouse.errors import UserError, view_errors

    try:
        with view_errors():
            raise error
    except Exception as caught:
        error = caught
    if isinstance(error, UserError):
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
