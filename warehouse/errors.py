"""The exception for mistakes that a user can fix: the command line shows it as a sentence, without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb


class UserError(ValueError):
    """What is wrong, where (recipe field, file or row), and how to fix it, in one sentence."""


class LeftOut(UserError):
    """A table is asked for that a shared set left out."""


WITHOUT = " was shared without "
"""What is said of such a table, and of no other: DuckDB passes on nothing of an error but its text."""
MOST_SAID = 300
"""Characters of a library's message that a sentence carries."""
CUT = " ..."
TERSE = 80
"""Characters up to which a message is completed by that of the error's cause: libraries wrap what went wrong in a general one."""


def one_line(error: BaseException) -> str:
    """What an error says, as one line that fits into a sentence.

    All lines of its message count, since libraries put the word that matters into any of them: torch names a missing key in the
    second, transformers opens with an empty one, a KeyError is the key alone. DuckDB's excerpt of the statement is left out.
    """
    text = " ".join(str(error).split("\nLINE ")[0].split())
    if isinstance(error, KeyError) and error.args:
        key = str(error.args[0])
        text = key if " " in key else f"{key!r} is missing"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.strerror}: {error.filename}"
    text = text or type(error).__name__
    cause = error.__cause__
    if cause is not None and len(text) <= TERSE and (why := one_line(cause)) not in text:
        text = f"{text.rstrip('.:')}: {why}"
    text = text.rstrip(".:")
    return text if len(text) <= MOST_SAID else f"{text[: MOST_SAID - len(CUT)].rstrip()}{CUT}"


@contextmanager
def view_errors(con: "duckdb.DuckDBPyConnection | None" = None) -> Iterator[None]:
    """Turns what a view says of a damaged table into UserError, of one that was left out into LeftOut; `con` stays usable."""
    import duckdb

    try:
        yield
    except duckdb.InvalidInputException as error:
        if con is not None:
            with suppress(duckdb.Error):  # there is none, unless DuckDB has begun one for the statement
                con.rollback()
        text = str(error).removeprefix("Invalid Input Error: ")
        if "`saelake " not in text:
            raise
        raise (LeftOut if WITHOUT in text else UserError)(text) from error


@contextmanager
def storage_errors(lake: object) -> Iterator[None]:
    """Turns what the file system refuses (disk full, no permission, read-only) into one sentence about the `lake`."""
    import duckdb

    try:
        yield
    except (OSError, duckdb.OperationalError, duckdb.FatalException) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
        raise UserError(
            f"cannot write to the lake {lake}: {reason}; what is published is intact and what is landed is kept: "
            f"fix the cause and run the same command again"
        ) from error
