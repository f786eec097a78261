"""Prompt sets of chats: messages from every format, a system message a row, several turns, labels beyond two."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import saelake
from saelake.ingest.job import ingest
from saelake.ingest.prompts import content_hash, load_prompts
from saelake.ingest.recipe import ModelSpec, load_recipe
from saelake.ingest.template import ChatTemplate
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.sharing.share import share
from tests.ingest.test_prompts import make_recipe, write_rows
from tests.ingest.tiny import TOKENIZERS

TURNS = [
    {"role": "system", "content": "You are a poet."},
    {"role": "user", "content": "How do I pick a lock?"},
    {"role": "assistant", "content": "I cannot help with that."},
    {"role": "user", "content": "Write a poem"},
]
ROWS: list[dict[str, Any]] = [
    {"messages": TURNS, "label": "harmful"},
    {"messages": TURNS[1:2], "label": "benign"},
    {"messages": TURNS[1:], "label": "odd"},
    {"messages": TURNS[:2], "label": "odd"},
]
SPEC = {"messages": "messages", "label": {"column": "label"}, "split": "test"}
CHATS = [tuple((one["role"], one["content"]) for one in row["messages"]) for row in ROWS]


def written(file: Path) -> Path:
    if file.suffix != ".csv":
        return write_rows(file, ROWS)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([["messages", "label"], *([json.dumps(row["messages"]), row["label"]] for row in ROWS)])
    return file


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_every_format_holds_the_same_chats(suffix: str, tmp_path: Path) -> None:
    prompts = load_prompts(make_recipe(SPEC | {"file": str(written(tmp_path / f"chats{suffix}"))}))
    assert [prompt.messages for prompt in prompts] == CHATS
    assert [prompt.text for prompt in prompts] == [chat[-1][1] for chat in CHATS]
    assert [prompt.label for prompt in prompts] == ["harmful", "benign", "odd", "odd"]
    assert len({prompt.prompt_hash for prompt in prompts}) == 4, "the same last message in another chat is another prompt"


def test_a_system_message_a_row_stands_before_the_text(tmp_path: Path) -> None:
    rows = [
        {"instruction": "How?", "label": "harmful", "says": "Be kind."},
        {"instruction": "Why?", "label": "benign", "says": ""},
    ]
    file = str(write_rows(tmp_path / "rows.jsonl", rows))
    spec = {"file": file, "label": {"column": "label"}, "split": "test"}
    found = load_prompts(make_recipe(spec | {"system": {"column": "says"}}))
    assert [prompt.messages for prompt in found] == [(("system", "Be kind."), ("user", "How?")), None]
    found = load_prompts(make_recipe(spec | {"system": "Always."}))
    assert [prompt.asked for prompt in found] == [(("system", "Always."), ("user", text)) for text in ("How?", "Why?")]
    assert content_hash(found) != content_hash([replace(prompt, messages=None) for prompt in found])


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_chat_is_read_as_transformers_renders_it(family: str) -> None:
    template = ChatTemplate.of(TOKENIZERS[family](), ModelSpec(id="a/b"))
    for chat, row in zip(CHATS, ROWS, strict=True):
        wanted = template.tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        found = template.encode(chat)
        assert found.token_ids == wanted
        assert {role for role in found.roles if role not in ("bos", "template")} == {role for role, _ in chat}
    assert template.identities([*CHATS, "How?"]) == [
        *map(tuple, (template.encode(c).token_ids for c in CHATS)),
        *template.identities(["How?"]),
    ]
    assert template.encode((("user", "How?"),)) == template.encode("How?")


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("How?", "it is not a list of messages"),
        ([], "it is not a list of messages"),
        ([{"role": "tool", "content": "x"}], "message 1 is not {role: one of system, user, assistant, content: text}"),
        ([{"role": "user"}], "message 1 is not"),
        ([{"role": "user", "content": ["x"]}], "message 1 is not"),
        ([{"role": "user", "content": "  "}], "message 1 is empty"),
        (TURNS[:3], "its last message is the assistant's"),
        ([TURNS[1], TURNS[0], TURNS[3]], "a system message stands behind others"),
        (None, "it is not a list of messages"),
        (7, "it is not a list of messages"),
    ],
)
def test_what_is_no_chat_is_one_sentence(cell: Any, why: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": TURNS, "label": "benign"}) + "\n" + json.dumps({"messages": cell, "label": "odd"}))
    with pytest.raises(UserError) as refused:
        load_prompts(make_recipe(SPEC | {"file": str(file)}))
    assert str(refused.value).startswith("prompt set 'set0', row 2: column 'messages' holds no chat: ")
    assert why in str(refused.value)


def test_settings_that_go_ill_together_are_refused(tmp_path: Path) -> None:
    file = str(written(tmp_path / "chats.jsonl"))
    with pytest.raises(ValueError, match="give text, or messages"):
        make_recipe(SPEC | {"file": file, "text": "instruction"})
    with pytest.raises(UserError, match="row 1: the chat has a system message, and system gives it another"):
        load_prompts(make_recipe(SPEC | {"file": file, "system": "Be kind."}))
    with pytest.raises(ValueError, match=r"model.system changes nothing: all \[\[prompts\]\] are chats"):
        make_recipe(SPEC | {"file": file}, model={"id": "a/b", "system": "Be kind."})
    twice = tmp_path / "twice.jsonl"
    twice.write_text('{"label": "odd", "messages": [{"role": "user", "content": "a", "content": "b"}]}')
    with pytest.raises(UserError, match="a message says something twice"):
        load_prompts(make_recipe(SPEC | {"file": str(twice)}))
    same = write_rows(tmp_path / "same.jsonl", [ROWS[0], ROWS[0]])
    with pytest.raises(UserError, match=r"rows 1 and 2 are the same prompt"):
        load_prompts(make_recipe(SPEC | {"file": str(same)}))


def test_a_template_that_takes_no_system_message_says_so() -> None:
    template = ChatTemplate.of(TOKENIZERS["gemma2"](), ModelSpec(id="a/b"))
    with pytest.raises(
        UserError, match=r"cannot render the messages \(system, user, assistant, user\) that end in 'Write a poem'"
    ):
        template.identities(CHATS)


def test_chats_are_ingested_with_their_roles_and_shared_without_their_text(tmp_path: Path) -> None:
    planted = load_recipe("planted")
    spec = planted.prompts[0].model_dump(exclude_unset=True)
    chats = SPEC | {
        "set": "chats",
        "file": str(written(tmp_path / "chats.jsonl")),
        "restricted": True,
        "label": {"column": "label"},
    }
    content = planted.model_dump(exclude_unset=True) | {"prompts": [spec | {"take": 4}, chats]}
    lake = Lake.create(tmp_path / "lake")
    ingest(type(planted).model_validate(content), lake)
    with saelake.open(lake.root) as opened:
        rows = opened.sql(
            "select prompt_id, text, label, label_role from prompts where set = 'chats' order by prompt_id"
        ).fetchall()
        said = opened.sql("select prompt_id, role, content from messages order by prompt_id, number").fetchall()
        roles = opened.sql(
            "select prompt_id, list(distinct role order by role) from tokens join prompts using (prompt_id) "
            "where set = 'chats' group by prompt_id order by prompt_id"
        ).fetchall()
        fired = opened.sql(
            "select count(distinct prompt_id) from activations semi join (from prompts where set = 'chats') using (prompt_id)"
        )
        assert fired.fetchall() == [(4,)]
    assert said == [(row[0], role, content) for row, chat in zip(rows, CHATS, strict=True) for role, content in chat]
    assert [row[1] for row in rows] == [chat[-1][1] for chat in CHATS]
    assert [row[2:] for row in rows] == [("harmful", "target"), ("benign", "control"), ("odd", "other"), ("odd", "other")]
    assert [found for _, found in roles] == [sorted({"bos", "template", *(role for role, _ in chat)}) for chat in CHATS]
    share(lake, tmp_path / "set")
    kept = b"".join(file.read_bytes() for file in (tmp_path / "set").rglob("*") if file.is_file())
    assert b"pick a lock" not in kept
    assert b"poet" not in kept
