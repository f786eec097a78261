"""SAEs that saelake trains itself: good enough by a measure of their own, or not there at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sae_lens import SAE

from saelake import cli
from saelake.ingest.job import ingest
from saelake.ingest.recipe import Recipe
from saelake.ingest.saes import train as training
from saelake.ingest.saes.train import Trained, train_saes
from saelake.ingest.saes.training import fit
from saelake.ingest.subject import Subject
from saelake.ingest.texts import read_texts
from saelake.warehouse.errors import UserError
from tests.ingest.small_study import lake_in, sql, write_study
from tests.ingest.tiny import CORPUS, LLAMA3_TEMPLATE

L0, LAYERS = 6, [0, 2]


def random_texts(n: int, seed: int) -> list[str]:
    """Twelve words of the tiny tokenizers' corpus each."""
    words = np.array(sorted({word for line in CORPUS for word in line.split()}))
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(words, 12)) for _ in range(n)]


def study(folder: Path, **training: Any) -> Recipe:
    """A random model, texts of its tokenizer's words, and nowhere any SAEs."""
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in random_texts(150, seed=0)), "utf-8")
    asked: dict[str, object] = {
        "width": 128,
        "l0": L0,
        "steps": 150,
        "batch_tokens": 256,
        "lr": 3e-3,
        "min_explained_variance": 0.6,
    }
    asked |= {"max_l0_factor": 1.6, "texts": [{"set": "words", "file": texts, "take": 150}]}
    saes = {"path": folder / "own" / "layer_{layer}", "layers": LAYERS}
    return write_study(folder, "llama", saes=saes, train_saes=asked | training)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return study(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def trained(recipe: Recipe) -> list[Trained]:
    return train_saes(recipe)


def test_trained_saes_are_saelens_folders_that_the_recipe_reads(recipe: Recipe, trained: list[Trained], tmp_path: Path) -> None:
    record = ingest(recipe, lake_in(tmp_path))
    with sql(lake_in(tmp_path), record) as con:
        found = con.execute("select layer, width, norm, hook, measured_l0 from saes order by layer").fetchall()
    assert [row[:4] for row in found] == [(layer, 128, "none", f"blocks.{layer}.hook_resid_post") for layer in LAYERS]
    assert all(L0 / 3 < row[4] < L0 * 3 for row in found)
    for one in trained:
        sae = SAE.load_from_disk(one.folder)
        assert (sae.cfg.architecture(), sae.cfg.metadata.hook_layer) == ("jumprelu", one.layer)


def test_reported_fit_is_that_of_unseen_texts(recipe: Recipe, trained: list[Trained]) -> None:
    """Measured again with SAELens alone, on other texts of the same words."""
    subject = Subject.load(recipe.model, recipe.compute)
    rows = [subject.tokenizer(text)["input_ids"] for text in random_texts(40, seed=99)]
    for one in trained:
        resid = [subject.read_resid_post(subject.batch([row]), [one.layer])[one.layer][0, 1:] for row in rows]
        resid_td = torch.cat(resid)
        sae = SAE.load_from_disk(one.folder)
        with torch.no_grad():
            acts_tf = sae.encode(resid_td)
            error_td = resid_td - sae.decode(acts_tf)
        explained = 1 - error_td.pow(2).sum() / (resid_td - resid_td.mean(0)).pow(2).sum()
        assert one.fit.explained_variance == pytest.approx(explained.item(), abs=0.08)
        assert one.fit.l0 == pytest.approx((acts_tf > 0).sum(1).float().mean().item(), rel=0.2)
        assert fit(sae, resid_td).explained_variance == pytest.approx(explained.item(), abs=1e-5)


def test_files_say_what_they_were_made_from_and_name_no_machine(recipe: Recipe, trained: list[Trained]) -> None:
    told = json.loads((trained[0].folder / "training.json").read_text())
    assert told["held_out"]["l0"] == round(trained[0].fit.l0, 4)
    assert told["model"].startswith("sha256:")
    assert told["train_saes"]["steps"] == 150
    for file in trained[0].folder.glob("*.json"):
        assert str(recipe.model.path) not in file.read_text()
        assert file.stat().st_mode & 0o044 == 0o044


def test_a_seed_gives_the_same_saes(recipe: Recipe, trained: list[Trained], tmp_path: Path) -> None:
    changed = recipe.saes.model_copy(update={"path": tmp_path / "layer_{layer}", "layers": (2,)})
    (again,) = train_saes(recipe.model_copy(update={"saes": changed}))
    assert again.fit == trained[1].fit


def test_a_training_that_is_killed_goes_on_from_the_finished_saes(
    recipe: Recipe, trained: list[Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = recipe.model_copy(update={"saes": recipe.saes.model_copy(update={"path": tmp_path / "layer_{layer}"})})
    real, begun = training._train, list[int]()

    def killed_at_second(*arguments: Any) -> Any:
        begun.append(arguments[2].layer)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "_train", killed_at_second)
    with pytest.raises(KeyboardInterrupt):
        train_saes(again)
    assert not (tmp_path / "layer_0").exists(), "placed when all are finished"
    for one, before in zip(train_saes(again), trained, strict=True):
        assert one.fit == pytest.approx(before.fit, abs=1e-4)
    assert begun == [0, 2, 2]
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["layer_0", "layer_2"]


def test_update_trains_what_is_missing_or_was_made_from_something_else(
    recipe: Recipe, trained: list[Trained], tmp_path: Path
) -> None:
    saes = recipe.saes.model_copy(update={"path": tmp_path / "layer_{layer}"})
    mine = recipe.model_copy(update={"saes": saes})
    for one in trained:
        shutil.copytree(one.folder, tmp_path / one.folder.name)
    assert train_saes(mine, update=True) == []
    looser = mine.train_saes.model_copy(update={"min_explained_variance": 0.5})
    assert train_saes(mine.model_copy(update={"train_saes": looser}), update=True) == [], "a gate changes no SAE"
    shutil.rmtree(tmp_path / "layer_2")
    assert [one.layer for one in train_saes(mine, update=True)] == [2]
    longer = mine.train_saes.model_copy(update={"steps": 151})
    assert [one.layer for one in train_saes(mine.model_copy(update={"train_saes": longer}), update=True)] == [0, 2]
    assert json.loads((tmp_path / "layer_0" / "training.json").read_text())["train_saes"]["steps"] == 151


def test_saes_are_stale_once_the_model_reads_something_else(recipe: Recipe, trained: list[Trained]) -> None:
    """Whatever changes the token ids of prompts or texts, and what they are computed in; not how a template is written."""

    def stale(**model: Any) -> list[int]:
        changed = recipe.model_copy(update={"model": recipe.model.model_copy(update=model)})
        return [one.layer for one in training._stale(changed, training._targets(changed, force=True))]

    bare = "{% for message in messages %}{{ message['content'] | trim }}{% endfor %}"
    again = LLAMA3_TEMPLATE.replace("{{ bos_token }}", "{{- bos_token }}")
    assert stale() == stale(chat_template=again) == []
    assert stale(system="You help.") == LAYERS
    assert stale(chat_template="{{ bos_token }}" + bare) == LAYERS
    assert stale(chat_template=bare, without_bos=True) == LAYERS
    assert stale(template="none") == LAYERS
    assert stale(dtype="bfloat16") == LAYERS
    chats = Path(str(recipe.prompts[0].file)).with_name("chats.jsonl")
    rows = [json.loads(line) for line in Path(str(recipe.prompts[0].file)).read_text().splitlines()]
    for row in rows:
        row["turns"] = [("user", "Hello."), ("assistant", "Sure."), ("user", row["instruction"])]
        row["turns"] = [{"role": role, "content": content} for role, content in row["turns"]]
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = recipe.prompts[0].model_copy(update={"file": chats, "messages": "turns"})
    asked = recipe.model_copy(update={"prompts": (prompts,)})
    assert [one.layer for one in training._stale(asked, training._targets(asked, force=True))] == LAYERS


def test_saes_that_are_there_are_kept(recipe: Recipe, trained: list[Trained]) -> None:
    with pytest.raises(UserError, match=r"saes\.path: .*layer_0 is there already: --force trains new SAEs in its place"):
        train_saes(recipe)


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        (
            {"min_explained_variance": 0.999},
            r"layer 0 explains 0\.\d+ of the variance, not 0\.999 .*on what was held out, so no SAE",
        ),
        ({"max_l0_factor": 1.0001}, r"layer 0 .*has [\d.]+ active latents a token, not 6\.0 to 6\.0"),
        ({"lr": 1e6}, "so no SAE is kept"),
    ],
)
def test_a_missed_gate_is_a_sentence_and_nothing_is_shipped(tmp_path: Path, training: dict[str, Any], sentence: str) -> None:
    recipe = study(tmp_path, steps=30, **training)
    with pytest.raises(UserError, match=sentence):
        train_saes(recipe)
    assert list((tmp_path / "own").iterdir()) == []


def test_too_few_tokens_and_unknown_layers_are_told_before_training(tmp_path: Path) -> None:
    recipe = study(tmp_path, texts=[])
    with pytest.raises(UserError, match=r"train_saes: prompts and texts have \d+ tokens to train on, but a batch has 256"):
        train_saes(recipe)
    beyond = recipe.saes.model_copy(update={"layers": (0, 3)})
    with pytest.raises(UserError, match=r"saes\.layers: layer 3 does not exist"):
        train_saes(recipe.model_copy(update={"saes": beyond}))
    assert not (tmp_path / "own").exists()


def test_command_line_refuses_a_published_release_in_one_sentence() -> None:
    shown = CliRunner().invoke(cli.main, ["train-saes", "gemma-2-2b"])
    assert shown.exit_code == 1
    assert shown.output == (
        "Error: saes.release: gemma-scope-2b-pt-res is downloaded, not trained: give saes.path, folders to write SAEs to\n"
    )


def test_texts_may_be_exchanges(tmp_path: Path) -> None:
    file = tmp_path / "exchanges.jsonl"
    file.write_text(json.dumps({"text": "Sure, here is a story.", "prompt": "Write a story."}) + "\n", "utf-8")
    recipe = study(tmp_path, texts=[{"set": "said", "file": file, "prompt": "prompt"}])
    subject = Subject.load(recipe.model, recipe.compute)
    (text,) = read_texts(recipe.train_saes.texts[0], subject)
    assert text.token_ids[: text.n_context] == subject.encode("Write a story.").token_ids


def test_groups_that_are_missing_are_trained_and_those_of_one_layer_differ_by_their_seed(
    recipe: Recipe, trained: list[Trained], tmp_path: Path
) -> None:
    again = recipe.saes.model_copy(update={"path": tmp_path / "again_{layer}", "layers": (2,)})
    other = recipe.saes.model_copy(update={"path": tmp_path / "other_{layer}", "layers": (0,)})
    grown = recipe.model_copy(update={"more_saes": (again, other)})
    before = (trained[0].folder / "sae_weights.safetensors").read_bytes()
    found = train_saes(grown)
    assert [(one.layer, one.folder.name) for one in found] == [(0, "other_0"), (2, "again_2")]
    assert (trained[0].folder / "sae_weights.safetensors").read_bytes() == before, "what stands whole is left as it is"
    seeds = [json.loads((one.folder / "training.json").read_text())["seed"] for one in found]
    assert seeds == [recipe.compute.seed + 2, recipe.compute.seed + 1]
    weights = [SAE.load_from_disk(folder).W_dec for folder in (tmp_path / "again_2", trained[1].folder)]
    assert not torch.equal(*weights)
    with pytest.raises(UserError, match=r"saes\.path: .*layer_0 and all others are there already: --force trains new SAEs"):
        train_saes(grown)
    doubled = recipe.model_copy(update={"more_saes": (recipe.saes,)})
    with pytest.raises(UserError, match=r"saes\.path: two groups write to .*layer_0: give each a folder of its own"):
        train_saes(doubled)
