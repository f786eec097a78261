"""What people get wrong, end to end: one clear sentence, exit code 1, and a lake that is as it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from saelake import cli
from saelake.ingest.planted.geometry import D_MODEL
from tests.ingest.tiny import save_sae
from tests.lakes import build_lake, tree
from tests.planted import write_planted


class Mistake(NamedTuple):
    """A way to spoil a study, and what the sentence must say."""

    spoil: Callable[[Path], None]
    """Changes the study in a folder."""
    says: tuple[str, ...]
    before_loading: bool = True
    """Whether it can be found before there is a lake; otherwise the model must be loaded for it."""


def recipe(old: str, new: str) -> Callable[[Path], None]:
    """Other text in recipe.toml."""

    def spoil(folder: Path) -> None:
        file = folder / "recipe.toml"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    return spoil


def prompts(change: Callable[[list[dict[str, str]]], list[dict[str, str]]]) -> Callable[[Path], None]:
    """Other rows in prompts.jsonl."""

    def spoil(folder: Path) -> None:
        file = folder / "prompts.jsonl"
        rows = change([json.loads(line) for line in file.read_text().splitlines()])
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return spoil


def gone(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        shutil.rmtree(folder / name)

    return spoil


def without_template(folder: Path) -> None:
    (folder / "model" / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "model" / "tokenizer_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "chat_template"}))


def with_nan(file: str, weight: str) -> Callable[[Path], None]:
    """NaN in place of a weight."""

    def spoil(folder: Path) -> None:
        weights = load_file(folder / file)
        weights[weight] = torch.full_like(weights[weight], float("nan"))
        save_file(weights, folder / file, metadata={"format": "pt"})

    return spoil


def another_width(folder: Path) -> None:
    shutil.rmtree(folder / "saes" / "layer_3")
    save_sae(folder / "saes" / "layer_3", layer=3, d_in=D_MODEL // 2)


def another_layer(folder: Path) -> None:
    shutil.rmtree(folder / "saes" / "layer_3")
    shutil.copytree(folder / "saes" / "layer_2", folder / "saes" / "layer_3")


def a_layer_too_many(folder: Path) -> None:
    save_sae(folder / "saes" / "layer_6", layer=6, d_in=D_MODEL)
    recipe("layers = [0, 1, 2, 3, 4, 5]", "layers = [0, 1, 2, 3, 4, 5, 6]")(folder)


MISTAKES = {
    "a misspelt field": Mistake(recipe("shard_prompts", "shards_prompt"), ("capture.shards_prompt", "'shard_prompts'")),
    "an unknown field": Mistake(recipe("[capture]", "[capture]\nqqq = 1"), ("no field capture.qqq",)),
    "an unknown section": Mistake(recipe("[generation]", "[generations]"), ("no field generations", "'generation'")),
    "an unknown judge": Mistake(recipe('"phrases"]', '"phrase"]'), ("verdicts.judges[1]", "'phrases'", "not 'phrase'")),
    "no TOML": Mistake(recipe("[capture]", "[capture"), ("recipe.toml is not valid TOML", "line")),
    "no model": Mistake(gone("model"), ("model.path", "there is no model in")),
    "no SAE": Mistake(gone("saes/layer_3"), ("saes", "there is no SAE folder", "layer 3")),
    "an SAE of another width": Mistake(another_width, ("reads a width of 16", "has 32"), before_loading=False),
    "an SAE of another layer": Mistake(
        another_layer, ("trained on blocks.2.hook_resid_post", "uses it for layer 3"), before_loading=False
    ),
    "a layer too many": Mistake(a_layer_too_many, ("layer 6 does not exist", "6 layers"), before_loading=False),
    "no such column": Mistake(recipe('text = "instruction"', 'text = "prompt"'), ("no column 'prompt'", "instruction, label")),
    "no prompts": Mistake(prompts(lambda rows: []), ("'planted' is empty",)),
    "no prompts after where": Mistake(
        recipe('set = "planted"', 'set = "planted"\nwhere = { category = "none" }'), ("'planted' is empty", "after where")
    ),
    "a wrong count": Mistake(recipe('set = "planted"', 'set = "planted"\ncount = 47'), ("has 48 prompts", "count says 47")),
    "a wrong hash": Mistake(recipe('set = "planted"', f'set = "planted"\nsha256 = "{"0" * 64}"'), ("prompts.jsonl", "sha256")),
    "duplicates": Mistake(prompts(lambda rows: [*rows, rows[4]]), ("rows 5 and 49 are the same prompt", "deduplicate = true")),
    "no label": Mistake(
        prompts(lambda rows: [row | {"label": "bad"} for row in rows]), ("the labels are 'bad'", "[labels] target")
    ),
    "a label of no prompt": Mistake(
        recipe("[model]", '[labels]\ntarget = "rude"\n\n[model]'), ("labels.target is 'rude'", "the labels are 'benign'")
    ),
    "a prompt too long": Mistake(
        recipe("max_prompt_tokens = 64", "max_prompt_tokens = 14"), ("has 16 tokens", "max_prompt_tokens is 14"), False
    ),
    "no chat template": Mistake(without_template, ("the tokenizer has no chat template", "model.chat_template"), False),
    "NaN activations": Mistake(
        with_nan("model/model.safetensors", "model.layers.3.mlp.down_proj.weight"), ("layer 3", "not finite numbers"), False
    ),
    "NaN in an SAE": Mistake(
        with_nan("saes/layer_3/sae_weights.safetensors", "b_dec"), ("layer_3", "not finite numbers"), before_loading=False
    ),
    "a refusal token that is none": Mistake(
        recipe('refusal_tokens = ["I"]', 'refusal_tokens = ["Nope"]'), ("model.refusal_tokens", "'Nope'"), before_loading=False
    ),
    "a split without prompts": Mistake(recipe('split = "test"', 'split = "holdout"'), ("candidates.split is 'holdout'",)),
    "an oracle that is not a judge": Mistake(recipe('oracle = "first_token"', 'oracle = "harmbench"'), ("oracle 'harmbench'",)),
    "a classifier that is out of reach": Mistake(
        recipe('judges = ["first_token", "phrases"]', 'judges = ["first_token", "harmbench"]'),
        ("verdicts.harmbench.id", "cannot be reached"),
    ),
}


def run(*arguments: object) -> str:
    """The one sentence of a command that fails."""
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    assert not result.stdout
    lines = result.stderr.replace("\r", "\n").splitlines()
    told = [line for line in lines if line.strip() and "Loading weights" not in line and "planted · ingest" not in line]
    assert len(told) == 1, told
    assert told[0].startswith("Error: ")
    assert "Traceback" not in told[0]
    assert "SAELAKE_TRACEBACK" not in told[0], "an error that nobody foresaw"
    return told[0].removeprefix("Error: ")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("study")).folder


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with something in it."""
    return build_lake(tmp_path_factory.mktemp("lakes") / "lake").root


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_the_lake_is_as_it_was(name: str, study: Path, lake: Path, tmp_path: Path) -> None:
    mistake, folder = MISTAKES[name], tmp_path / "study"
    shutil.copytree(study, folder)
    mistake.spoil(folder)
    before = tree(lake)
    told = run("analyze", folder / "recipe.toml", "--lake", lake)
    assert all(part in told for part in mistake.says), told
    assert tree(lake) == before
    if mistake.before_loading:
        assert run("analyze", folder / "recipe.toml", "--lake", tmp_path / "new") == told
        assert not (tmp_path / "new").exists(), "there was nothing to make a lake for"


@pytest.mark.parametrize("name", ["a misspelt field", "no model", "no SAE", "duplicates", "a wrong count"])
def test_ingest_and_status_tell_the_same(name: str, study: Path, lake: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    MISTAKES[name].spoil(folder)
    before = tree(lake)
    told = {run(command, folder / "recipe.toml", "--lake", lake) for command in ("ingest", "analyze", "status")}
    assert len(told) == 1
    assert tree(lake) == before


@pytest.mark.parametrize("command", ["ingest", "analyze"])
def test_a_folder_that_is_no_lake_is_left_alone(command: str, study: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert "is not a lake and not empty" in run(command, study / "recipe.toml", "--lake", tmp_path / "mine")
    assert tree(tmp_path / "mine").keys() == {tmp_path / "mine" / "thesis.txt"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sql", "selec 1"), "Parser Error: syntax error"),
        (("sql", "select x from prompts"), 'Referenced column "x" not found'),
        (("sql", "from nowhere"), "nowhere does not exist"),
        (("sql", "select error('stop')"), "stop"),
        (("sql", "drop view prompts"), "only statements that read"),
        (("query", "asr", "--k", "many"), "k is"),
        (("query", "nothing"), "there is no query nothing"),
    ],
)
def test_sql_that_fails_is_the_engines_own_sentence(arguments: tuple[str, ...], says: str, lake: Path) -> None:
    before = tree(lake)
    assert says in run(*arguments, "--lake", lake)
    assert tree(lake) == before


def test_judging_and_ablating_need_a_lake_with_answers(study: Path, lake: Path, tmp_path: Path) -> None:
    file, before = study / "recipe.toml", tree(lake)
    assert "the judges are first_token, harmbench, phrases" in run("judge", file, "--judge", "guess", "--lake", lake)
    assert "run `saelake analyze` first" in run("judge", file, "--judge", "phrases", "--lake", lake)
    assert "no lake at" in run("judge", file, "--judge", "phrases", "--lake", tmp_path / "none")
    for features, says in (
        ("9:5", "layer 9"),
        ("2:999", "no feature 999"),
        (" , ", "features"),
        ("select 1 as a", "needs the columns"),
    ):
        assert says in run("ablate", file, "--features", features, "--condition", "mine", "--lake", tmp_path / "none")
    assert "the analysis' own" in run("ablate", file, "--features", "2:5", "--condition", "none", "--lake", lake)
    assert tree(lake) == before
    assert not (tmp_path / "none").exists()


def test_a_recipe_that_is_not_there(lake: Path, tmp_path: Path) -> None:
    assert "there is no recipe file" in run("analyze", tmp_path / "none.toml", "--lake", lake)
    assert "did you mean 'organism'" in run("analyze", "organims", "--lake", lake)
    assert CliRunner().invoke(cli.main, ["analyze"]).exit_code == 2
