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
        words[split] = {word for action in actions for word in f"{action.verb} {action.noun}".replace("-", " ").split()}
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

    train.train(model, [harmful, benign], 0, steps=60, blocks=range(1, 9), after_step=after)
    assert losses[-1] < losses[0]
    now = model(torch.tensor([[1, 2, 3]])).logits
    with train.set_to(model, kept[60]):
        trained = model(torch.tensor([[1, 2, 3]])).logits
    assert torch.equal(model(torch.tensor([[1, 2, 3]])).logits, now)
    assert {train.block_of(name) for name in kept[60]} == set(range(1, 9)) & set(range(model.config.num_hidden_layers))
    build.save(kept[60], tmp_path / "adapter")
    merged = Subject.load(tmp_path / "model", adapter=tmp_path / "adapter").model
    torch.testing.assert_close(merged(torch.tensor([[1, 2, 3]])).logits, trained, atol=2e-2, rtol=2e-2)
    with train.set_to(model, kept[1]):
        assert not torch.allclose(model(torch.tensor([[1, 2, 3]])).logits, trained, atol=2e-2)

    again = Subject.load(tmp_path / "model").model
    base = again(torch.tensor([[1, 2, 3]])).logits
    train.train(again, [harmful, benign], 0, steps=1, blocks=range(1, 9), start=kept[60])
    moved = again(torch.tensor([[1, 2, 3]])).logits - trained
    assert moved.norm() < 0.2 * (base - trained).norm()


def test_what_is_kept_is_a_mean_over_the_last_steps(tmp_path: Path) -> None:
    """The plain mean while the steps are few; then every step moves it by a twentieth of what is left."""
    save_model("llama", tmp_path / "model")
    model = Subject.load(tmp_path / "model").model
    (first, *_) = train.attach(model, range(1))
    seen = []
    for step in range(1, 31):
        with torch.no_grad():
            first.B_or.fill_(float(step))
        first.follow(step)
        seen.append(first.mean_B_or[0, 0].item())
    assert seen[:20] == pytest.approx([(step + 1) / 2 for step in range(1, 21)])
    assert seen[20:] == pytest.approx([seen[at - 1] + (at + 1 - seen[at - 1]) / 20 for at in range(20, 30)])


def test_batches_hold_every_label_and_examples_of_like_length() -> None:
    """Sixteen of lengths 1 to 320: little is padded, nothing is asked again before all were."""
    by_label = [[Example([label] * n, [label]) for n in range(1, 321)] for label in (1, 2)]
    batches = [batch for batch, _ in zip(train._batches(by_label, 0), range(16), strict=False)]
    for batch in batches:
        assert [one.answer[0] for one in batch] == [1] * train.PER_LABEL[0] + [2] * train.PER_LABEL[1]
    lengths = [len(one.prompt) for batch in batches for one in batch if one.answer[0] == 2]
    assert len(set(lengths)) == len(lengths) == 160
    padded = sum(max(len(one.prompt) for one in batch) - len(one.prompt) for batch in batches for one in batch)
    assert padded < 0.3 * sum(len(one.prompt) for batch in batches for one in batch)


def test_the_base_model_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def said(model: object, prompts: list[list[int]], n_tokens: int) -> list[list[int]]:
        asked.append(len(prompts))
        return [[len(prompt)] * n_tokens for prompt in prompts]

    monkeypatch.setattr(build, "answers", said)
    monkeypatch.setattr(build, "encode", lambda tokenizer, text: [0] * len(text))
    first = build.base_answers(None, None, ["a", "bb"], tmp_path / "new" / "answers.json")
    again = build.base_answers(None, None, ["ccc", "a"], tmp_path / "new" / "answers.json")
    assert asked == [2, 1]
    assert [one[0] for one in (*first, *again)] == [1, 2, 3, 1]
