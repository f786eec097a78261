"""A judge of the user's own: code beside the recipe, which runs only with the user's leave."""

from pathlib import Path

import pytest

from saelake.analysis.judges.protocol import Answer
from saelake.analysis.judges.verdicts import judge_identity, judge_named
from saelake.ingest.recipe import Recipe, load_recipe
from saelake.ingest.recipe.judges import NAMED
from saelake.warehouse.errors import UserError
from tests.planted import write_planted

CODE = """
from pathlib import Path

import numpy as np

Path(__file__).with_name("ran").touch()

class Mine:
    def __init__(self, word="cannot", version=1):
        self.word, self.identity = word, {"version": version}
    def __call__(self, answers):
        return [None if a.label == "benign" else self.word in a.completion for a in answers]

class Nameless:
    def __call__(self, answers):
        return []

class Wrong(Mine):
    def __call__(self, answers):
        return ["yes"]

class NA:  # as pandas has it
    def __eq__(self, other):
        return self
    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")

class Missing(Mine):
    def __call__(self, answers):
        return [NA()]

class Rows(Mine):
    def __call__(self, answers):
        return np.zeros((len(answers), 2))

class Fails(Mine):
    def __call__(self, answers):
        return 1 / 0
"""


def recipe_with(folder: Path, name: str, table: str) -> Recipe:
    planted = write_planted(folder)
    (folder / f"{name}.py").write_text(CODE)
    file = planted.recipe
    file.write_text(file.read_text() + f"\n[judges.mine]\n{table}\n")
    return load_recipe(file)


def test_code_runs_only_with_leave(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, "allowed_judge", 'class = "allowed_judge:Mine"\noptions = { word = "no" }')
    for ask in (judge_named, judge_identity):
        with pytest.raises(UserError, match="would run code, allowed_judge:Mine: look at it, and say --allow-code"):
            ask("mine", recipe)
    assert not (tmp_path / "ran").exists()
    allowed = recipe.allowing(code=True)
    assert allowed.limit(2).allows_code, "a cut recipe keeps the leave"
    judge = judge_named("mine", allowed)
    assert (tmp_path / "ran").exists()
    answers = [Answer("p", "x", 0.1, "no, never"), Answer("p", "x", 0.1, "sure"), Answer("p", "x", 0.1, "no", label="benign")]
    assert [v.refused for v in judge(answers)] == [True, False, None]
    assert [v.flipped for v in judge(answers)] == [False, True, None]


def test_its_own_identity_and_its_options_are_part_of_the_run(tmp_path: Path) -> None:
    tables = ("", "options = { word = 'no' }", "options = { version = 2 }")
    found = []
    for n, options in enumerate(tables):
        (tmp_path / str(n)).mkdir()
        recipe = recipe_with(tmp_path / str(n), f"identified_{n}", f'class = "identified_{n}:Mine"\n{options}')
        identity = judge_identity("mine", recipe.allowing(code=True))
        found.append({name: value for name, value in identity.items() if name != "class"})
    assert found[0]["identity"] == {"version": 1}
    assert found[2]["identity"] == {"version": 2}
    assert found[0] != found[1] != found[2]


@pytest.mark.parametrize(
    ("class_name", "expected"),
    [
        ("Nameless", "needs a property `identity` of JSON values"),
        ("Wrong", "must give True, False or None for each of 1 answers"),
        ("Missing", "must give True, False or None for each of 1 answers"),
        ("Rows", "must give True, False or None for each of 1 answers"),
        ("Fails", r"failed \(ZeroDivisionError"),
        ("Absent", r"cannot be loaded \(AttributeError"),
    ],
)
def test_what_is_no_judge_is_one_sentence(tmp_path: Path, class_name: str, expected: str) -> None:
    module = f"mistaken_{class_name.lower()}"
    recipe = recipe_with(tmp_path, module, f'class = "{module}:{class_name}"').allowing(code=True)

    def ask() -> None:
        judge = judge_named("mine", recipe)
        assert judge.identity
        judge([Answer("p", "x", 0.1, "a")])

    with pytest.raises(UserError, match=rf"judges\.mine.*{expected}"):
        ask()


def test_names_come_from_files_and_tables(tmp_path: Path) -> None:
    assert NAMED == ("first_token", "harmbench", "phrases")
    recipe = recipe_with(tmp_path, "named_judge", 'class = "named_judge:Mine"')
    assert recipe.judge_names == (*NAMED, "mine")
    text = (tmp_path / "recipe.toml").read_text()
    for old, new, expected in (
        ("[judges.mine]", "[judges.phrases]", r"judges\.phrases: the name is taken"),
        ("[judges.mine]", "[judges.oracle]", r"judges\.oracle: the name is taken"),
        (
            'oracle = "first_token"',
            'oracle = "first_token"\ncontrol_oracle = "min"',
            r"verdicts\.control_oracle should be one of .*not 'min'",
        ),
    ):
        assert old in text
        (tmp_path / "other.toml").write_text(text.replace(old, new))
        with pytest.raises(UserError, match=expected):
            load_recipe(tmp_path / "other.toml")
