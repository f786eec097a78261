"""Long work that writes to a file or a pipe: a line at the start, and one a minute, whatever the work does."""

import io
import time

import pytest
from rich.console import Console

from saelake.warehouse.progress import Bar, _Work


def test_a_long_shard_gives_signs_of_life_in_a_file() -> None:
    file = io.StringIO()
    with Bar(Console(file=file, width=40), seconds=0.02) as progress:
        progress.start("a study with quite a long name · minimal", 3, "shards", done=1)
        deadline = time.monotonic() + 10
        while file.getvalue().count("\n") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)  # nothing is finished meanwhile
        progress.advance(1, 1000)
    lines = file.getvalue().splitlines()
    assert lines[0] == "a study with quite a long name · minimal: 2 shards"
    assert set(lines[1:]) == {"a study with quite a long name · minimal: 1 of 3 shards after 0 min"}, "one line each, uncut"
    assert len(lines) >= 3
    time.sleep(0.1)
    assert len(file.getvalue().splitlines()) == len(lines), "no line after the end"


def test_quick_work_says_nothing_more_than_that_it_begins() -> None:
    file = io.StringIO()
    with Bar(Console(file=file)) as progress:
        progress.start("checking", 2, "files")
        progress.advance(2)
    assert file.getvalue() == "checking: 2 files\n"


@pytest.mark.parametrize(
    ("done", "minutes", "says"),
    [
        (2, 9, "x: 2 of 10 shards after 9 min"),  # both by an earlier process: nothing says how long one takes
        (5, 9, "x: 5 of 10 shards after 9 min, about 15 min left"),
        (3, 120, "x: 3 of 10 shards after 2.0 h, about 14.0 h left"),
    ],
)
def test_time_left_is_by_what_this_process_finished(done: int, minutes: int, says: str) -> None:
    assert _Work("x", 10, "shards", before=2, done=done, started=100.0).line(100.0 + 60 * minutes) == says
