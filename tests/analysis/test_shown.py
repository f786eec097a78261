"""A behaviour that the model does not show is found by the first answers, before anything is stored."""

from pathlib import Path

import pytest

from saelake.analysis.judges.verdicts import UNANSWERED, Verdict
from saelake.analysis.search.answers import Judged
from saelake.analysis.search.shown import not_shown
from saelake.analysis.verbs import analyze
from saelake.ingest.recipe import load_recipe
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from tests.planted import write_planted


def test_the_sentence_says_what_the_model_says_instead_in_the_behaviours_words() -> None:
    recipe = load_recipe("organism-approval")
    said = [
        Judged(0.0, first, text, Verdict(False, False, 0.0), "first_token")
        for first, text in (("Yes", "Yes,\n\x1b[2J" + "so " * 40), ("Yes", "Yes."), (" A", "A"))
    ]
    told = str(not_shown(recipe, said))
    words = recipe.words
    assert f"the model does not show the behaviour ({words['name']}): of the 3 {words['target']} prompts in split 'val'" in told
    assert f"none is {words['shown']} by {recipe.verdicts.oracle}" in told
    assert r'begin with "Yes" (2), " A" (1), for example "Yes,\n\x1b[2Jso' in told, "model text is escaped, and cut"
    assert "…" in told
    for field in ("model.target_tokens", "verdicts.", "[[prompts]]", "direction.select_split"):
        assert field in told
    assert "no " in str(not_shown(recipe, []))


def test_four_first_tokens_are_quoted_and_eighty_letters_of_an_answer() -> None:
    recipe = load_recipe("organism")

    def told(n: int, length: int) -> str:
        said = [Judged(0.0, f"w{i}", f"{i}" * length, Verdict(False, False, 0.0), "first_token") for i in range(n)]
        return str(not_shown(recipe, said))

    assert '"w0" (1), "w1" (1), "w2" (1), "w3" (1), for example "' in told(4, 80)
    assert '"w0" (1), "w1" (1), "w2" (1), "w3" (1), ..., for example "' in told(5, 80)
    assert f'for example "{"0" * 80}". If' in told(1, 80)
    assert f'for example "{"0" * 80}…". If' in told(1, 81)


def test_reasoning_that_has_not_ended_is_not_taken_for_the_answer() -> None:
    recipe = load_recipe("organism")
    thinking = Judged(0.0, "<think>", "<think> Is this harmful?", UNANSWERED, "first_token")
    told = str(not_shown(recipe, [thinking, thinking, Judged(0.0, "Sure", "Sure", Verdict(False, False, 0.0), "first_token")]))
    assert (
        f"2 of them do not get past their reasoning: raise generation.max_new_tokens ({recipe.generation.max_new_tokens})" in told
    )
    assert "reasoning" not in str(not_shown(recipe, [Judged(0.0, "Sure", "Sure", Verdict(False, False, 0.0), "first_token")]))


def test_analyze_ends_before_it_ingests(tmp_path: Path) -> None:
    file = write_planted(tmp_path).recipe
    file.write_text(file.read_text().replace('refusal_tokens = ["I"]', 'refusal_tokens = ["how"]'))
    lake = Lake.create(tmp_path / "lake")
    with pytest.raises(
        UserError, match=r"does not show the behaviour .* none is refused by first_token; its answers begin with \"I\""
    ):
        analyze(load_recipe(file), lake)
    assert not [*(lake.root / "runs").iterdir(), *(lake.root / "landing").iterdir()], "nothing is stored"
