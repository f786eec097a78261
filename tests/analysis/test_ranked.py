"""The search along a ranking: its guarantee whatever flips, its evaluations, and what it finds on the planted network."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from saelake import queries
from saelake.analysis import stage_list, verbs
from saelake.analysis.search import candidates, minimal
from saelake.analysis.search.critical import RANKINGS
from saelake.analysis.search.minimal import Members, drawn_set, ranked_set, run_together
from saelake.analysis.search.ranking import drawn_order
from saelake.analysis.study_context import StudyContext
from saelake.ingest.recipe import load_recipe
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from tests.analysis.effects import MORE, Analysed
from tests.planted import ablate, minimal_sets, prompt_ids


@given(n=st.integers(1, 12), seed=st.integers(0, 2**32 - 1), share=st.floats(0.0, 0.9))
@settings(max_examples=200, deadline=None)
def test_ends_one_minimal_or_empty_even_where_flipping_is_not_monotone(n: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    table = rng.random(2**n) < share
    table[0] = False  # nothing does not flip
    order = rng.permutation(n).tolist()
    asked: list[Members] = []

    def flips(members: Members) -> bool:
        return bool(table[sum(1 << i for i in members)])

    def answer(trials: Sequence[tuple[int, Members]]) -> list[bool]:
        asked.extend(members for _, members in trials)
        return [flips(members) for _, members in trials]

    end = run_together({0: ranked_set(order)}, answer)[0]
    assert len(set(asked)) == len(asked) == end.n_evaluations, "no trial twice"
    if end.members:
        assert flips(end.members)
        assert not any(flips(tuple(m for m in end.members if m != left_out)) for left_out in end.members)
    else:
        assert not any(flips(members) for members in asked)
        assert not flips(tuple(range(n))), "where the whole pool flips, a set is found"


@given(n=st.integers(2, 4000), causes=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_finds_exactly_the_causes_where_all_are_needed_and_few_evaluations_where_they_rank_high(
    n: int, causes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    assume(causes <= n)
    order = rng.permutation(n).tolist()
    needed = set(rng.choice(order[: 2 * causes], causes, replace=False).tolist())
    assume(needed <= set(order))
    end = run_together({0: ranked_set(order)}, lambda trials: [needed <= set(members) for _, members in trials])[0]
    assert set(end.members) == needed
    assert end.n_evaluations <= (causes + 1) * (2 * np.ceil(np.log2(4 * causes)) + 2) + causes


def test_nothing_that_flips_is_an_empty_set() -> None:
    assert run_together({0: ranked_set([2, 0, 1])}, lambda trials: [False for _ in trials])[0].members == ()
    assert run_together({0: ranked_set([])}, lambda trials: [True for _ in trials])[0].members == ()


def test_orders_are_drawn_by_what_falls() -> None:
    falls = np.array([0.0, 3.0, -1.0, 1.0])
    drawn = [drawn_order(falls, np.random.default_rng(seed)) for seed in range(400)]
    assert all(sorted(order.tolist()) == [0, 1, 2, 3] for order in drawn)
    first = np.bincount([order[0] for order in drawn], minlength=4) / len(drawn)
    assert first[1] == pytest.approx(0.75, abs=0.07)
    assert first[3] == pytest.approx(0.25, abs=0.07)


def searched(study: Analysed, folder: Path, fields: str, candidates_too: bool = False) -> Analysed:
    """The study in a lake with the stage minimal of another recipe."""
    shutil.copytree(study.lake.root, folder / "lake")
    path = study.planted.folder / f"{folder.name}.toml"
    text = study.planted.recipe.read_text().replace("[minimal]\nstarts = 12", f"[minimal]\n{fields}")
    path.write_text(text.replace("[candidates]\n", "[candidates]\nattribution = true\n") if candidates_too else text)
    recipe, lake = load_recipe(path), Lake.existing(str(folder / "lake"))
    opened = verbs.open_analysis(recipe)
    known, context = stage_list.specs(opened, lake=lake), StudyContext(opened, lake)
    for stage in stage_list.SEARCH:
        if stage.name in {*minimal.STAGE.parents, minimal.STAGE.name, "direction"}:
            verbs.ensure_stage(stage, known, context)
    return study._replace(recipe=recipe, lake=lake)


SETS = (
    "select text, draw, list((f.layer, feature_id) order by f.layer, feature_id) from ablations as a "
    "join feature_sets as f using (set_id) join prompts as p using (prompt_id) "
    "where method = 'minimal' and label = 'harmful' and control is null and part is null group by all"
)


@pytest.mark.parametrize("pool", ["candidates", "active"])
def test_minimal_sets_along_attribution_are_among_all_that_there_are(study: Analysed, tmp_path: Path, pool: str) -> None:
    """Held against the enumeration of all subsets; for less than a drawn order asks of the same few candidates."""
    found = searched(study, tmp_path, f'starts = 3\norder = "attribution"\npool = "{pool}"')
    rows = found.sql(SETS)
    assert len(rows) == 6 * 3
    assert all(frozenset(features) in study.planted.minimal_sets for *_, features in rows)
    text = rows[0][0]
    assert minimal_sets(study.planted, text, study.loaded) == study.planted.minimal_sets
    spent = "select avg(n_evaluations) from searches where method = 'minimal' and start < 3"
    assert found.sql(spent)[0][0] < (64 if pool == "active" else study.sql(spent)[0][0])
    assert found.sql("select min(n_candidates) from searches where method = 'minimal'")[0][0] > (16 if pool == "active" else 7)


def test_each_prompt_has_candidates_of_its_own_by_attribution(study: Analysed, tmp_path: Path) -> None:
    """What fires and holds the target tokens up; the primary of the last two layers flips every harmful prompt at K = 1."""
    found = searched(study, tmp_path, 'starts = 2\ndirection = "attribution"', candidates_too=True)
    rows = found.sql(
        "select text, k, label, list((f.layer, feature_id)) from ablations as a join prompts using (prompt_id) "
        "left join feature_sets as f using (set_id) where condition = 'top_k_attribution' group by all"
    )
    ks = {k for _, k, *_ in rows}
    assert len(rows) == 12 * len(ks)
    most = {text: Counter(layer for layer, _ in features) for text, k, _, features in rows if k == max(ks)}
    for text, k, label, features in rows:
        mine = [one for one in features if one[0] is not None]
        assert all(sum(layer == at for layer, _ in mine) == min(k, most[text][at]) for at in range(2, 6))
        acts_tf = ablate(study.loaded, prompt_ids(study.loaded, text), [()]).acts_bltf[0]
        assert all((acts_tf[layer, 1:, feature_id] > 0).any() for layer, feature_id in mine)
        if label == "harmful":
            assert {(4, study.planted.primary), (5, study.planted.primary)} <= set(mine)
    sets = found.sql(SETS)
    assert len({text for text, *_ in sets}) == len(
        found.sql("select prompt_id from searches where method = 'minimal' group by 1")
    )
    assert all(frozenset(features) in study.planted.minimal_sets for *_, features in sets)


def test_candidates_by_attribution_are_the_largest_falls_of_each_sae(study: Analysed, monkeypatch: pytest.MonkeyPatch) -> None:
    falls = ([4, 4, 4, 5, 5, 5], [5, 3, 9, 2, 4, 7], [0.1, 0.3, 0.2, -1.0, 0.4, 0.5])
    monkeypatch.setattr(candidates, "ranked", lambda *_: tuple(map(np.array, falls)))
    context = StudyContext(verbs.open_analysis(study.recipe), study.lake)
    first, second, *_ = candidates._attributed(context, candidates.engine_of(context), 0)
    assert first.k == 1
    assert first.request.features.rows[["sae", "feature_id"]].tolist() == [(4, 3), (5, 7)]
    assert second.request.features.rows[["sae", "feature_id"]].tolist() == [(4, 3), (4, 9), (5, 4), (5, 7)]


def test_a_pool_is_that_of_the_ranking_that_flips_the_prompt_first(study: Analysed, tmp_path: Path) -> None:
    found = searched(study, tmp_path, 'starts = 2\ndirection = "first"', candidates_too=True)
    tried = found.sql(
        "select prompt_id, k, part, set_id from ablations join verdicts using (ablation_id) join prompts using (prompt_id) "
        "where method = 'top_k' and flipped and judge = 'first_token' and label = 'harmful'"
    )
    first: dict[int, tuple[int, str, int]] = {}
    for prompt, k, part, set_id in sorted(tried, key=lambda row: (row[0], row[1], RANKINGS.index(row[2]))):
        first.setdefault(prompt, (k, part, set_id))
    ended = found.sql("select distinct prompt_id, k, ranking, n_candidates from searches where method = 'minimal'")
    assert {prompt: (k, ranking) for prompt, k, ranking, _ in ended} == {p: (k, part) for p, (k, part, _) in first.items()}
    for prompt, _, _, n_candidates in ended:
        assert found.sql(f"select count(*) from feature_sets where set_id = {first[prompt][2]}") == [(n_candidates,)]
    with found.connect() as con:
        audited = queries.run(con, "audit_sets", judge="first_token", direction="first", prompts=sorted(first)).fetchall()
    assert {row[0]: row[3] for row in audited if row[1] == "top_k" and row[2] is None} == {p: one[2] for p, one in first.items()}
    assert frozenset(found.sql(SETS)[0][2]) in study.planted.minimal_sets


def test_candidates_by_attribution_are_asked_for_before_they_are_searched(study: Analysed) -> None:
    path = study.planted.folder / "unasked.toml"
    path.write_text(study.planted.recipe.read_text().replace("[minimal]\n", '[minimal]\ndirection = "attribution"\n'))
    with pytest.raises(UserError, match=r"or set candidates\.attribution = true"):
        load_recipe(path)


def test_a_pool_of_active_features_needs_the_ranking(study: Analysed) -> None:
    assert "starts = 12" in MORE
    path = study.planted.folder / "unranked.toml"
    path.write_text(study.planted.recipe.read_text().replace("[minimal]\n", '[minimal]\npool = "active"\n'))
    with pytest.raises(UserError, match='goes by order = "attribution"'):
        load_recipe(path)


def test_a_ranking_that_is_not_asked_for_changes_no_run(study: Analysed) -> None:
    assert not {"order", "pool"} & set(study.recipe.section("minimal"))


def test_a_drawn_search_asks_more() -> None:
    """Of 400 candidates, two of which are needed, at the head of the ranking."""
    asked = {
        "drawn": run_together({0: drawn_set(400, np.random.default_rng(0))}, _both)[0].n_evaluations,
        "ranked": run_together({0: ranked_set(range(400))}, _both)[0].n_evaluations,
    }
    assert asked["ranked"] * 2 <= asked["drawn"]


def _both(trials: Sequence[tuple[int, Members]]) -> list[bool]:
    return [{0, 3} <= set(members) for _, members in trials]
