"""Mistakes in a recipe are told in the words of who writes TOML, with every name that a field has."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from saelake.ingest.recipe import PromptSet
from saelake.ingest.recipe.errors import sentence
from tests.ingest.test_recipe import mistake


class PromptsOnly(BaseModel):
    """A recipe's sets without the rest."""

    prompts: tuple[PromptSet, ...]


MODEL, LABEL = "[model]\n", 'label = "harmful"'
OF_EITHER_KIND = [name for name, field in PromptSet.model_fields.items() if "Discriminator" in repr(field)]
"""Fields of [[prompts]] that are a text or a table."""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (MODEL, '[model]\ntarget_token = ["I"]\n', "no field model.target_token (did you mean 'target_tokens'?)"),
        (MODEL, "[model]\nzzzz = 1\n", "dtype, refusal_tokens, target_tokens, max_prompt_tokens"),
        (MODEL, '[behaviour]\nharmfull = "x"\n[model]\n', "no field behaviour.harmfull (did you mean 'harmful'?)"),
        (MODEL, '[judges.mine]\nclas = "a:B"\n[model]\n', "no field judges.mine.clas (did you mean 'class'?)"),
        (
            MODEL,
            '[model]\nrefusal_tokens = ["Sure"]\ntarget_tokens = ["I"]\n',
            "model: refusal_tokens and target_tokens are two names of one field: give one",
        ),
        (
            MODEL,
            '[behaviour]\ntarget = "bad"\nharmful = "bad"\n[model]\n',
            "behaviour: target and harmful are two names of one field: give one",
        ),
    ],
)
def test_every_name_of_a_field_is_known(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert expected in mistake(tmp_path, (old, new))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (MODEL, '[model]\ntarget_tokens = "I"\n', "model.target_tokens: Input should be a list, not 'I'"),
        (MODEL, "[model]\ntarget_tokens = []\n", "model.target_tokens: the list should not be empty"),
        ("layers = [0, 1]", "layers = 3", "saes.layers: Input should be a list, not 3"),
        ("[[prompts]]", "[prompts]", "prompts: write each set as [[prompts]]"),
        (LABEL, f'{LABEL}\n[losses.texts]\nset = "t"', "losses.texts: write each set as [[losses.texts]]"),
        ('file = "own.csv"', 'sources = { file = "own.csv" }', "prompts[0].sources: Input should be a list of tables"),
        (MODEL, "[[judges]]\n[model]\n", "judges: Input should be a table"),
        (MODEL, '[judges.Bad-Name]\nendpoint = "x"\n[model]\n', "judges.Bad-Name: String should match pattern"),
    ],
)
def test_what_has_the_wrong_form_is_told_in_the_words_of_toml(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert expected in mistake(tmp_path, (old, new))


def test_a_set_that_is_no_table_is_told() -> None:
    with pytest.raises(ValidationError) as caught:
        PromptsOnly.model_validate({"prompts": ["a.jsonl"]})
    assert sentence(caught.value, PromptsOnly) == "prompts[0]: Input should be a table, not 'a.jsonl'"


@pytest.mark.parametrize("given", ["5", "true"])
@pytest.mark.parametrize("field", OF_EITHER_KIND)
def test_what_is_neither_a_text_nor_a_table_is_told_so(tmp_path: Path, field: str, given: str) -> None:
    old, new = (LABEL, f"label = {given}") if field == "label" else (LABEL, f"{LABEL}\n{field} = {given}")
    assert f"prompts[0].{field}: Input should be a text or a table, not" in mistake(tmp_path, (old, new))


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ('[[more_sae]]\npath = "x"\n[model]\n', "no field more_sae (did you mean"),
        ('[concepts.patterns]\nfunction-calling = "x"\n[model]\n', "concepts.patterns.function-calling: Input should be a list"),
        ("[judges.int]\nfoo = 1\n[model]\n", "no field judges.int.foo"),
        ('[generation]\nreasoning = [["a", "b", "c"]]\n[model]\n', "generation.reasoning[0]: the list is too long"),
        ('[generation]\nreasoning = [["a"]]\n[model]\n', "generation.reasoning[0]: the list is too short"),
    ],
)
def test_a_users_own_keys_and_lists_are_told_as_they_are(tmp_path: Path, new: str, expected: str) -> None:
    said = mistake(tmp_path, (MODEL, new))
    assert expected in said
    assert "more_saes" not in said


@pytest.mark.parametrize("field", OF_EITHER_KIND)
def test_of_what_is_a_text_or_a_table_the_kind_is_not_named(tmp_path: Path, field: str) -> None:
    assert f"prompts[0].{field}.column: Input should be a valid string" in mistake(
        tmp_path, (LABEL, f"{LABEL if field != 'label' else ''}\n{field} = {{ column = 3 }}")
    )
    if field in ("label", "system"):
        told = mistake(tmp_path, (LABEL, f"{LABEL if field != 'label' else ''}\n{field} = ''"))
        assert f"prompts[0].{field}: String should have at least 1 character" in told


def test_a_misspelt_column_of_a_system_message_is_named(tmp_path: Path) -> None:
    told = mistake(tmp_path, (LABEL, f'{LABEL}\nsystem = {{ colunm = "x" }}'))
    assert "there is no field prompts[0].system.colunm (did you mean 'column'?)" in told
