"""Names that a question is given: lists take spaces, and one that the lake does not have is told with those that it has."""

from pathlib import Path

import pytest

import saelake
from saelake.queries import QueryError
from tests.lakes import build_lake

UNKNOWN = [
    ("asr", {"conditions": "none, rnadom"}, r"no condition 'rnadom': did you mean random\? it has direction, none, random"),
    ("asr", {"judge": "nobody"}, "'nobody' has judged no answer here"),
    ("completions", {"condition": "x"}, "no condition 'x'"),
    ("find_prompts", {"words": "text", "label": "harmfull"}, "did you mean harmful"),
    ("find_prompts", {"words": "text", "split": "train"}, "no split 'train': it has test"),
    ("fm_prompts", {"sets": ["hand", "foot"]}, "no prompt set 'foot': it has hand"),
    ("taxonomy_counts", {"sets": "hand , foot"}, "no prompt set 'foot'"),
    ("runs", {"stage": "ingets"}, "did you mean ingest"),
    ("runs", {"study": "smal"}, "did you mean small"),
    ("compare_runs", {"a": "x", "b": "y"}, "a: the lake has no run 'x'"),
    ("feature_search", {"category": "bomb"}, "did you mean bombs"),
    ("asr", {"conditions": 3}, "conditions is a list of conditions, such as none,random, not 3"),
]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_lake(tmp_path_factory.mktemp("choices") / "lake").root


@pytest.mark.parametrize(("name", "values", "sentence"), UNKNOWN)
def test_an_unknown_name_is_told(lake: Path, name: str, values: dict[str, object], sentence: str) -> None:
    with saelake.open(lake) as opened, pytest.raises(QueryError, match=sentence):
        opened.query(name, **values).fetchall()


def test_lists_take_spaces_and_python_lists(lake: Path) -> None:
    with saelake.open(lake) as opened:
        answers = [
            opened.query("asr", conditions=given).fetchall()
            for given in ("none,random", "none, random", " none , random ,", ["none", "random"], ("random", "none"))
        ]
        assert len(answers[0]) == 8
        assert all(answer == answers[0] for answer in answers)
        assert opened.query("asr", conditions="null").fetchall() == opened.query("asr").fetchall()
