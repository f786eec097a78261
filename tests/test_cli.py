"""The command line: documented, quick, light, and one sentence for every mistake."""

import csv
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import duckdb
import pytest
from click.testing import CliRunner, Result

from saelake import cli
from saelake.warehouse.lake import Lake
from tests.conftest import ROOT
from tests.lakes import HOSTILE, build_lake, prompt_id

RESERVED = {"lake", "recipe", "kind", "output", "as_sql", "help", "format", "sql"}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return build_lake(tmp_path_factory.mktemp("cli") / "lake")


def saelake(*arguments: str, lake: Lake | None = None, stdin: str | None = None) -> Result:
    env = {"SAELAKE_LAKE": str(lake.root)} if lake else {}
    return CliRunner().invoke(cli.main, arguments, input=stdin, env=env)


# A shell's background jobs ignore interrupts, and so would what they start: this process must not.
PROGRAM = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from saelake import cli; cli.main()"


def process(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        cwd=ROOT,
    )


def refused(result: Result, code: int = 1) -> str:
    """The one sentence on standard error."""
    assert result.exit_code == code, result.output
    assert not result.stdout
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def test_every_command_and_option_is_documented() -> None:
    seen = dict(commands(cli.main))
    assert {("ingest",), ("analyze",), ("status",), ("sql",), ("query",), ("queries",), ("runs",), ("query", "asr")} <= set(seen)
    for path, command in seen.items():
        assert command.help, f"saelake {' '.join(path)} has no help"
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"saelake {' '.join(path)} {option.opts[0]} has no help"
            else:
                assert option.name
                assert option.name.upper() in command.help, f"saelake {' '.join(path)} does not explain {option.name.upper()}"


def test_help_lists_every_command_once_by_section() -> None:
    listed = re.findall(r"^  ([a-z-]+) ", saelake("--help").stdout.partition("Prepare:")[2], re.MULTILINE)
    assert sorted(listed) == sorted(cli.main.commands)
    assert listed[:3] == ["plan", "train-saes", "ingest"], "in the order of a study, not of the alphabet"


def test_commands_that_compute_offer_only_the_options_that_act_on_them() -> None:
    offered = {
        name: {option.name for option in cli.main.commands[name].params} for name in ("ingest", "analyze", "ablate", "compare")
    }
    common, judges = {"recipe", "lake", "limit", "force"}, {"allow_code", "hosts"}
    assert offered["analyze"] == common | judges | {"n_workers"}
    assert offered["ingest"] == common | {"n_workers"}, "no judge is asked"
    assert offered["ablate"] - {"features", "condition", "value", "positions"} == common | judges, "this process computes"
    assert offered["compare"] - {"backends", "n_prompts"} == common


def test_parameters_of_queries_do_not_hide_options_of_the_command() -> None:
    from saelake import queries

    for name in (*queries.names(), *queries.names_of_stages(), *queries.names_of_pages()):
        assert not RESERVED & {p.name for p in queries.load(name).parameters}, name


def test_help_answers_at_once_without_anything_heavy() -> None:
    started = time.perf_counter()
    asked = process("--help")
    out, _ = asked.communicate()
    assert asked.returncode == 0
    assert "analyze" in out
    assert "..." not in out.partition("Prepare:")[2], "what a command does is said whole"
    assert time.perf_counter() - started < 1
    command = [sys.executable, "-X", "importtime", "-c", "import saelake.cli"]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    modules = {line.rsplit("|", 1)[-1].strip() for line in loaded.stderr.splitlines()}
    assert "click" in modules
    assert not modules & {"torch", "transformers", "sae_lens", "duckdb", "pyarrow", "rich.console", "numpy"}


@pytest.mark.parametrize("asked", [["sql", "select count(*) from activations"], ["query", "asr"], ["runs"]])
def test_sql_and_query_import_neither_pandas_nor_a_gpu_stack(lake: Lake, asked: list[str]) -> None:
    loads = "print(*sys.modules, file=sys.stderr)"
    script = f"import sys; from saelake.cli import main; main(sys.argv[1:], standalone_mode=False); {loads}"
    command = [sys.executable, "-c", script, *asked, "--lake", str(lake.root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout
    heavy = {"torch", "transformers", "sae_lens", "datasets", "scipy", "pandas", "pyarrow.parquet"}
    assert not heavy & set(done.stderr.split())


def test_sql_in_every_format(lake: Lake, tmp_path: Path) -> None:
    ask = "select prompt_id, text from prompts order by prompt_id"
    first = prompt_id(lake, 0)
    rows = list(csv.reader(io.StringIO(saelake("sql", ask, "--format", "csv", lake=lake).stdout, newline="")))
    assert rows[0] == ["prompt_id", "text"]
    assert rows[4] == [str(first + 3), HOSTILE]
    found = json.loads(saelake("sql", ask, "--format", "json", lake=lake).stdout)
    assert found[3] == {"prompt_id": str(first + 3), "text": HOSTILE}
    assert saelake("sql", ask, "-o", str(tmp_path / "rows.parquet"), lake=lake).exit_code == 0
    assert len(duckdb.sql(f"from '{tmp_path}/rows.parquet'").fetchall()) == 6
    piped = CliRunner().invoke(cli.main, ["sql", ask, "--format", "parquet", "--lake", str(lake.root)])
    (tmp_path / "piped.parquet").write_bytes(piped.stdout_bytes)
    assert duckdb.sql(f"select text from '{tmp_path}/piped.parquet'").fetchall()[3] == (HOSTILE,)
    table = saelake("sql", ask, lake=lake).stdout
    assert "\x1b" not in table
    assert len(table.splitlines()) == 8


def test_sql_reads_its_statement_from_standard_input(lake: Lake) -> None:
    assert saelake("sql", "-", "--format", "csv", lake=lake, stdin="select 42 as answer").stdout == "answer\n42\n"


@pytest.mark.parametrize(
    "statement", ["drop view prompts", "copy prompts to 'x.csv'", "explain analyze copy prompts to 'x.csv'", "select 1; select 2"]
)
def test_sql_refuses_what_does_not_only_read(lake: Lake, statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "statement" in refused(saelake("sql", statement, lake=lake))
    assert not list(tmp_path.iterdir())


def test_query_takes_options_from_the_file(lake: Lake) -> None:
    asked = ["query", "candidates", "--k", "1", "--exclude_layers", "0", "--format", "csv"]
    assert saelake(*asked, lake=lake).stdout.splitlines()[1:] == ["chosen,1,sae1,1,1,0.7"]
    dashed = saelake(*(a.replace("exclude_", "exclude-") for a in asked), lake=lake)
    assert dashed.stdout == saelake(*asked, lake=lake).stdout
    with_bos = saelake("query", "firing_on_tokens", "--bos", "--k", "1", "--format", "csv", lake=lake).stdout
    assert len(with_bos.splitlines()) == 1 + 15
    assert (
        saelake("query", "features", "--limit", "null", "--min-prompts", "0", "--format", "csv", lake=lake).stdout.count("\n")
        == 9
    )


def test_query_help_prints_the_documentation() -> None:
    shown = saelake("query", "cofiring", "--help").stdout
    assert "jaccard = n_both / (n_a + n_b - n_both)" in shown
    assert "which features [required]" in " ".join(shown.split())
    everything = saelake("queries").stdout
    assert "min_jaccard number = 0" in everything
    assert "\nasr\n\nAttack success rate" in everything


def test_query_prints_a_statement_that_any_duckdb_answers(lake: Lake) -> None:
    statement = saelake("query", "cofiring", "--features", "0:1,1:0", "--sql", lake=lake).stdout
    with duckdb.connect(str(lake.catalog), read_only=True) as con:
        con.execute("set variable lake = $1", [str(lake.root)])
        assert [row[-1] for row in con.sql(statement).fetchall()] == [0.5]


def test_several_studies_are_named_and_chosen(tmp_path: Path) -> None:
    lake = build_lake(tmp_path / "lake")
    build_lake(tmp_path / "lake", "other", variant=1)
    assert refused(saelake("query", "asr", lake=lake)) == (
        f"the lake {lake} holds several studies (other, small): choose one with --recipe NAME, or in Python with "
        "saelake.open(LAKE, recipe=NAME)"
    )
    assert saelake("query", "asr", "--recipe", "other", lake=lake).exit_code == 0
    count = ["sql", "select count(*) as n from prompts", "--format", "csv"]
    assert saelake(*count, lake=lake).stdout == "n\n12\n"
    assert saelake(*count, "--recipe", "small", lake=lake).stdout == "n\n6\n"
    assert len(json.loads(saelake("runs", "--format", "json", lake=lake).stdout)) == 6
    assert len(json.loads(saelake("runs", "--recipe", "other", "--format", "json", lake=lake).stdout)) == 3


def test_mistakes_are_single_sentences(lake: Lake, tmp_path: Path) -> None:
    assert refused(saelake("query", "asrr", lake=lake)) == "there is no query asrr: did you mean asr?"
    assert refused(saelake("query", "cofiring", lake=lake)) == "the query cofiring needs features: which features"
    assert refused(saelake("query", "candidates", "--k", "'; drop", lake=lake)) == 'k is a whole number from 0 up, not "\'; drop"'
    assert refused(saelake("sql", "selec 1", lake=lake)).startswith("Parser Error: syntax error")
    assert "prompt does not exist" in refused(saelake("sql", "from prompt", lake=lake))
    assert "\\x1b" in refused(saelake("sql", 'from "\x1b[31m"', lake=lake))
    assert refused(saelake("sql", "select 1", "--lake", str(tmp_path / "none"))).startswith("no lake at ")
    assert "no study named" in refused(saelake("sql", "select 1", "--recipe", "absent", lake=lake))
    assert "no recipe" in refused(saelake("analyze", "absent", lake=lake))
    assert saelake("sql", lake=lake).exit_code == 2
    assert saelake("query", "asr", "--no-such", "1", lake=lake).exit_code == 2


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError(errno.ENOSPC, "No space left", "f.parquet"),
            "disk full at f.parquet: free space and run the same command again, finished shards are kept",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "lake"), "no permission at lake: make it readable and writable"),
        (ZeroDivisionError("x\ny"), "ZeroDivisionError: x y (set SAELAKE_TRACEBACK=1"),
    ],
)
def test_failures_of_a_job_are_single_sentences(
    error: Exception, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("saelake.ingest.recipe.load_recipe", fails)
    assert refused(saelake("ingest", "x", "--lake", str(tmp_path))).startswith(expected)
    monkeypatch.setenv("SAELAKE_TRACEBACK", "1")
    assert saelake("ingest", "x", "--lake", str(tmp_path)).exception is error


@pytest.mark.parametrize("command", ["ingest", "train-saes"])
def test_an_interrupt_says_how_to_go_on(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saelake.ingest.recipe.load_recipe", interrupted)
    result = saelake(command, "x")
    assert (result.exit_code, result.stderr) == (130, "stopped; the same command continues\n")


def test_a_real_interrupt_stops_a_long_statement(lake: Lake) -> None:
    endless = "select sum(hash(a.range * b.range)) as h from range(1000000) a, range(1000000) b"
    asked = process("sql", endless, "--format", "csv", SAELAKE_LAKE=str(lake.root))
    assert asked.stdout
    assert asked.stdout.readline() == "h\n", "the header comes before the first row"
    asked.send_signal(signal.SIGINT)
    try:
        _, stderr = asked.communicate(timeout=30)
    finally:
        asked.kill()
    assert asked.returncode == 130
    assert stderr.strip() == "stopped"


def test_a_closed_pipe_is_quiet(lake: Lake) -> None:
    asked = process("sql", "from range(1000000)", "--format", "csv", SAELAKE_LAKE=str(lake.root))
    assert asked.stdout
    assert asked.stderr
    asked.stdout.readline()
    asked.stdout.close()
    assert asked.stderr.read() == ""
    assert asked.wait(timeout=20) == 1


def test_sql_answers_after_a_move(tmp_path: Path) -> None:
    moved = build_lake(tmp_path / "before").root.rename(tmp_path / "it's elsewhere")
    assert saelake("sql", "select count(*) as n from activations", "--format", "csv", "--lake", str(moved)).stdout == "n\n16\n"
