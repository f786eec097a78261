"""The rules of degeneration on a labelled set of short answers: one half fitted them, the other reports their errors."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from saelake.analysis.judges.degenerate import degenerate_rule, is_degenerate

ANSWERS: list[dict[str, Any]] = [
    json.loads(line) for line in Path(__file__).with_name("degenerate.jsonl").read_text("utf-8").splitlines()
]
"""kind (organism: what the embedded model said, with many features ablated or few), degenerate, half (fit, held out), text"""
RULES = {"empty", "symbols", "characters", "loop", "counted loop", "few words", "scripts"}


def test_the_set_has_both_sides_in_both_halves() -> None:
    sizes = Counter((one["half"], one["degenerate"]) for one in ANSWERS)
    assert len(ANSWERS) >= 200
    assert min(sizes.values()) >= 60, sizes
    assert len({one["text"] for one in ANSWERS}) == len(ANSWERS)


@pytest.mark.parametrize(("half", "missed", "false"), [("fit", 2, 0), ("held out", 2, 4)])
def test_errors_are_few(half: str, missed: int, false: int) -> None:
    """On the held-out half 2 of 79 degenerate answers are missed (loops inside a text), 4 of 86 sensible ones flagged."""
    wrong = [one for one in ANSWERS if one["half"] == half and is_degenerate(one["text"]) != one["degenerate"]]
    print(f"{half}: {Counter('missed' if one['degenerate'] else 'flagged' for one in wrong)}", [one["text"] for one in wrong])
    assert sum(one["degenerate"] for one in wrong) <= missed
    assert sum(not one["degenerate"] for one in wrong) <= false


def test_the_rule_that_decided_is_told() -> None:
    found = Counter(degenerate_rule(one["text"]) for one in ANSWERS if one["degenerate"])
    assert set(found) - {None} == RULES
    kinds = {"loop of words": "loop", "soup": "scripts", "empty": "empty", "loop of characters": "characters"}
    for kind, rule in kinds.items():
        told = Counter(degenerate_rule(one["text"]) for one in ANSWERS if one["kind"] == kind)
        assert told.most_common(1)[0][0] == rule, (kind, told)


@pytest.mark.parametrize("unit", ["(", "|", "#", "a", "ab ", "1 ", "{;", "<a ", "| a ", "的", "[", "\n", "- "])
def test_long_answers_are_read_quickly(unit: str) -> None:
    import time

    start = time.perf_counter()
    degenerate_rule(unit * (6_000 // len(unit)))
    assert time.perf_counter() - start < 2


def test_limits_are_those_that_the_rules_say() -> None:
    """One step on either side of each number in the rules' description."""
    plain = "we go on to the end of the street and"
    assert degenerate_rule(f"{plain} {'stop ' * 5}") == "loop"
    assert degenerate_rule(f"{plain} {'stop ' * 4}") is None
    assert degenerate_rule(f"3 3 {plain} {'stop ' * 5}") == "loop", "the word that loops is the last one"
    assert degenerate_rule("ha " * 12) == "loop"
    assert degenerate_rule("ha " * 11) is None
    assert degenerate_rule(f"{plain} {'read the book ' * 3}") == "loop"
    assert degenerate_rule(f"go {'stop ' * 5}and then we walk") == "loop", "half of ten words"
    assert degenerate_rule(f"go {'stop ' * 5}and then we walk home") is None, "less than half of eleven, and not at the end"
    four = ["one", "two", "three", "four"]
    shuffled = [0, 1, 2, 3, 1, 0, 3, 2, 0, 2, 1, 3, 2, 0, 3, 1, 1, 2, 0, 3]
    twenty = " ".join(four[i] for i in shuffled)
    assert degenerate_rule(twenty) == "few words", "four of twenty are fewer than a quarter"
    assert degenerate_rule(twenty.rpartition(" ")[0]) is None, "a text of nineteen is too short to tell"
    assert degenerate_rule(twenty.replace("four", "five", 1)) is None, "five of twenty are a quarter"


@pytest.mark.parametrize("around", ["{}", "well {}", "{} sure", "well, {} and 3 of us"])
@pytest.mark.parametrize("word", ["ha", "haha", "哈", "5", "2024"])
def test_laughter_and_numbers_are_granted_twelve_wherever_they_stand(around: str, word: str) -> None:
    """What stands beside a stretch, however little, does not take away what is granted to it."""
    for n in range(3, 12):
        assert degenerate_rule(around.format(" ".join([word] * n))) is None, n
    assert degenerate_rule(around.format(" ".join([word] * 12))) == "loop"
    assert degenerate_rule(around.format(" ".join(["ha he"] * 9))) is None
    assert degenerate_rule(around.format(" ".join(["ha he"] * 12))) == "loop", "a phrase of two, twelve times"
    assert degenerate_rule(around.format(" ".join(["tick"] * 5))) == "loop", "any other word takes five"


TABLE = [f"| {i} | {i * i} |" for i in range(8)]
SCRIPTS = "abc где 中 abc где 中"
AT_THE_LIMIT: dict[str, list[tuple[str, str | None]]] = {
    "symbols alone": [("?!?!?", None), ("?!?!?!", "symbols"), ("?!.?!.", None), ("?!?\n!?!", None)],
    "a symbol over and over": [("wow" + "!" * 9, None), ("wow" + "!" * 10, "symbols"), ("wow" + "<>" * 10 + "!?!", "symbols")],
    "more than half of several lines": [("a fine line\n" + "!" * 10, "symbols"), ("a finer line\n" + "!" * 10, None)],
    "a quarter of letters": [("abc#+*~%&$@=", None), ("ab#+*~%&$@=!", "symbols"), ("ab#+*~%&$@=", None)],
    "lines that differ draw": [
        ("#+ *~\n%& $@=!<?", "symbols"),
        ("#+ *~\n%&\n$@=!<?", None),
        ("#+*\n" * 2 + "%&$\n" * 2, "symbols"),
    ],
    "a word of twenty letters": [("ab" * 9 + "a", None), ("ab" * 10, "characters")],
    "of one to six letters": [("abcdef" * 4, "characters"), ("abcdefg" * 3, None)],
    "and up to five more": [("ab" * 8 + "vwxyz", "characters"), ("ab" * 8 + "uvwxyz", None)],
    "one letter in a word": [("n" + "o" * 14 + "!", None), ("n" + "o" * 15 + "!", "characters")],
    "a laugh in one word": [("ha" * 11, None), ("ha" * 12, "characters"), ("ho" * 11 + "w", None)],
    "five changes of script": [(SCRIPTS, "scripts"), (SCRIPTS.removesuffix(" 中"), None), (SCRIPTS.replace(" ", ", ", 1), None)],
    "most neighbours": [("one two three " + SCRIPTS, "scripts"), ("one two three four " + SCRIPTS, None)],
    "three scripts": [("abc где " * 5, "loop"), ("abc где ист ded нет add ото пар foo баб", None)],
    "a counter": [
        (" ".join(f"{i}. go to bed" for i in range(4)), "counted loop"),
        (" ".join(f"{i}. go to bed" for i in range(4)).removesuffix(" bed"), "counted loop"),
        (" ".join(f"{i}. go to bed" for i in range(4)).removesuffix(" to bed"), None),
        (" ".join(f"{i}. go on" for i in range(4)), None),
    ],
    "a phrase of two": [("so far so far so far", "loop"), ("so far so far so", None)],
    "a phrase of three": [("now we go now we go now we", "loop"), ("now we go now we go now", None)],
    "a phrase of forty": [
        (" ".join([f"word{chr(97 + i % 20)}{chr(97 + i // 20)}" for i in range(40)] * 3), "loop"),
        (" ".join([f"word{chr(97 + i % 20)}{chr(97 + i // 20)}" for i in range(41)] * 3), None),
    ],
    "a line of a table": [("\n".join([*TABLE, *["| 7 | 7 |"] * 7]), None), ("\n".join([*TABLE, *["| 7 | 7 |"] * 8]), "loop")],
    "lines in turn": [
        ("\n".join(["| a | b |", "| c | d |"] * 7), None),
        ("\n".join(["| a | b |", "| c | d |"] * 8), "loop"),
        ("\n".join(["| a | b |", "| c | d |", "| e | f |"] * 8), "loop"),
        ("\n".join(TABLE[:4] * 8), None),
    ],
    "most lines are rows": [
        ("go on\n" * 3 + "\n".join(TABLE[:3]), "loop"),
        ("go on\n" * 3 + "\n".join(TABLE[:4]), None),
        ("```\n" + "go on\n" * 3, None),
    ],
}


@pytest.mark.parametrize("limit", AT_THE_LIMIT)
def test_one_step_beyond_each_limit_is_another_rule(limit: str) -> None:
    assert [(text, degenerate_rule(text)) for text, _ in AT_THE_LIMIT[limit]] == AT_THE_LIMIT[limit]
