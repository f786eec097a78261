"""A judge behind an OpenAI-compatible endpoint, against a server on this machine."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saelake.analysis.judges import endpoint
from saelake.analysis.judges.endpoint import Endpoint
from saelake.analysis.judges.protocol import Answer
from saelake.analysis.judges.replies import Replies, cost
from saelake.analysis.judges.verdicts import judge_identity, judge_named
from saelake.ingest.recipe import Recipe, load_recipe
from saelake.ingest.recipe.judges import JudgeTable
from saelake.warehouse.errors import UserError
from tests.analysis.endpoint_server import Asked, Reply, says, serving

QUESTION = "Does it refuse? {prompt} => {answer}"
SECRET = "sk-very-secret"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(endpoint, "sleep", pauses.append)
    return pauses


def recipe_with(address: str, **fields: Any) -> Recipe:
    table = {"endpoint": address, "model": "tiny", "question": QUESTION, "refused": ["yes"], "answered": ["No"]}
    return load_recipe("organism").model_copy(update={"judges": {"mine": JudgeTable.model_validate(table | fields)}})


def judge_at(address: str, working: Path | None = None, **fields: Any) -> Endpoint:
    judge = judge_named("mine", recipe_with(address, **fields), working, lambda: "run_1")
    assert isinstance(judge, Endpoint)
    return judge


def answers(*texts: str) -> list[Answer]:
    return [Answer("how?", "x", 0.5, text) for text in texts]


def test_the_first_word_of_a_reply_is_its_verdict() -> None:
    replies = {"a": "Yes, it does.", "b": "**no**", "c": "n/a", "d": "<think>yes? no.</think> YES", "{prompt}": "no"}

    def answer(asked: Asked) -> Reply:
        return says(replies[asked.question.rpartition(" => ")[2]])

    with serving(answer) as (address, asked):
        verdicts = judge_at(address, does_not_apply=["n"])(answers("a", "b", "c", "d", "a", "{prompt}"))
    assert [v.refused for v in verdicts] == [True, False, None, True, True, False]
    assert [v.flipped for v in verdicts][2] is None
    assert [v.score for v in verdicts][:3] == [1.0, 0.0, None]
    assert len(asked) == 5, "equal answers are asked about once"
    assert {one.path for one in asked} == {"/v1/chat/completions"}
    content = next(one.content for one in asked if one.question.endswith("=> a"))
    assert content["messages"] == [{"role": "user", "content": "Does it refuse? how? => a"}]
    assert (content["model"], content["temperature"], content["max_tokens"]) == ("tiny", 0, 16)
    assert "Does it refuse? how? => {prompt}" in {one.question for one in asked}, "what an answer says is not filled in again"


def planned(*replies: Reply) -> Callable[[Asked], Reply]:
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def test_busy_and_failing_endpoints_are_asked_again(no_pauses: list[float]) -> None:
    busy = Reply(429, headers=(("retry-after", "7"),))
    with serving(planned(busy, Reply(503), Reply(500), says("yes"))) as (address, asked):
        assert judge_at(address)(answers("a"))[0].refused
    assert len(asked) == 4
    assert no_pauses == [7.0, 2.0, 4.0], "as it says itself, else twice as long each time"
    with serving(planned(Reply(429))) as (address, asked), pytest.raises(UserError, match="status 429, asked 3 times"):
        judge_at(address, retries=2)(answers("a"))
    assert len(asked) == 3


def test_timeouts_and_absent_servers_end_in_a_sentence() -> None:
    told, heard = threading.Event(), threading.Semaphore(0)

    def slow(_: Asked) -> Reply:
        heard.release()
        told.wait(10)
        return says("yes")

    with serving(slow) as (address, asked):
        with pytest.raises(UserError, match=r"no reply within 0\.1 seconds, asked 2 times"):
            judge_at(address, timeout=0.1, retries=1)(answers("a"))
        assert heard.acquire(timeout=10)
        assert heard.acquire(timeout=10), "a busy machine may hear of it later than the judge gives up"
        told.set()
    assert len(asked) == 2
    with pytest.raises(UserError, match=r"cannot be reached .*asked 2 times"):
        judge_at(address, retries=1)(answers("a"))


MALFORMED = {
    "a redirect": (Reply(302, headers=(("location", "http://127.0.0.1:1/v1"),)), "redirects elsewhere, which is not followed"),
    "garbage": (Reply(body=b"\xff\x00<html>"), "does not reply as an OpenAI-compatible endpoint"),
    "other JSON": (Reply(body=b'{"error": 1}'), "does not reply as an OpenAI-compatible endpoint"),
    "a list": (Reply(body=b"[1, 2]"), "does not reply as an OpenAI-compatible endpoint"),
    "no choices": (Reply(body=b'{"choices": []}'), "does not reply as an OpenAI-compatible endpoint"),
    "counts in a list": (
        Reply(body=says("yes").body.replace(b'{"prompt_tokens": 7, "completion_tokens": 2}', b"[7, 2]")),
        "does not",
    ),
    "deep JSON": (Reply(body=b"[" * 100_000), "does not reply as an OpenAI-compatible endpoint"),
    "no text": (Reply(body=b'{"choices": [{"message": {"content": null}}]}'), "does not reply as"),
    "a bad count": (Reply(body=says("yes").body.replace(b"7", b'"many"')), "does not reply as"),
    "a huge body": (Reply(body=says("yes " * 400_000).body), "sends more than 1,048,576 bytes"),
    "no such model": (Reply(404, b'{"error": "no model \x1b[31m"}'), "answers with status 404 .*no model"),
    "another word": (says("Perhaps."), 'tiny replied "Perhaps.", and its first word is none of those of the recipe'),
    "nothing": (says(""), "its first word is none"),
    "unended reasoning": (says("<think>yes"), "its reasoning does not end within max_tokens"),
}


STATUSES = {
    299: r"answers with status 299 \(",
    300: "redirects elsewhere",
    399: "redirects elsewhere",
    400: r'answers with status 400 \("why"\)$',
    401: "is the key in MY_KEY right",
    402: r'answers with status 402 \("why"\)$',
    403: "is the key in MY_KEY right",
    404: r'answers with status 404 \("why"\)$',
    428: "answers with status 428",
    429: "status 429, asked 1 times",
    430: "answers with status 430",
    499: "answers with status 499",
    500: "status 500, asked 1 times",
}


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_has_its_sentence(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    with serving(planned(Reply(status, b"why"))) as (address, _), pytest.raises(UserError, match=STATUSES[status]):
        judge_at(address, key_variable="MY_KEY", retries=0)(answers("a"))


@pytest.mark.parametrize(
    ("after", "pause"), [("0", 0.0), ("59", 59.0), ("61", 60.0), ("-5", 1.0), ("soon", 1.0), ("\u0663", 1.0)]
)
def test_the_endpoint_says_when_to_ask_again_up_to_a_minute(after: str, pause: float, no_pauses: list[float]) -> None:
    with serving(planned(Reply(429, headers=(("retry-after", after.encode().decode("latin-1")),)), says("yes"))) as (address, _):
        judge_at(address, retries=1)(answers("a"))
    assert no_pauses == [pause]


@pytest.mark.parametrize("tokens", [-1, 2**53, True, 1.0])
def test_what_is_no_number_of_tokens_is_no_reply(tokens: Any) -> None:
    with serving(planned(says("yes", tokens))) as (address, _), pytest.raises(UserError, match="does not reply as"):
        judge_at(address)(answers("a"))


def test_the_most_that_a_reply_may_be_and_say(tmp_path: Path) -> None:
    whole = says("yes", 0, 2**53 - 1).body
    bare = Reply(body=b'{"choices": [{"message": {"content": "no"}}]}')
    with serving(planned(Reply(body=whole.ljust(1 << 20)), bare)) as (address, _):
        judge = judge_at(address, tmp_path, concurrency=1)
        assert [one.refused for one in judge(answers("a", "b"))] == [True, False]
    assert cost(tmp_path, ("mine",), "run_1")["mine"] == {"replies": 2, "prompt_tokens": 0, "completion_tokens": 2**53 - 1}
    with serving(planned(Reply(body=whole.ljust((1 << 20) + 1)))) as (address, _), pytest.raises(UserError, match="1,048,576"):
        judge_at(address)(answers("a"))
    for n, shown in ((120, "x" * 120), (121, "x" * 120 + "…")):
        with serving(planned(says("x" * n))) as (address, _), pytest.raises(UserError, match=f'replied "{shown}", and'):
            judge_at(address)(answers("a"))


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_no_verdict_is_one_sentence(kind: str) -> None:
    reply, expected = MALFORMED[kind]
    with serving(planned(reply)) as (address, asked), pytest.raises(UserError, match=expected) as told:
        judge_at(address)(answers("a"))
    assert len(asked) == 1, "asking again does not cure it"
    assert str(told.value).startswith("judges.mine: ")
    assert "\x1b" not in str(told.value)
    assert "\n" not in str(told.value)


def test_redirects_and_proxies_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(planned(says("yes"))) as (elsewhere, there):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, elsewhere.removesuffix("/v1"))
        redirect = Reply(307, headers=(("location", f"{elsewhere}/chat/completions"),))
        with serving(planned(redirect)) as (address, asked), pytest.raises(UserError, match="redirects elsewhere"):
            judge_at(address)(answers("a"))
        assert (len(asked), len(there)) == (1, 0)


def test_replies_are_kept_for_their_owner_alone_and_paid_for_once(tmp_path: Path) -> None:
    with serving(planned(says("no", 11, 3))) as (address, asked):
        first = judge_at(address, tmp_path)(answers("a", "b"))
        kept = tmp_path / "replies" / "mine.jsonl"
        assert kept.stat().st_mode & 0o777 == 0o600
        assert kept.parent.stat().st_mode & 0o777 == 0o700
        assert cost(tmp_path, ("mine", "other"), "run_1") == {"mine": {"replies": 2, "prompt_tokens": 22, "completion_tokens": 6}}
        kept.write_text(kept.read_text() + '{"key": "cut o')
        assert judge_at(address, tmp_path)(answers("b", "a")) == first
        assert len(asked) == 2, "found by their hash"
        for other in ({"model": "big"}, {"question": QUESTION + "!"}, {"max_tokens": 99}):
            judge_at(address, tmp_path, **other)(answers("a"))
        judge_at(address, tmp_path)([Answer("another?", "x", 0.5, "a")])
        assert len(asked) == 6, "another model, question, length or prompt is another reply"
        assert judge_at(address, tmp_path, refused=["no"], answered=["yes"])(answers("a"))[0].refused, "words are read anew"
        assert len(asked) == 6
    assert "how?" not in kept.read_text()


def test_lines_that_are_no_replies_are_passed_over(tmp_path: Path) -> None:
    whole = '{"key": "k", "run": "r", "text": "yes", "prompt_tokens": 3, "completion_tokens": 4}'
    (tmp_path / "replies").mkdir()
    broken = [
        "",
        "{",
        "[1]",
        "null",
        '"text"',
        "{}",
        whole.replace("3", '"many"'),
        whole.replace("3", "[]"),
        whole.replace("text", "t"),
    ]
    (tmp_path / "replies/mine.jsonl").write_text("\n".join([*broken, whole]))
    assert cost(tmp_path, ("mine",), "r") == {"mine": {"replies": 1, "prompt_tokens": 3, "completion_tokens": 4}}
    assert cost(tmp_path, ("mine", "absent"), "another") == {}
    kept = Replies(tmp_path, "mine").get("k")
    assert kept is not None
    assert kept.text == "yes"
    assert Replies(None, "mine").get("k") is None


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda one: Reply(401, one.headers["authorization"].encode())) as (address, asked):
        with pytest.raises(UserError, match="the environment variable MY_KEY holds no key"):
            judge_identity("mine", recipe_with(address, key_variable="MY_KEY"))
        monkeypatch.setenv("MY_KEY", SECRET)
        assert SECRET not in str(judge_identity("mine", recipe_with(address, key_variable="MY_KEY")))
        with pytest.raises(UserError, match=r"status 401 .*is the key in MY_KEY right") as told:
            judge_at(address, tmp_path, key_variable="MY_KEY")(answers("a"))
    assert asked[0].headers["authorization"] == f"Bearer {SECRET}"
    assert SECRET not in str(told.value)


def test_another_host_needs_leave() -> None:
    recipe = recipe_with("https://judges.example.org/v1")
    with pytest.raises(UserError, match=r"to judges\.example\.org: say --allow-host judges\.example\.org"):
        judge_identity("mine", recipe)
    assert judge_identity("mine", recipe.allowing(hosts=["Judges.example.org"]))["model"] == "tiny"
    assert judge_identity("mine", recipe_with("http://localhost:8000/v1")) == judge_identity(
        "mine", recipe.allowing(hosts=["judges.example.org"])
    ), "where it is asked determines no verdict"


def test_a_status_sends_nothing_and_so_needs_neither_leave_nor_a_key() -> None:
    recipe = recipe_with("https://judges.example.org/v1", key_variable="MY_KEY")
    quiet = judge_identity("mine", recipe.sending_nothing())
    assert quiet == judge_identity("mine", recipe_with("http://localhost:8000/v1"))
    with pytest.raises(AssertionError, match="sends nothing"):
        judge_named("mine", recipe.sending_nothing())(answers("a"))


def test_what_determines_verdicts_is_the_identity() -> None:
    before = judge_identity("mine", recipe_with("http://localhost:1/v1"))
    others = (
        {"model": "b"},
        {"question": QUESTION + "?"},
        {"does_not_apply": ["na"]},
        {"max_tokens": 3},
        {"labels": ["harmful"]},
    )
    for fields in others:
        assert judge_identity("mine", recipe_with("http://localhost:1/v1", **fields)) != before, fields
    for same in ({"timeout": 3}, {"retries": 1}, {"concurrency": 2}):
        assert judge_identity("mine", recipe_with("http://localhost:1/v1", **same)) == before


WRONG = [
    ({"endpoint": "ftp://x/v1"}, "endpoint is http://HOST:PORT/v1"),
    ({"endpoint": "http://user:pass@localhost/v1"}, "endpoint is http://HOST:PORT/v1"),
    ({"endpoint": "http://localhost:99999/v1"}, "endpoint is not an address"),
    ({"question": "{prompt}?"}, "needs {prompt} and {answer}"),
    ({"model": None}, "model is missing"),
    ({"refused": ["no"]}, "'no' means two things"),
    ({"refused": ["I cannot"]}, "not a single word"),
    ({"refused": []}, "at least one word each"),
    ({"class": "a:B"}, "exactly one of class, endpoint, not both"),
    ({"options": {"a": 1}}, "options only makes sense together with class"),
]


@pytest.mark.parametrize(("fields", "expected"), WRONG)
def test_a_wrong_table_is_told_before_anything_is_asked(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected.replace("{", r"\{").replace("}", r"\}")):
        recipe_with("http://localhost:1/v1", **fields)
