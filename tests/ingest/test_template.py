"""The chat template as a stranger's program, and as what decides which prompts are the same to the model."""

import json
from pathlib import Path
from typing import Any

import pytest

from saelake.ingest.prompts import Prompt, load_prompts
from saelake.ingest.recipe import ModelSpec
from saelake.ingest.recipe.effects import TextSet
from saelake.ingest.rendering import render
from saelake.ingest.template import CLOCKS, ChatTemplate
from saelake.ingest.texts import read_texts
from saelake.warehouse.errors import UserError
from tests.ingest.test_prompts import make_recipe
from tests.ingest.tiny import CHATML_TEMPLATE, FAMILIES, GEMMA_TEMPLATE, TOKENIZERS, gemma_tokenizer, llama3_tokenizer

PLAIN = "{{ bos_token }}{{ messages[-1]['content'] | trim }}"


def template_of(text: str | None = None, family: str = "gemma2", **spec: Any) -> ChatTemplate:
    tokenizer = TOKENIZERS[family]()
    return ChatTemplate.of(tokenizer, ModelSpec.model_validate({"id": "a/b", "chat_template": text} | spec))


@pytest.mark.parametrize("family", FAMILIES)
def test_rendering_is_that_of_transformers(family: str) -> None:
    template = template_of(family=family)
    for prompt in ("How?", "  a\nb ", "é {{ x }} <bos>"):
        messages = [{"role": "user", "content": prompt}]
        expected = template.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert template.render(prompt) == expected
    assert template.encode_all(["How?", "Why not?"]) == [template.encode("How?"), template.encode("Why not?")]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"system": "Be kind"}, "model.system changes nothing"),
        ({"template_variables": {"enable_thinkin": True}}, "model.template_variables.enable_thinkin changes nothing"),
        ({"template_variables": {"n": 3}}, "model.template_variables.n changes nothing"),
        ({"template_variables": {"messages": "x"}}, "model.template_variables.messages is not to be set"),
        ({"without_bos": True}, "model.without_bos changes nothing: the chat template writes BOS"),
    ],
)
def test_a_setting_that_the_template_does_not_read_is_refused(spec: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        template_of(PLAIN, **spec)


def test_a_setting_that_says_what_the_template_says_anyway_is_read() -> None:
    text = "{{ bos_token }}{% if think is undefined or think %}I {% endif %}{{ messages[-1]['content'] }}"
    assert template_of(text, template_variables={"think": True}).before == "<bos>I "
    assert template_of(text, template_variables={"think": False}).before == "<bos>"
    text = (
        "{{ bos_token }}{{ messages[0]['content'] if messages[0]['role'] == 'system' else 'Hi' }}!{{ messages[-1]['content'] }}"
    )
    assert template_of(text, system="Hi").before == "<bos>Hi!"


@pytest.mark.parametrize(
    ("text", "variables", "says"),
    [
        ("{{ strftime_now('%d %b %Y') }} {{ date_string | default('x') }}", {}, 'date_string = "26 Jul 2024"'),
        ("{{ strftime_now('%d %b %Y') }}", {}, "reads no date_string"),
        ("{{ strftime_now('%d %b %Y') }} {{ date_string }}", {"date_string": "26 Jul 2024"}, "today's date"),
        ("{% if strftime_now('%Y') > '2030' %}I{% endif %}", {}, "today's date"),
    ],
)
def test_a_template_that_tells_the_time_is_refused(text: str, variables: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        template_of("{{ bos_token }}" + text + "{{ messages[0]['content'] }}", template_variables=variables)


def test_a_clock_that_is_not_shown_is_no_mistake() -> None:
    text = "{{ bos_token }}{% set now = strftime_now('%Y') %}{{ date_string or now }}{{ messages[0]['content'] }}"
    assert template_of(text, template_variables={"date_string": "2024"}).before == "<bos>2024"


def test_bos_is_there_once_or_its_absence_is_meant() -> None:
    bare = "{{ messages[0]['content'] }}"
    with pytest.raises(UserError, match=r"writes no BOS, though the tokenizer has one \(<bos>\).*model\.without_bos = true"):
        template_of(bare)
    assert template_of(bare, without_bos=True).before == ""
    with pytest.raises(UserError, match=r"BOS \(<bos>\) twice"):
        template_of("{{ bos_token }}<bos>{{ messages[0]['content'] }}")
    assert template_of(bare, family="qwen2").before == "", "a tokenizer without BOS"
    with pytest.raises(UserError, match="the tokenizer has no BOS"):
        template_of(bare, family="qwen2", without_bos=True)
    assert llama3_tokenizer()("I")["input_ids"][0] == llama3_tokenizer().bos_token_id
    with pytest.raises(UserError, match="writes no BOS"):
        template_of(CHATML_TEMPLATE, family="llama")


@pytest.mark.parametrize(("family", "text"), [("llama", CHATML_TEMPLATE), ("gemma2", "{{ messages[0]['content'] }}")])
def test_plain_texts_have_no_bos_where_the_model_was_trained_without(tmp_path: Path, family: str, text: str) -> None:
    """Whether the tokenizer would put one by itself, as Llama's does, or not."""
    (tmp_path / "texts.jsonl").write_text('{"text": "a small house by the sea"}\n')
    spec = TextSet(set="some", file=tmp_path / "texts.jsonl")
    without = template_of(text, family, without_bos=True)
    (found,) = read_texts(spec, without)
    assert found.token_ids == without.tokenizer("a small house by the sea", add_special_tokens=False)["input_ids"]
    assert found.n_context == 1
    (usual,) = read_texts(spec, template_of(family=family))
    assert usual.token_ids == [without.tokenizer.bos_token_id, *found.token_ids]


HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = 1 %}{% endfor %}{% endfor %}",
    "a huge format": "{{ '%1000000000d' % 1 }}",
    "a long text": "{{ 'x' * 10**9 }}",
    "a wide text": "{{ 'x' | center(2000000000) }}",
    "a text that doubles": "{% set n = namespace(x='xx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "division by zero": "{{ 1 / 0 }}",
    "a wrong type": "{{ 0 | length }}",
    "deep nesting": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "deep parentheses": "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
    "a huge range": "{{ range(10**9) | list }}",
    "a huge number": "{{ (9 ** 99999999) | string | length }}",
    "attributes": "{{ ''.__class__.__mro__ }}",
    "chance": "{{ [1, 2, 3] | random }}",
    "a missing file": "{% include 'x' %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_in_a_sentence_that_names_it(name: str) -> None:
    with pytest.raises(UserError, match=r"^model\.chat_template: the chat template cannot be rendered \(.+\)$"):
        template_of(HOSTILE[name])
    good = [{"messages": [], "clock": CLOCKS[0]}]
    assert render("I", good)[0].text == "I", "the next template is rendered all the same"


def test_a_template_that_is_hostile_for_one_prompt_only() -> None:
    trap = "{% if 'lock' in messages[0]['content'] %}{{ 'x' * 10**9 }}{% endif %}"
    template = template_of(GEMMA_TEMPLATE + trap)
    with pytest.raises(UserError, match="cannot be rendered"):
        template.encode("Pick a lock")


def load(folder: Path, *sets: list[tuple[str, str, str]], **spec: Any) -> list[Prompt]:
    """Prompts of sets of (text, label, split), told apart by the tokens of the Gemma template, which trims."""
    files = []
    for number, rows in enumerate(sets):
        files.append(folder / f"{number}.jsonl")
        named = [dict(zip(("instruction", "label", "split"), row, strict=True)) for row in rows]
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in named))
    columns = {"label": {"column": "label"}, "split": {"column": "split"}}
    recipe = make_recipe(*[{"file": file, **columns, **spec} for file in files])
    return load_prompts(recipe, ChatTemplate.of(gemma_tokenizer(), ModelSpec(id="a/b")).identities)


HOW, HOW_WITH_SPACE = ("How?", "harmful", "train"), ("How? ", "harmful", "train")


def test_prompts_are_one_by_what_the_model_reads(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rows 1 and 2 are the same prompt, whose texts differ but give the same tokens"):
        load(tmp_path, [HOW, HOW_WITH_SPACE])
    assert [p.text for p in load(tmp_path, [HOW, HOW_WITH_SPACE, ("Why?", "harmful", "train")], deduplicate=True)] == [
        "How?",
        "Why?",
    ]
    assert len(load(tmp_path, [HOW], [HOW_WITH_SPACE])) == 2, "two sets may share a prompt of one label and split"


@pytest.mark.parametrize("deduplicate", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_one_prompt_has_one_label_and_one_split(tmp_path: Path, apart: bool, deduplicate: bool) -> None:
    second = "set1" if apart else "set0"
    for label, split, says in (
        ("benign", "train", rf"'How\?' is harmful in set 'set0', but benign in set '{second}' \(rows 1 and ., *"),
        ("harmful", "test", rf"'How\?' is in split 'train' of set 'set0', but in split 'test' of set '{second}'"),
    ):
        other = ("How?\n", label, split)
        sets = ([HOW], [other]) if apart else ([HOW, other],)
        with pytest.raises(UserError, match=says.replace(r" \(rows 1 and ., *", r" \(rows 1 and .\)")):
            load(tmp_path, *sets, deduplicate=deduplicate)


def test_sets_may_overlap_in_splits_where_the_recipe_says_so(tmp_path: Path) -> None:
    assert len(load(tmp_path, [HOW], [("How?", "harmful", "test")], overlap=True)) == 2
    with pytest.raises(UserError, match="one prompt has one label"):
        load(tmp_path, [HOW], [("How?", "benign", "train")], overlap=True)


def test_words_that_the_vocabulary_lacks_tell_prompts_apart() -> None:
    template = template_of(family="gpt_neox")
    car, boat, trimmed = template.identities(["How zzz?", "How yyy?", " How zzz?"])
    assert car != boat
    assert car == trimmed


@pytest.mark.parametrize("system", ["Write a poem about the sea", "  a small house  "])
def test_tokens_of_the_system_prompt_are_the_systems(system: str) -> None:
    text = "{{ bos_token }}{% for one in messages %}[{{ one['role'] }}] {{ one['content'] | trim }} {% endfor %}"
    template = template_of(text, "llama", system=system)
    found = template.encode("How do I pick a lock?")
    spoken = [one for one, role in zip(found.token_ids, found.roles, strict=True) if role == "system"]
    assert template.tokenizer.decode(spoken).strip() == system.strip()
    assert list(dict.fromkeys(found.roles)) == ["bos", "template", "system", "user"]
    assert set(template_of(text, "llama").encode("How do I pick a lock?").roles) == {"bos", "template", "user"}
