"""Names that a question is given: lists take spaces, and one that the lake does not have is named with those that it has."""

from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

import saelake
from saelake import cli
from saelake.queries import QueryError
from saelake.queries.parameters import CHOSEN, PATTERNS
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
    ("features", {"layer": "7"}, "layer: the lake has no layer 7: it has 0, 1"),
    ("candidates", {"exclude_layers": "0, 7"}, "exclude_layers: the lake has no layer 7"),
    ("candidates", {"exclude_layers": [7]}, "exclude_layers: the lake has no layer 7"),
    ("prompt", {"prompt_id": "7"}, "prompt_id: the lake has no prompt 7: it has"),
    ("prompt", {"prompt_id": "seven"}, "prompt_id is the prompt_id of a prompt, not 'seven'"),
    ("firing_on_tokens", {"prompts": [7]}, "prompts: the lake has no prompt 7"),
    ("neighbours", {"layer": 0, "feature_id": 1, "sae_id": "sae2"}, "no sae 'sae2': it has sae0, sae1"),
    ("first_flip", {"condition": "topk%"}, "condition: the lake has no condition like 'topk%': it has direction, none"),
    ("completions", {"label": "harmless"}, "label: the lake has no label 'harmless': it has benign, harmful"),
    ("comparisons", {"measure": "accuracy"}, "measure: the lake has no measure 'accuracy': it has flipped"),
    ("comparisons", {"label": "bad"}, "label: the lake has no compared label 'bad': it has all"),
    ("comparisons", {"condition": "x%"}, "condition: the lake has no condition like 'x%': it has none, top_k_own"),
    ("rates", {"label": "benign"}, "label: the lake has no compared label 'benign'"),
    ("study_scores", {"study": "plot"}, "study: the lake has no annotation study 'plot': did you mean pilot"),
    ("first_flip", {"condition": 5}, "condition is a pattern of `like`, such as top_k_%, not 5"),
    ("asr", {"conditions": 3}, "conditions is a list of conditions, such as none,random, not 3"),
]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_lake(tmp_path_factory.mktemp("choices") / "lake").root


def compared(opened: saelake.OpenLake) -> None:
    """Gives the lake's connection rows of two tables that the hand-made lake lacks."""
    con = opened.connection
    replaced = {
        "comparisons": "'flipped' as measure, 'all' as label, 'none' as a, 'top_k_own' as b",
        "annotations": "'pilot' as study",
    }
    for table, row in replaced.items():
        one = f"from (values (1)) left join memory.main.{table} on true"
        con.execute(f"create temp view {table} as select * replace ({row}) {one}")


@pytest.mark.parametrize(("name", "values", "sentence"), UNKNOWN)
def test_an_unknown_name_is_told(lake: Path, name: str, values: dict[str, Any], sentence: str) -> None:
    with saelake.open(lake) as opened:
        compared(opened)
        for ask in (opened.query, opened.statement):
            with pytest.raises(QueryError, match=sentence):
                ask(name, **values)


def test_every_kind_of_name_is_found_in_its_table(lake: Path) -> None:
    with saelake.open(lake) as opened:
        for column, table in (CHOSEN | PATTERNS).values():
            opened.connection.execute(f"select distinct {column} from {table}")


def test_a_check_that_is_wrong_itself_is_told(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PATTERNS, "compared_like", ("unnest([a, b])", "comparisons"))
    with saelake.open(lake) as opened:
        compared(opened)
        with pytest.raises(duckdb.BinderException, match="UNNEST"):
            opened.query("comparisons", condition="top_k%")


def test_a_pattern_that_fits_a_comparison_is_taken(lake: Path) -> None:
    with saelake.open(lake) as opened:
        compared(opened)
        opened.connection.execute("create temp table unnamed as select * replace ('' as a) from comparisons")
        opened.connection.execute("create or replace temp view comparisons as from unnamed")
        assert opened.query("comparisons", condition="top_k%", measure="flipped").columns
        with pytest.raises(QueryError, match=r"no condition like 'x%': it has top_k_own$"):
            opened.query("comparisons", condition="x%")


def test_the_printed_statement_is_checked_too(lake: Path) -> None:
    asked = ["query", "asr", "--conditions", "none, rnadom", "--lake", str(lake)]
    for how in ([], ["--sql"]):
        told = CliRunner().invoke(cli.main, asked + how)
        assert (told.exit_code, told.output.count("no condition 'rnadom'")) == (1, 1)
    with saelake.open(lake) as opened, pytest.raises(QueryError, match="layer: the lake has no layer 7"):
        opened.sparse(layer=7, library="torch")


def test_lists_take_spaces_and_python_lists(lake: Path) -> None:
    with saelake.open(lake) as opened:
        answers = [
            opened.query("asr", conditions=given).fetchall()
            for given in ("none,random", "none, random", " none , random ,", ["none", "random"], ("random", "none"))
        ]
        assert len(answers[0]) == 8
        assert all(answer == answers[0] for answer in answers)
        assert opened.query("asr", conditions="null").fetchall() == opened.query("asr").fetchall()
