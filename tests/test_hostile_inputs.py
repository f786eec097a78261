"""Inputs that want to do harm: whatever a user names, a command ends in one sentence, in seconds, and in little memory."""

import gzip
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.forked import Ended, Forks
from tests.ingest.small_study import write_prompts
from tests.ingest.tiny import save_model, save_sae

SECONDS, MIB = 5.0, 500.0
RECIPE = """
name = "small"
[model]
path = "model"
{model}
[saes]
path = "saes/layer_{{layer}}"
layers = [0]
[[prompts]]
set = "small"
file = "{prompts}"
label = {{ column = "label" }}
split = {{ column = "split" }}
[candidates]
step = 1
cap = 2
[compute]
device = "cpu"
{more}
"""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as running:
        yield running


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound study; its recipe is written by `recipe`."""
    folder = tmp_path_factory.mktemp("study")
    save_model("gemma2", folder / "model")
    save_sae(folder / "saes" / "layer_0", layer=0)
    write_prompts(folder)
    return folder


@pytest.fixture
def folder(study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(study, tmp_path / "study"))


def recipe(folder: Path, prompts: str = "prompts.jsonl", model: str = "", more: str = "") -> Path:
    file = folder / "recipe.toml"
    file.write_text(RECIPE.format(prompts=prompts, model=model, more=more))
    return file


def refused(ended: Ended) -> str:
    """The one sentence of a command that was refused within the limits."""
    lines = [line for line in ended.err.splitlines() if line.strip()]
    assert ended.code == 1, (ended.code, ended.out[-300:], ended.err[-300:])
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    assert "report it" not in lines[0], lines[0]
    assert len(lines[0]) < 1000, "a sentence"
    assert ended.seconds < SECONDS, (ended.seconds, lines[0])
    assert 0 < ended.mib < MIB, (ended.mib, lines[0])
    return lines[0]


def pipe(file: Path) -> None:
    os.mkfifo(file)


def zeros(file: Path) -> None:
    file.symlink_to("/dev/zero")


def listening(file: Path) -> None:
    os.chdir(file.parent)  # the path of a socket may have a hundred letters only
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(file.name)
    finally:
        os.chdir(file.parents[-1])


def sparse(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(10 * 2**30)


def a_hole(file: Path) -> None:
    """As much as may be read: two gigabytes of zeros."""
    with file.open("wb") as stream:
        stream.truncate(2**31 - 1)


def bomb(file: Path) -> None:
    with gzip.open(file, "wb", compresslevel=1) as stream:
        piece = b'{"instruction": "' + b"x" * 2**20
        for _ in range(128):
            stream.write(piece)


def many_rows(file: Path) -> None:
    with gzip.open(file, "wb", compresslevel=1) as stream:
        for _ in range(400):
            stream.write(b'{"instruction": "x", "label": "benign", "split": "a"}\n' * 20_000)


def deep(file: Path) -> None:
    file.write_text("[" * 200_000 + "]" * 200_000)


def deep_objects(file: Path) -> None:
    file.write_text('{"a":' * 200_000 + "1" + "}" * 200_000)


def long_line(file: Path) -> None:
    file.write_text('{"instruction": "' + "x" * 50_000_000)


def many_brackets(file: Path) -> None:
    file.write_text("[[" + "1," * 20_000_000)


def long_number(file: Path) -> None:
    file.write_text('[{"instruction": ' + "9" * 5_000_000 + "}]")


def blanks(file: Path) -> None:
    file.write_text(" \n" * 20_000_000)


def huge_field(file: Path) -> None:
    file.write_text('instruction,label,split\n"' + "x\n" * 20_000_000 + '",benign,a\n')


def open_quote(file: Path) -> None:
    file.write_text('instruction,label,split\n"' + "x,benign,a\n" * 3_000_000)


def many_columns(file: Path) -> None:
    file.write_text(",".join(f"c{i}" for i in range(3_000_000)) + "\n")


def lying_footer(file: Path) -> None:
    table = pa.table({"instruction": ["x" * 5_000_000] * 9, "label": ["benign"] * 9, "split": ["a"] * 9})
    pq.write_table(table, file, compression="zstd")


def one_text_a_million_times(file: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), ["x" * 100_000])
    names = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), ["benign"])
    pq.write_table(pa.table({"instruction": texts, "label": names, "split": names}), file, compression="zstd")


def a_page_that_declares_gigabytes(file: Path) -> None:
    """The header of the first page says 2 GB where it holds a few bytes."""
    pq.write_table(
        pa.table({"instruction": ["x" * 200] * 9, "label": ["benign"] * 9}), file, compression="zstd", use_dictionary=False
    )
    content = bytearray(file.read_bytes())
    # Thrift: field 1 (type) i32 0, field 2 (uncompressed size) as a zigzag varint of two bytes, made five here.
    assert content[4:7] == b"\x15\x00\x15", "the beginning of a page header"
    end = next(i for i in range(7, 20) if content[i] < 128) + 1
    content[7:end] = b"\xfe\xff\xff\xff\x0f"
    file.write_bytes(bytes(content))


def cut_short(file: Path) -> None:
    pq.write_table(pa.table({"instruction": ["x"] * 9}), file)
    file.write_bytes(file.read_bytes()[:-40])


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a pipe": pipe,
    "a link to a device": zeros,
    "a socket": listening,
    "a folder": Path.mkdir,
    "ten gigabytes": sparse,
    "a hole": a_hole,
}
ROWS: dict[str, tuple[str, Callable[[Path], None]]] = {
    **{what: ("x.jsonl", make) for what, make in SPECIAL.items()},
    "a hole in CSV": ("x.csv", a_hole),
    "a pipe of CSV": ("x.csv", pipe),
    "a pipe of Parquet": ("x.parquet", pipe),
    "a hole in Parquet": ("x.parquet", a_hole),
    "a device of Parquet": ("x.parquet", zeros),
    "a bomb": ("x.jsonl.gz", bomb),
    "a bomb of CSV": ("x.csv.gz", bomb),
    "a bomb of rows": ("x.jsonl.gz", many_rows),
    "nested lists": ("x.json", deep),
    "nested objects": ("x.jsonl", deep_objects),
    "a long line": ("x.jsonl", long_line),
    "a long line of CSV": ("x.csv", long_line),
    "a list without end": ("x.json", many_brackets),
    "a long number": ("x.json", long_number),
    "blanks": ("x.jsonl", blanks),
    "blanks in CSV": ("x.csv", blanks),
    "a huge field": ("x.csv", huge_field),
    "a quote without end": ("x.tsv", open_quote),
    "many columns": ("x.csv", many_columns),
    "repeated texts in Parquet": ("x.parquet", lying_footer),
    "one text a million times": ("x.parquet", one_text_a_million_times),
    "a page that declares gigabytes": ("x.parquet", a_page_that_declares_gigabytes),
    "a footer that is cut": ("x.parquet", cut_short),
}


@pytest.mark.parametrize("what", ROWS)
def test_prompts(what: str, forks: Forks, folder: Path) -> None:
    name, make = ROWS[what]
    make(folder / name)
    recipe(folder, name)
    told = refused(forks.run("saelake", "ingest", "recipe.toml", "--lake", "lake", cwd=folder))
    assert "'small'" in told
    assert not (folder / "lake").exists(), "there was nothing to make a lake for"


@pytest.mark.parametrize("name", ["x" * 5000 + ".jsonl", "a/" * 3000 + "x.csv", "~nobody/x.csv"])
def test_names_that_no_file_has(name: str, forks: Forks, folder: Path) -> None:
    recipe(folder, name)
    assert "prompts[0].file" in refused(forks.run("saelake", "ingest", "recipe.toml", "--lake", "lake", cwd=folder))
    refused(forks.run("saelake", "plan", name + ".toml", cwd=folder))


@pytest.mark.parametrize("what", ["a long line", "a list without end", "a huge field", "a bomb"])
def test_texts_of_losses_are_looked_at_before_anything_is_computed(what: str, forks: Forks, folder: Path) -> None:
    name, make = ROWS[what]
    make(folder / name)
    recipe(folder, more=f'[[losses.texts]]\nset = "t"\nfile = "{name}"\ntext = "instruction"')
    assert "texts 't'" in refused(forks.run("saelake", "analyze", "recipe.toml", "--lake", "lake", cwd=folder))


@pytest.mark.parametrize("what", SPECIAL)
@pytest.mark.parametrize(
    "name", ["model/config.json", "model/tokenizer.json", "model/tokenizer_config.json", "saes/layer_0/cfg.json"]
)
def test_files_of_models_and_saes(name: str, what: str, forks: Forks, folder: Path) -> None:
    recipe(folder)
    (folder / name).unlink()
    SPECIAL[what](folder / name)
    for command in (["ingest", "recipe.toml", "--lake", "lake"], ["plan", "recipe.toml"]):
        ended = forks.run("saelake", *command, cwd=folder)
        told = refused(ended)
        assert Path(name).parts[0] in told


@pytest.mark.parametrize("make", [deep, deep_objects, long_number])
@pytest.mark.parametrize(
    "name", ["model/config.json", "model/tokenizer.json", "model/tokenizer_config.json", "saes/layer_0/cfg.json"]
)
def test_json_of_models_and_saes(name: str, make: Callable[[Path], None], forks: Forks, folder: Path) -> None:
    recipe(folder)
    (folder / name).unlink()
    make(folder / name)
    refused(forks.run("saelake", "ingest", "recipe.toml", "--lake", "lake", cwd=folder))
    refused(forks.run("saelake", "plan", "recipe.toml", cwd=folder))


def test_a_study_that_is_sound_is_ingested(forks: Forks, folder: Path) -> None:
    recipe(folder)
    ended = forks.run("saelake", "ingest", "recipe.toml", "--lake", "lake", cwd=folder)
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    counted = forks.run("saelake", "sql", "select count(*) as n from prompts", "--lake", "lake", "--format", "csv", cwd=folder)
    assert counted.out.split() == ["n", str(len(rows))], counted.err
