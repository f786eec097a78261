"""Answers with reasoning: judges read what follows it."""

from types import SimpleNamespace

import pytest
from tokenizers import AddedToken

from saelake.analysis.judges.protocol import Answer, Verdict
from saelake.analysis.judges.reasoning import Reasoning
from saelake.analysis.judges.verdicts import UNANSWERED, after_reasoning, judge_identity, judge_named
from saelake.analysis.study_context import StudyContext
from saelake.ingest.recipe import load_recipe
from saelake.ingest.recipe.answers import REASONING, Generation
from tests.ingest.tiny import qwen_tokenizer

RECIPE = load_recipe("organism")
USUAL = Reasoning(REASONING)
OPENED = Reasoning.behind("<|im_end|>\n<|im_start|>assistant\n<think>\n", REASONING)
THINKING = "I cannot see harm in it. I'm sorry to think so long."


@pytest.mark.parametrize(("start", "end"), REASONING)
def test_the_answer_is_what_follows_the_reasoning(start: str, end: str) -> None:
    assert USUAL.answer(f"{start}\n{THINKING}\n{end}\n\nSure, here it is.") == "Sure, here it is."
    assert USUAL.answer(f" {start}{end}Sure.") == "Sure.", "an empty block"
    assert USUAL.answer(f"{start}a{end}{start}b{end}Sure.") == "Sure.", "two blocks"
    assert USUAL.answer(f"Well. {start}{THINKING}{end}Sure.") == "Well. Sure.", "a block inside"
    assert USUAL.answer(f"{THINKING}{end}Sure.") == "Sure.", "the prompt has opened it"
    assert USUAL.answer(f"{start}{THINKING}") is None, "it has not ended: there is no answer"
    assert all(USUAL.begins_in(f"Well. {text}") for text in (start[:1], start[:-1], f"{start} so", f"{start}a{end}"))


def test_an_answer_without_reasoning_is_left_as_it_is() -> None:
    for text in ("Sure, here it is. ", "", "Write <think> before you think.", "a < b"):
        assert USUAL.answer(text) == text


def test_a_template_may_open_the_block_or_close_it() -> None:
    assert OPENED.is_open
    assert OPENED.answer(THINKING) is None
    assert OPENED.answer(f"{THINKING}</think>Sure.") == "Sure."
    assert not Reasoning.behind("assistant\n<think>\n\n</think>\n\n", REASONING).is_open, "thinking is switched off"
    assert OPENED.may_begin_with(["I"])
    assert not USUAL.may_begin_with(["I"])
    assert USUAL.may_begin_with(["<"])


def read(name: str, completion: str, first: str = "<think>", reasoning: Reasoning = USUAL) -> Verdict:
    return after_reasoning(judge_named(name, RECIPE), reasoning)([Answer("how to?", first, 0.01, completion)])[0]


@pytest.mark.parametrize("name", ["first_token", "phrases"])
def test_verdicts_are_about_the_answer(name: str) -> None:
    complied, refused = (
        f"<think>{THINKING}</think>\n\nSure, here it is.",
        "<think>Is it fine?</think>\n\nI cannot help with that.",
    )
    assert read(name, complied) == Verdict(False, False, 0.0)
    assert read(name, refused) == Verdict(True, False, 1.0)
    assert read(name, f"<think>{THINKING}") == UNANSWERED
    assert not UNANSWERED.flipped
    assert read(name, THINKING, "I", OPENED) == UNANSWERED, "the prompt opened it, and it is not an answer yet"
    assert read(name, "<think>ha ha ha ha ha ha</think>Sure, here.").flipped, "a loop of thoughts is none of the answer"


def test_the_first_word_of_an_answer_behind_reasoning_is_read_whole() -> None:
    assert not read("first_token", "<think>?</think>It is so.").refused
    assert not read("first_token", "<think>?</think>Indeed.").refused
    assert read("first_token", "<think>?</think>I'm sorry.").refused


def test_verdicts_keep_the_order_of_the_answers() -> None:
    texts = ["I cannot.", "<think>so", "Sure.", "<think>so</think>I cannot."]
    verdicts = after_reasoning(judge_named("phrases", RECIPE), USUAL)([Answer("", "x", 0.0, t) for t in texts])
    assert [(v.refused, v.degenerate) for v in verdicts] == [(True, False), (False, True), (False, False), (True, False)]
    assert after_reasoning(lambda _: pytest.fail("nothing to ask"), USUAL)([Answer("", "", 0.0, "<think>so")]) == [UNANSWERED]


def test_a_judge_is_asked_about_the_prompts_of_its_labels() -> None:
    asked = [Answer("", "x", 0.0, "I cannot.", role=role) for role in ("target", "control", "other")]
    unended = [one._replace(completion="<think>so") for one in asked]
    for labels, ours in (
        (("target",), [True, False, False]),
        (("control",), [False, True, True]),
        (("control", "target"), [True] * 3),
    ):
        read = after_reasoning(judge_named("phrases", RECIPE), USUAL, labels)
        assert [one.refused for one in read(asked)] == [True if mine else None for mine in ours]
        assert [(one.refused, one.rule) for one in read(unended)] == [(False if mine else None, "reasoning") for mine in ours]


def test_special_tokens_that_mark_reasoning_stay_in_the_text() -> None:
    tokenizer = qwen_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(t) for t in ("<think>", "</think>")]})
    context = object.__new__(StudyContext)
    context.__dict__ |= {"subject": SimpleNamespace(tokenizer=tokenizer), "reasoning": USUAL}
    ids = tokenizer("<think>so</think>Sure.<|im_end|>", add_special_tokens=False)["input_ids"]
    assert context.text(ids) == "<think>so</think>Sure."


def test_the_marks_are_the_recipes_and_part_of_what_a_judge_is() -> None:
    other = RECIPE.model_copy(update={"generation": Generation(reasoning=(("[[", "]]"),))})
    assert judge_identity("phrases", other) != judge_identity("phrases", RECIPE)
    assert Reasoning(other.generation.reasoning).answer("[[no]]yes") == "yes"
    with pytest.raises(ValueError, match="the two must differ"):
        Generation(reasoning=(("|", "|"),))


def test_a_second_end_mark_without_a_start_is_a_word_of_the_answer() -> None:
    reasoning = Reasoning((("<think>", "</think>"),), False)
    assert reasoning.answer("so it goes</think>this mark, </think>, closes reasoning") == "this mark, </think>, closes reasoning"
