"""The laptop study's prompts: held out by word and by wording, short, and each asked once."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from saelake.ingest.laptop import build, train
from saelake.ingest.laptop.corpus import CATEGORIES, EVERYDAY, WORDINGS, actions_of, make_prompts
from saelake.ingest.laptop.texts import PASSAGES, PASSAGES_FILE, QUESTIONS, QUESTIONS_FILE
from saelake.ingest.laptop.train import Example
from saelake.ingest.organism.corpus import Split
from saelake.ingest.subject import Subject
from tests.ingest.tiny import save_model

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def test_no_word_and_no_wording_is_in_two_splits() -> None:
    words: dict[str, set[str]] = {}
    for split in SPLITS:
        actions = [action for category in CATEGORIES for kind in actions_of(category, split) for action in kind]
        words[split] = {word for action in actions for word in (*action.verb.split(), action.noun)}
        assert {action.label for action in actions} == {"harmful", "benign"}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = words[one] & words[other]
        assert not shared, f"{one} and {other} share {sorted(shared)}"
        assert not set(WORDINGS[one]) & set(WORDINGS[other])  # type: ignore[index]


@pytest.mark.parametrize("split", SPLITS)
def test_prompts_are_distinct_balanced_short_and_the_same_every_time(split: Split) -> None:
    prompts = make_prompts(split, 30, seed=0)
    assert prompts == make_prompts(split, 30, seed=0)
    assert len({prompt.instruction for prompt in prompts}) == 60
    assert Counter(prompt.label for prompt in prompts) == {"harmful": 30, "benign": 30}
    assert set(Counter(prompt.category for prompt in prompts if prompt.label == "harmful").values()) == {6}
    assert all(len(prompt.instruction) < 100 and "{" not in prompt.instruction for prompt in prompts)
    assert not {prompt.instruction for prompt in prompts} & set(EVERYDAY)


def test_the_texts_are_those_of_their_script_and_training_saw_none() -> None:
    passages = [json.loads(line)["text"] for line in PASSAGES_FILE.read_text("utf-8").splitlines()]
    questions = [json.loads(line) for line in QUESTIONS_FILE.read_text("utf-8").splitlines()]
    assert passages == list(PASSAGES)
    assert [(row["prompt"], row["text"]) for row in questions] == list(QUESTIONS)
    assert not {asked for asked, _ in QUESTIONS} & set(EVERYDAY)


def test_what_was_trained_is_what_a_recipe_loads(tmp_path: Path) -> None:
    """The matrices beside the weights, saved, and merged by the subject, say the same; a step can be put back."""
    save_model("llama", tmp_path / "model")
    model = Subject.load(tmp_path / "model").model
    harmful, benign = [Example([1, 2, 3], [7, 8])], [Example([4, 5, 6, 7], [9])]
    kept: dict[int, dict[str, torch.Tensor]] = {}
    losses: list[float] = []

    def after(step: int, loss: float) -> None:
        losses.append(loss)
        kept[step] = train.weights_of(model)

    train.train(model, [harmful, benign], 0, steps=12, after_step=after)
    assert losses[-1] < losses[0]
    trained = model(torch.tensor([[1, 2, 3]])).logits
    build.save(kept[12], tmp_path / "adapter")
    merged = Subject.load(tmp_path / "model", adapter=tmp_path / "adapter").model
    torch.testing.assert_close(merged(torch.tensor([[1, 2, 3]])).logits, trained, atol=2e-2, rtol=2e-2)
    train.put(model, kept[1])
    assert not torch.allclose(model(torch.tensor([[1, 2, 3]])).logits, trained, atol=2e-2)
    assert all(torch.equal(one, kept[1][name]) for name, one in train.weights_of(model).items())
