"""Output where no letter but ASCII can be shown: UTF-8 through pipes, escapes on a terminal, and never a traceback."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import saelake
from saelake.queries import QueryError
from saelake.queries.statements import check_reads
from tests.conftest import ROOT
from tests.lakes import build_lake

WORD = "é日本🎉"
STATEMENT = f"select '{WORD}' as \"naïve\""
ENVIRONMENTS = {
    "an encoding that Python is told": {"PYTHONIOENCODING": "ascii"},
    "the locale C": {"LC_ALL": "C"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_lake(tmp_path_factory.mktemp("lakes") / "lake-é").root


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "saelake.cli", *arguments]


def environment(name: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))} | ENVIRONMENTS[name]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_pipes_are_utf8(name: str, lake: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(command(*arguments), capture_output=True, env=environment(name), cwd=tmp_path)

    shown = {kind: run("sql", STATEMENT, "--lake", str(lake), "--format", kind) for kind in ("table", "csv", "json")}
    for one in shown.values():
        assert one.returncode == 0, one.stderr
        assert WORD in one.stdout.decode("utf-8")
    assert json.loads(shown["json"].stdout) == [{"naïve": WORD}]
    failed = run("sql", f"select {WORD}", "--lake", str(lake))
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr.decode()
    assert WORD in failed.stderr.decode()
    assert "…" not in run("--help").stderr.decode()
    assert run("sql", STATEMENT, "--lake", str(lake), "-o", "x.csv").returncode == 0
    assert (tmp_path / "x.csv").read_text("utf-8").splitlines() == ["naïve", WORD]


@pytest.mark.parametrize(
    "arguments",
    [
        *(["sql", STATEMENT, "--format", kind] for kind in ("table", "csv", "json")),
        ["sql", f"select {WORD}"],
        ["query", "asr", "--help"],
        ["queries"],
        ["status", f"{WORD}.toml"],
    ],
)
def test_a_terminal_that_cannot_show_a_letter_is_told_which(arguments: list[str], lake: Path) -> None:
    ours, theirs = pty.openpty()
    given = [] if arguments[0] == "queries" or "--help" in arguments else ["--lake", str(lake)]
    process = subprocess.Popen(
        command(*arguments, *given), stdout=theirs, stderr=theirs, env=environment("an encoding that Python is told")
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # how a terminal ends
        pass
    os.close(ours)
    assert process.wait() in (0, 1)
    assert b"Traceback" not in shown
    assert shown.isascii(), shown
    if any(WORD in one for one in arguments):
        assert b"\\xe9" in shown, shown


BARE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
"""Python takes what it is given for ASCII, and keeps other bytes as halves of letters."""


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (["sql", STATEMENT], BARE, "this locale has no letters for the argument"),
        (["query", "find_prompts", "--words", WORD], BARE, "set PYTHONUTF8=1"),
        (["sql", "select 1"], BARE, "this locale has no letters for the argument"),  # those of the lake's folder
        (["status", f"{WORD}.toml"], BARE, "set PYTHONUTF8=1"),
        (["sql", b"select '\xff'"], {"LC_ALL": "C.UTF-8"}, "is not text in UTF-8"),
        (["query", "find_prompts", "--words", b"\xff"], {"LC_ALL": "C.UTF-8"}, "is not text in UTF-8"),
    ],
)
def test_arguments_that_are_no_text_are_one_sentence(
    arguments: list[str | bytes], env: dict[str, str], said: str, lake: Path, tmp_path: Path
) -> None:
    given = [sys.executable, "-m", "saelake.cli", *arguments, "--lake", str(lake)]
    known = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    done = subprocess.run(given, capture_output=True, env=known | env, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert said in done.stderr.decode()


def test_half_a_letter_in_a_value_is_told_in_python_too(lake: Path) -> None:
    with saelake.open(lake) as opened, pytest.raises(QueryError, match=r"words is text, not '\\ud800'"):
        opened.query("find_prompts", words="\ud800")
    with pytest.raises(QueryError, match=r"the statement is not text in UTF-8"):
        check_reads("select '\ud800'")
