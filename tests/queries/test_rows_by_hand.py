"""Which prompts and answers questions and pages count, on the hand-made lake with rows of a few tables put in by hand."""

from collections.abc import Iterator
from typing import Any

import duckdb
import pytest

from saelake import queries
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from tests.lakes import build_lake, prompt_id

SET, FEATURE = 77, {"layer": 0, "sae_id": "sae0", "feature_id": 1}


class Tables:
    """A connection to a lake, on which tables of its own hide the lake's."""

    def __init__(self, con: duckdb.DuckDBPyConnection, lake: Lake) -> None:
        self.con, self.first = con, prompt_id(lake, 0)
        for name in ("ablations", "verdicts", "feature_sets", "recoveries", "single_effects"):
            con.execute(f"create temp table {name} as from memory.main.{name}")
        self.add("feature_sets", set_id=SET, value=0, **FEATURE)

    def add(self, table: str, **values: Any) -> None:
        self.con.execute(f"insert into {table} by name select {', '.join(f'? as {name}' for name in values)}", [*values.values()])

    def answer(self, prompt: int, *, flips: bool, p: float = 0.5, set_id: int = SET, **values: Any) -> None:
        """An answer under a set, and what first_token reads in it."""
        ablation = {"ablation_id": len(self.con.sql("from ablations").fetchall()), "prompt_id": self.first + prompt}
        self.add("ablations", p_refusal_token=p, set_id=set_id, completion="", **ablation, **values)
        self.add("verdicts", ablation_id=ablation["ablation_id"], judge="first_token", refused=not flips, flipped=flips)

    def ask(self, name: str, columns: str, **values: Any) -> list[Any]:
        return queries.run(self.con, name, **values).project(columns).fetchall()


@pytest.fixture
def tables(tmp_path: Any) -> Iterator[Tables]:
    lake = build_lake(tmp_path / "lake")
    with connect(lake) as con:
        yield Tables(con, lake)


def test_recovered_is_over_target_prompts_whose_behaviour_the_set_takes_away(tables: Tables) -> None:
    for prompt, before, shown in ((0, False, True), (1, True, True), (2, False, False), (4, False, True)):
        for kind in ("free", "random"):
            row = {"prompt_id": tables.first + prompt, "shown_before": before, "shown": shown or kind == "random"}
            tables.add("recoveries", set_id=SET, kind=kind, source="minimal", **row)
    assert tables.ask("feature_facts", "recovered", **FEATURE) == [(1 / 2,)], "of prompts 0 and 2"
    assert tables.ask("feature_list", "recovered", **FEATURE) == [(1 / 2,)]


def test_a_prompt_whose_answer_is_stored_counts_once_in_a_feature_s_effect(tables: Tables) -> None:
    tables.answer(0, flips=False, p=0.25, method="minimal", condition="minimal")
    for prompt, p_target in ((0, 0.0), (1, 0.5)):
        tables.add("single_effects", prompt_id=tables.first + prompt, p_clean=0.5, p_target=p_target, flipped=False, **FEATURE)
    assert tables.ask("feature_list", "effect, n_effect", **FEATURE) == [(0.125, 2)]
    assert set(tables.ask("feature_effects", "mean_fall, n_prompts", **FEATURE)) == {(0.125, 2)}, "as its card says"


def test_a_set_flips_a_prompt_that_is_refused_without_it(tables: Tables) -> None:
    for prompt in (0, 3):  # the unmodified model answers prompt 3
        tables.answer(prompt, flips=True, method="top_k", condition="top_k_own", part="own", k=1)
    columns = "n_prompts, n_flipped"
    assert tables.ask("feature_in_sets", columns, **FEATURE) == [(2, 1)]
    assert tables.ask("feature_sets_held", columns) == [(2, 1)]


def test_of_a_search_that_never_flips_a_prompt_the_lowest_p_is_shown(tables: Tables) -> None:
    for k, p in ((1, 0.5), (2, 0.25), (3, 0.375)):
        tables.add("feature_sets", set_id=SET + k, value=0, **FEATURE)
        for feature_id in range(2, k + 1):
            tables.add("feature_sets", set_id=SET + k, value=0, **FEATURE | {"feature_id": feature_id})
        tables.answer(1, flips=False, p=p, set_id=SET + k, method="sweep", condition="sweep", k=k)
    asked = {"prompt_id": tables.first + 1}
    assert ("sweep", 2, 0.25, 2) in tables.ask("prompt_answers", "condition, k, p_target, n_features", **asked)
    for k in (3, 1):
        tables.answer(1, flips=True, p=0.4, set_id=SET + k, method="sweep", condition="sweep", k=k + 10)
    assert ("sweep", 11, 1) in tables.ask("prompt_answers", "condition, k, n_features", **asked), "the fewest features of those"


def test_random_features_that_flip_are_no_candidates(tables: Tables) -> None:
    tables.add("feature_sets", set_id=SET + 1, value=0, **FEATURE | {"feature_id": 2})
    tables.answer(0, flips=True, set_id=SET + 1, method="top_k", condition="random", control="random", k=1)
    tables.answer(0, flips=True, method="top_k", condition="top_k_own", part="own", k=2)
    for direction in ("own", "first"):
        found = tables.ask("populations", "population, feature_id, n_prompts", direction=direction)
        assert [row for row in found if row[0] == "candidates"] == [("candidates", 1, 1)]


def test_what_algorithm_1_left_over_is_not_what_it_found(tables: Tables) -> None:
    before = tables.ask("prompt_list", "prompt_id, n_methods")
    tables.answer(0, flips=True, method="algorithm1", condition="algorithm1_complement", part="complement", stage="algorithm1")
    tables.answer(0, flips=False, method="algorithm1", condition="algorithm1", stage="algorithm1")
    assert tables.ask("prompt_list", "prompt_id, n_methods") == before
    for question, asked in (("feature_in_sets", FEATURE), ("feature_sets_held", {})):
        assert tables.ask(question, "condition, n_prompts", **asked) == [("algorithm1", 1)]


def test_a_prompt_that_is_answered_anyway_finds_no_features(tables: Tables) -> None:
    tables.add("feature_sets", set_id=SET + 1, value=0, **FEATURE | {"feature_id": 2})
    for prompt, set_id in ((0, SET), (3, SET + 1)):  # the unmodified model answers prompt 3
        tables.answer(prompt, flips=True, set_id=set_id, method="top_k", condition="top_k_own", part="own", k=1)
        tables.answer(prompt, flips=True, set_id=set_id, method="stage3", condition="stage3", k=1)
    for direction in ("own", "first"):
        found = tables.ask("populations", "population, feature_id, n_prompts", direction=direction)
        assert found == [("candidates", 1, 1), ("stage3", 1, 1)]
