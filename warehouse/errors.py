"""The one exception for mistakes that a user can mend; the command line shows it as a sentence, without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb


class UserError(ValueError):
    """What is wrong, where (recipe field, file or row), and how to mend it, in one sentence."""


def first_line(error: BaseException) -> str:
    """What an error says, as part of a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextmanager
def storage_errors(lake: object) -> Iterator[None]:
    """Turns what the file system refuses (disk full, no permission, read-only) into one sentence about the `lake`."""
    try:
        yield
    except (OSError, duckdb.OperationalError, duckdb.FatalException) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        raise UserError(
            f"cannot write to the lake {lake}: {reason}; what is published is intact and what is landed is kept: "
            f"mend the cause and run the same command again"
        ) from error
