"""Whether answers flip or show the behaviour, and which prompts are answered whole for that, by an oracle of each kind."""

from typing import Any

import numpy as np
import pytest

from saelake.analysis import verbs
from saelake.analysis.engine.requests import DirectionEdit, Request
from saelake.analysis.judges.reasoning import Reasoning
from saelake.analysis.search.answers import flipped, judged, shown
from saelake.analysis.study_context import StudyContext
from saelake.ingest.recipe import load_recipe
from saelake.ingest.sites import Site
from tests.analysis.effects import Analysed


def opened(study: Analysed, oracle: str) -> StudyContext:
    """The planted study by another oracle."""
    path = study.planted.folder / f"oracle_{oracle}.toml"
    text = study.planted.recipe.read_text()
    assert 'oracle = "first_token"' in text
    path.write_text(text.replace('oracle = "first_token"', f'oracle = "{oracle}"'))
    return StudyContext(verbs.open_analysis(load_recipe(path)), study.lake)


def refused_and_answered(study: Analysed, context: StudyContext) -> list[Request]:
    """Refused prompts, and two of them once more with the direction taken out, which the model answers."""
    ((vector,),) = study.sql("select vector from directions where chosen")
    out = DirectionEdit(np.array(vector, dtype=np.float32), tuple(map(Site, range(6))))
    targets = context.study.prompts_of("test", "target")
    return [*(Request(p) for p in targets), *(Request(p, direction=out) for p in targets[:2])]


@pytest.mark.parametrize(("oracle", "whole"), [("first_token", (2, 6)), ("phrases", (8, 8))])
def test_an_oracle_that_reads_texts_is_given_those_of_all_requests(
    study: Analysed, monkeypatch: pytest.MonkeyPatch, oracle: str, whole: tuple[int, int]
) -> None:
    context = opened(study, oracle)
    asked = refused_and_answered(study, context)
    answer, counted = context.engine.answer, list[int]()

    def counting(requests: Any, *arguments: Any, **named: Any) -> Any:
        counted.append(len(requests))
        return answer(requests, *arguments, **named)

    monkeypatch.setattr(context.engine, "answer", counting)
    assert flipped(context, asked) == [False] * 6 + [True] * 2
    assert sum(counted) == whole[0], "by first tokens the refusals end there"
    counted.clear()
    found = shown(context, asked)
    assert found.shown.tolist() == [True] * 6 + [False] * 2
    assert (found.p_target[:-2] > 0.5).all()
    assert (found.p_target[-2:] < 0.5).all()
    assert sum(counted) == whole[1], "by first tokens the answers end there"


def test_an_answer_ends_with_the_phrase_that_makes_it_a_refusal_unless_it_is_wanted_whole(study: Analysed) -> None:
    context = opened(study, "phrases")
    asked = refused_and_answered(study, context)
    whole, ended = judged(context, asked), judged(context, asked, whole=False)
    assert {one.completion for one in whole[:6]} == {"I cannot help ."}
    assert {one.completion for one in ended[:6]} == {"I cannot"}
    assert ended[6:] == whole[6:]
    assert [one.verdict.flipped for one in ended] == [one.verdict.flipped for one in whole]


def test_where_a_beginning_may_turn_out_to_be_reasoning_nothing_is_settled_by_it(study: Analysed) -> None:
    context = opened(study, "phrases")
    request = refused_and_answered(study, context)[0]
    (refusal,) = context.engine.answer([request], 2).token_ids
    assert context.settled(request.prompt, refusal)
    assert not context.settled(request.prompt, refusal[:1])
    thinking = opened(study, "phrases")
    thinking.reasoning = Reasoning((("<think>", "</think>"),), is_open=True)
    assert not thinking.settled(request.prompt, refusal)


def test_nothing_is_settled_by_reasoning_whose_marks_are_ordinary_tokens(study: Analysed) -> None:
    context = opened(study, "phrases")
    context.reasoning = Reasoning((("I", "help"),))
    asked = refused_and_answered(study, context)[:2]
    whole = judged(context, asked)
    assert {one.completion for one in whole} == {"I cannot help ."}, "reasoning, and an answer that is no refusal"
    assert {one.verdict.refused for one in whole} == {False}
    assert judged(context, asked, whole=False) == whole
    assert not context.settled(asked[0].prompt, context.subject.tokenizer.encode("I cannot", add_special_tokens=False))
