"""Whether answers flip or show the behaviour, and which prompts are answered whole for that, by an oracle of each kind."""

from typing import Any

import numpy as np
import pytest

from saelake.analysis import stages
from saelake.analysis.engine.requests import DirectionEdit, Request
from saelake.analysis.search.answers import flipped, shown
from saelake.analysis.study_context import StudyContext
from saelake.ingest.recipe import load_recipe
from tests.analysis.effects import Analysed


@pytest.mark.parametrize(("oracle", "whole"), [("first_token", (2, 6)), ("phrases", (8, 8))])
def test_an_oracle_that_reads_whole_answers_is_given_all_of_them(
    study: Analysed, monkeypatch: pytest.MonkeyPatch, oracle: str, whole: tuple[int, int]
) -> None:
    """Refused prompts, two of them once more with the direction taken out, which the model answers."""
    path = study.planted.folder / f"oracle_{oracle}.toml"
    text = study.planted.recipe.read_text()
    assert 'oracle = "first_token"' in text
    path.write_text(text.replace('oracle = "first_token"', f'oracle = "{oracle}"'))
    context = StudyContext(stages.open_analysis(load_recipe(path)), study.lake)
    ((vector,),) = study.sql("select vector from directions where chosen")
    out = DirectionEdit(np.array(vector, dtype=np.float32), tuple(range(6)))
    targets = context.study.prompts_of("test", "target")
    asked = [*(Request(p) for p in targets), *(Request(p, direction=out) for p in targets[:2])]
    answer, counted = context.engine.answer, list[int]()

    def counting(requests: Any, *arguments: Any, **named: Any) -> Any:
        counted.append(len(requests))
        return answer(requests, *arguments, **named)

    monkeypatch.setattr(context.engine, "answer", counting)
    assert flipped(context, asked) == [False] * len(targets) + [True] * 2
    assert sum(counted) == whole[0], "by first tokens the refusals end there"
    counted.clear()
    found = shown(context, asked)
    assert found.shown.tolist() == [True] * len(targets) + [False] * 2
    assert (found.p_target[:-2] > 0.5).all()
    assert (found.p_target[-2:] < 0.5).all()
    assert sum(counted) == whole[1], "by first tokens the answers end there"
