"""What both searches of Stage 2 start from: pools at the first flip, by each ranking, and who takes whose sets."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import pytest

from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.search import critical
from saelake.analysis.search.answers import Ablation
from saelake.analysis.search.critical import controls_by_donor, falls_of, on_controls, pools, search_rows
from saelake.analysis.stage import Condition
from saelake.ingest.recipe import Candidates

RANKED = {"sae_id": np.array(["a", "a", "b", "b"]), "feature_id": np.array([5, 6, 7, 8]), "rank": np.array([1, 2, 1, 2])}
"""The candidates of both directions."""
FIRST = {  # condition -> (prompt_id, first_k, refused at baseline)
    "top_k_own": [(100, 2, True), (101, 1, True), (102, 1, True), (103, None, True), (104, 1, False)],
    "top_k_chosen": [(100, 1, True), (101, 1, True)],
    "top_k_attribution": [(100, 1, True), (103, 2, True)],
}
OWN = [(100, 1, "a", 50), (100, 2, "a", 50), (100, 2, "b", 60), (103, 1, "b", 70), (103, 2, "b", 70), (103, 2, "a", 80)]
"""prompt_id, k, SAE, feature: each prompt's own candidates by attribution."""


class Study:
    """Five prompts, of which the third is not a target one."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, attribution: bool, directions: tuple[str, ...] = ("own", "chosen")
    ) -> None:
        candidates = Candidates.model_validate({"directions": directions, "attribution": attribution})
        roles = ["target", "target", "control", "target", "target"]
        self.context = SimpleNamespace(
            recipe=SimpleNamespace(candidates=candidates, verdicts=SimpleNamespace(oracle="first_token")),
            number_of={100 + i: i for i in range(5)},
            study=SimpleNamespace(role=roles.__getitem__),
            sae_numbers=lambda ids: np.array([{"a": 0, "b": 3}[one] for one in ids]),
        )
        steps = {"own_candidates": "select * from own where $part = 'attribution' order by all"}
        monkeypatch.setattr(critical, "pool", lambda _con, _settings, direction: RANKED if direction in directions else None)
        monkeypatch.setattr(critical, "queries", SimpleNamespace(run=self.first_flip, step=steps.__getitem__))

    @staticmethod
    def first_flip(con: duckdb.DuckDBPyConnection, name: str, condition: str, judge: str) -> duckdb.DuckDBPyRelation:
        assert (name, judge) == ("first_flip", "first_token")
        con.execute("create or replace temp table flips (prompt_id bigint, first_k int, refused_at_baseline bool)")
        con.executemany("insert into flips values (?, ?, ?)", FIRST[condition])
        return con.table("flips")

    @contextmanager
    def sql(self, *_tables: str) -> Iterator[duckdb.DuckDBPyConnection]:
        with duckdb.connect() as con:
            con.execute("create table own (prompt_id bigint, k int, sae_id text, feature_id int)")
            con.executemany("insert into own values (?, ?, ?, ?)", OWN)
            yield con

    def pools(self, direction: str) -> dict[int, tuple[int, str | None, list[tuple[int, int]]]]:
        """Prompt -> K, ranking and the features."""
        work: Any = self
        found = pools(work, direction)
        assert all(one.prompt == prompt for prompt, one in found.items())
        return {
            prompt: (one.k, one.ranking, sorted(zip(one.saes.tolist(), one.feature_ids.tolist(), strict=True)))
            for prompt, one in found.items()
        }


WHOLE, FIRST_ONES = [(0, 5), (0, 6), (3, 7), (3, 8)], [(0, 5), (3, 7)]


def test_a_pool_holds_the_first_k_of_every_sae_for_target_prompts_that_refuse_and_flip(monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(monkeypatch, attribution=False)
    assert study.pools("own") == {0: (2, "own", WHOLE), 1: (1, "own", FIRST_ONES)}
    assert study.pools("chosen") == {0: (1, "chosen", FIRST_ONES), 1: (1, "chosen", FIRST_ONES)}


def test_by_attribution_it_is_the_prompts_own(monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(monkeypatch, attribution=True)
    assert study.pools("attribution") == {0: (1, "attribution", [(0, 50)]), 3: (2, "attribution", [(0, 80), (3, 70)])}


def test_the_first_ranking_to_flip_is_taken_of_those_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    of_own = (1, "own", FIRST_ONES)
    both = Study(monkeypatch, attribution=False).pools("first")
    assert both == {0: (1, "chosen", FIRST_ONES), 1: of_own}, "of equal K the first of own, chosen and attribution"
    every = Study(monkeypatch, attribution=True).pools("first")
    assert every == both | {3: (2, "attribution", [(0, 80), (3, 70)])}
    assert Study(monkeypatch, True, ("own",)).pools("first") == {0: (1, "attribution", [(0, 50)]), 1: of_own, 3: every[3]}


def test_controls_are_dealt_out_to_the_donors_in_turn() -> None:
    study = SimpleNamespace(prompts_of=lambda split, role: [20, 21, 22, 23, 24] if (split, role) == ("test", "control") else [])
    recipe = SimpleNamespace(candidates=SimpleNamespace(split="test"))
    context: Any = SimpleNamespace(study=study, recipe=recipe)
    dealt = controls_by_donor(context, [7, 3])
    assert dealt == {3: [20, 22, 24], 7: [21, 23]}
    assert controls_by_donor(context, range(7)) == {0: [20], 1: [21], 2: [22], 3: [23], 4: [24], 5: [], 6: []}
    assert controls_by_donor(context, []) == {}
    some = FeatureSet.of([0], [1])
    asked = [Ablation(Request(7, some), Condition("minimal"), draw=2), Ablation(Request(3, some), Condition("minimal"), draw=1)]
    taken = [(one.request.prompt, one.draw, one.request.features) for one in on_controls(asked, dealt)]
    assert taken == [(21, 2, some), (23, 2, some), (20, 1, some), (22, 1, some), (24, 1, some)]


def test_what_falls_without_each_candidate_is_0_where_it_does_not_fire(monkeypatch: pytest.MonkeyPatch) -> None:
    fires = (np.array([0, 0, 3]), np.array([5, 6, 5]), np.array([0.5, -0.25, 2.0]))
    monkeypatch.setattr(critical, "ranked", lambda *_: fires)
    pool = critical.Pool(4, 1, np.array([3, 0, 3, 0]), np.array([5, 9, 6, 6]))
    nothing: Any = None
    assert falls_of(nothing, nothing, pool).tolist() == [2.0, 0.0, 0.0, -0.25]
    assert pool.at([1, 0]).rows.tolist() == [(0, 9, 0.0), (3, 5, 0.0)]


def test_rows_of_searches_name_prompt_start_and_pool() -> None:
    context: Any = SimpleNamespace(prompt_ids=np.array([100, 101]))
    pool = critical.Pool(1, 2, np.array([3, 0]), np.array([5, 9]), "own")
    rows = search_rows(context, "minimal", {(1, 0): (pool, 17), (1, 4): (pool, 9)}).rows.to_pylist()
    columns = ("prompt_id", "method", "start", "k", "ranking", "n_candidates", "n_evaluations")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        (101, "minimal", 0, 2, "own", 2, 17),
        (101, "minimal", 4, 2, "own", 2, 9),
    ]
