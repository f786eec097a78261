"""R13 and beyond: the waking graph against the enumeration, and the matched null where it is true by construction."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom

from saelake import queries
from saelake.analysis import stage_list, verbs
from saelake.analysis.engine.requests import FeatureSet
from saelake.analysis.interactions import waking
from saelake.analysis.interactions.matching import assigned
from saelake.analysis.interactions.waking import Pass, _pass_rows, passes
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from tests.analysis.effects import Analysed
from tests.analysis.test_waking_statistics import ALPHA, SEEDS, n_discoveries
from tests.planted import Feature, ablate, prompt_ids


def literally_woken(study: Analysed, text: str, members: list[Feature]) -> dict[Feature, dict[int, float]]:
    """(layer, feature_id) -> pos -> activation of what is silent on the whole clean prompt and fires under the ablation."""
    outcome = ablate(study.loaded, prompt_ids(study.loaded, text), [(), members])
    clean_ltf, ablated_ltf = outcome.acts_bltf
    woken: dict[Feature, dict[int, float]] = {}
    for layer, pos, feature_id in ((ablated_ltf > 0) & (clean_ltf == 0).all(1, keepdim=True)).nonzero().tolist():
        woken.setdefault((layer, feature_id), {})[pos] = float(ablated_ltf[layer, pos, feature_id])
    return woken


def test_the_graph_is_exactly_primary_wakes_backup(study: Analysed) -> None:
    primary, backup = study.planted.primary, study.planted.backup
    expected = {(source, primary, woken, backup) for source in (2, 3) for woken in (4, 5)}
    columns = "source_layer, source_feature_id, layer, feature_id"
    assert set(study.ask("waking_edges", columns)) == expected
    assert set(study.ask("waking_edges", columns, q=None)) == expected, "nothing else wakes anything to begin with"
    assert set(study.ask("waking_graph", columns)) == expected
    edges_found = study.ask("waking_edges", "source_layer, n_prompts, n_woken, expected, first, q_value")
    assert len(edges_found) == len(expected)
    for source, n_prompts, n_woken, expected_by_chance, first, q_value in edges_found:
        assert n_woken == n_prompts >= 4
        controls = study.sql(
            f"select count(control) from waking_passes where source_layer = {source} and source_feature_id = {primary} "
            "group by prompt_id"
        )
        assert expected_by_chance == pytest.approx(sum(1 / (1 + n) for (n,) in controls)), "one of so many passes wakes it"
        assert first == 0
        assert q_value < 0.01


def test_every_prompts_graph_is_the_literal_one(study: Analysed) -> None:
    """Which features, at which tokens, how strongly; for all passes, controls too."""
    asked = study.sql(
        "select ablation_id, text, list((layer, feature_id)) from waking_passes join prompts using (prompt_id) "
        "join ablations using (ablation_id) join feature_sets using (set_id) group by all"
    )
    found: dict[int, dict[Feature, dict[int, float]]] = {}
    for ablation_id, layer, feature_id, pos, activation in study.sql(
        "select ablation_id, layer, feature_id, pos, activation from wakings join reactivations "
        "using (ablation_id, sae_id, layer, feature_id)"
    ):
        found.setdefault(ablation_id, {}).setdefault((layer, feature_id), {})[pos] = activation
    assert len(asked) > 100
    assert found
    for ablation_id, text, members in asked:
        expected = literally_woken(study, text, members)
        mine = found.get(ablation_id, {})
        assert {f: set(at) for f, at in mine.items()} == {f: set(at) for f, at in expected.items()}
        assert all(mine[f][pos] == pytest.approx(value, rel=1e-4) for f, at in expected.items() for pos, value in at.items())


def test_redundant_features_match_the_enumeration(study: Analysed) -> None:
    sets: dict[tuple[str, int], list[Feature]] = {}
    for text, start, layer, feature_id in study.sql(
        "select text, start, layer, feature_id from critical_features join prompts using (prompt_id) where method = 'minimal'"
    ):
        sets.setdefault((text, start), []).append((layer, feature_id))
    roles = {
        (text, pos): role for text, pos, role in study.sql("select text, pos, role from tokens join prompts using (prompt_id)")
    }
    n_with_silent = n_kept = n_silent = n_woken = 0
    at = {"bos": 0, "template": 0, "user": 0}
    for (text, _), members in sets.items():
        clean = ablate(study.loaded, prompt_ids(study.loaded, text), [()]).acts_bltf[0]
        silent = [(layer, f) for layer, f in members if not (clean[layer, :, f] > 0).any()]
        active = [f for f in members if f not in silent]
        full_flips, active_flips = ablate(study.loaded, prompt_ids(study.loaded, text), [members, active]).flipped_b.tolist()
        n_with_silent += bool(silent)
        if silent and full_flips and not active_flips:
            woken = {f: where for f, where in literally_woken(study, text, active).items() if f in silent}
            n_kept, n_silent, n_woken = n_kept + 1, n_silent + len(silent), n_woken + len(woken)
            for where in woken.values():
                for pos in where:
                    at[roles[text, pos]] += 1
    columns = "reading, n_sets, n_with_silent, n_kept, n_silent, n_woken, tokens_first, tokens_template, tokens_user"
    rows = {r[0]: r[1:] for r in study.ask("self_repair", columns)}
    total = sum(at.values())
    shares = tuple(pytest.approx(at[role] / total) for role in ("bos", "template", "user"))
    assert rows["default"] == (72, n_with_silent, n_kept, n_silent, n_woken, *shares)
    assert n_woken == n_silent >= n_kept > 10
    assert rows["literal"] == (72, n_with_silent, 0, 0, 0, None, None, None), "the answers are too short to say"


def test_controls_are_matched_without_replacement(study: Analysed) -> None:
    rows = study.sql(
        "select w.prompt_id, source_layer, source_feature_id, w.control, layer, feature_id from waking_passes as w "
        "join ablations using (ablation_id) join feature_sets using (set_id) "
        "where w.method is null and w.control is not null"
    )
    critical = set(study.sql("select prompt_id, layer, feature_id from critical_features"))
    assert all(layer == source_layer for _, source_layer, _, _, layer, _ in rows)
    assert not {(p, layer, f) for p, *_, layer, f in rows} & critical
    assert len({(p, layer, f) for p, *_, layer, f in rows}) == len(rows)
    assert {control for *_, control, _, _ in rows} == set(range(5))


def test_controls_fire_where_their_source_does_and_as_strongly(study: Analysed) -> None:
    """Recomputed from the literal clean passes; and whatever is near enough and not taken is a candidate, or one too many."""
    settings = study.recipe.waking
    rows = study.sql(
        "select text, source_layer, source_feature_id, list(feature_id) from waking_passes join ablations using (ablation_id) "
        "join prompts on prompts.prompt_id = ablations.prompt_id join feature_sets using (set_id) "
        "where waking_passes.method is null and waking_passes.control is not null group by all"
    )
    left_out = set(
        study.sql(
            "select layer, feature_id from alignments qualify row_number() over (partition by direction, layer "
            f"order by cosine desc, feature_id) <= {study.recipe.candidates.cap}"
        )
    )
    assert len(rows) == 24
    for text, layer, source, controls in rows:
        acts_tf = ablate(study.loaded, prompt_ids(study.loaded, text), [()]).acts_bltf[0, layer, 1:]  # without BOS
        mine_t = acts_tf[:, source]
        near = set()
        for other in range(acts_tf.shape[1]):
            where_t = (mine_t > 0) & (acts_tf[:, other] > 0)
            overlap = float(mine_t[where_t].sum() / mine_t.sum())
            factor = float(acts_tf[where_t, other].max() / mine_t.max()) if where_t.any() else 0.0
            if overlap >= settings.overlap and 1 / settings.similarity <= factor <= settings.similarity:
                near.add(other)
        near -= {f for at, f in left_out if at == layer} | {source}
        assert set(controls) <= near
        assert len(controls) == min(len(near), settings.controls)


def test_a_source_that_nothing_comes_near_to_is_counted_and_not_tested(study: Analysed) -> None:
    """None of the planted noise covers half of the primary's tokens: with the default limit no source has a control."""
    with study.connect() as con:
        prompts = [p for (p,) in con.execute("select distinct prompt_id from critical_features").fetchall()]
        cap = study.recipe.candidates.cap
        assert not queries.run(con, "matched_active", prompts=prompts, pool=cap).fetchall()
        assert queries.run(con, "matched_active", prompts=prompts, pool=cap, min_overlap=0.05).fetchall()
        con.execute("create temp table all_passes as from waking_passes")
        rows = queries.run(con, "waking_controls").fetchall()
        assert [row[:4] for row in rows] == [*((layer, 6, 6, 0) for layer in (2, 3, 4, 5)), (None, 6, 6, 0)]
        con.execute("create temp view waking_passes as from all_passes where control is null or source_layer <> 3")
        rows = queries.run(con, "waking_controls").fetchall()
        assert rows[1] == (3, 6, 0, 6, None)
        assert {row[3] for row in rows} == {0, 6}


def test_the_first_token_of_a_pass_is_spelt_as_in_every_answer() -> None:
    """A special token and a space at the beginning are part of it."""
    first = SimpleNamespace(token_id=np.array([1, 2]), p_target=np.zeros(2), margin=np.zeros(2))
    spelling = SimpleNamespace(texts=lambda ids: [("", " Sure", "<end>")[i] for i in ids])
    context = SimpleNamespace(
        engine=SimpleNamespace(next_token=lambda _: first), subject=SimpleNamespace(spelling=spelling), prompt_ids=np.array([7])
    )
    work: Any = SimpleNamespace(context=context, spec=SimpleNamespace(stage="waking", seed=0))
    asked = [Pass(0, FeatureSet.ablating([(2, f)]), "minimal", 0) for f in (5, 6)]
    assert next(_pass_rows(work, asked)).rows["first_token"].to_pylist() == [" Sure", "<end>"]


def test_assignment_is_balanced_and_takes_the_cheapest() -> None:
    cost_so = np.array([[0.1, 0.2, 5.0, 6.0], [0.3, 0.1, 7.0, 9.0]])
    assert assigned(cost_so, 1) == [[0], [1]]
    both = assigned(cost_so, 2)
    assert sorted(other for mine in both for other in mine) == [0, 1, 2, 3]
    assert all(len(mine) == 2 and cost_so[s, mine[0]] <= cost_so[s, mine[1]] for s, mine in enumerate(both))
    assert sorted(map(len, assigned(cost_so, 3))) != [3, 3], "only as many as there are"


def test_assignment_takes_no_other_that_is_no_match_and_as_many_as_are() -> None:
    none = np.inf
    assert assigned(np.array([[none, none], [0.2, 0.1]]), 2) == [[], [1, 0]]
    assert assigned(np.array([[0.9, none], [0.0, 0.95]]), 1) == [[0], [1]], "two matches, though one alone were cheaper"
    assert assigned(np.full((2, 3), none), 2) == [[], []]


def test_a_sets_controls_have_as_many_features_as_the_set() -> None:
    critical = [(7, "minimal", 0, 2, 1), (7, "minimal", 0, 3, 1), (7, "minimal", 1, 4, 1)]
    controls = {(7, (2, 1)): [(2, 8), (2, 9)], (7, (3, 1)): [(3, 5)], (7, (4, 1)): [(4, 2), (4, 3)]}
    found = list(passes(critical, controls, {7: 0}))
    sets = [(p.start, p.control, len(p.features)) for p in found if p.source is None]
    assert sets == [(0, None, 2), (0, 0, 2), (1, None, 1)]
    assert sum(p.control is not None for p in found if p.source) == 5


def test_passes_are_captured_as_many_at_a_time_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waking, "CAPTURED_TOKENS", 10)
    assert list(waking._some([7, 3, 5, 1, 9, 2], [4, 6, 1, 9, 30, 2])) == [[7, 3], [5, 1], [9], [2]]
    assert list(waking._some([7, 3, 5], [4, 7, 9])) == [[7], [3, 5]], "by the sum so far"
    assert list(waking._some([], [])) == []


RELABELLED = """
with drawn as (
    select *, row_number() over (
        partition by prompt_id, method, start, source_sae_id, source_feature_id order by md5(concat_ws('/', $seed, ablation_id))
    ) - 1 as number
    from measured_passes
    where control is not null
)

select * exclude (number) replace (nullif(number, 0) as control)
from drawn
"""


def test_random_against_random_on_the_organism_finds_nothing(organism_lake: Path) -> None:
    """One of each source's matched controls plays the source: real passes, and a null that is true by construction."""
    found = []
    with connect(Lake(organism_lake)) as con:
        con.execute("create temp table measured_passes as from waking_passes")
        con.execute("create temp table measured_wakings as from wakings")
        con.execute("create or replace temp view wakings as from measured_wakings")
        assert n_discoveries(con) > 5, "the critical features themselves do wake others"
        for seed in range(SEEDS):
            relabelled = RELABELLED.replace("$seed", str(seed))
            con.execute(f"create or replace temp table waking_passes as {relabelled}")
            found.append(n_discoveries(con))
    assert sum(n > 0 for n in found) <= binom.ppf(0.999, SEEDS, ALPHA)


def test_waking_questions_agree_with_each_other(study: Analysed) -> None:
    rows = {(source, is_control): rest for source, is_control, *rest in study.ask("waking_roles")}
    assert rows["one", True][2] == rows["minimal", True][2] == 0, "no control wakes anything"
    n_prompts, n_passes, n_woken, per_pass, at_first, at_template, at_user, *tokens = rows["one", False]
    assert (n_prompts, at_first) == (6, 0)
    assert n_woken == len(study.ask("waking_graph"))
    assert per_pass == n_woken / n_passes
    assert at_template == at_user == 1, "the evidence is there from the word of harm on"
    assert sum(tokens) == pytest.approx(1)
    with study.connect() as con:
        counts = queries.run(con, "waking_counts").filter("source_feature_id is not null").project("n_woken").fetchall()
    assert sum(n for (n,) in counts) == n_woken


def test_captured_activations_are_those_of_the_engines_pass(study: Analysed) -> None:
    """Of the critical passes everything above the ablated layer is kept, not only what wakes."""
    rows = study.sql(
        "select text, source_layer, source_feature_id, list((r.layer, r.feature_id, r.pos)) "
        "from waking_passes as w join prompts using (prompt_id) join reactivations as r using (ablation_id) "
        "where w.method is null and w.control is null group by all"
    )
    assert len(rows) > 10
    for text, source_layer, source_id, fired in rows:
        acts_ltf = ablate(study.loaded, prompt_ids(study.loaded, text), [[(source_layer, source_id)]]).acts_bltf[0]
        expected = {(int(layer), int(f), int(pos)) for layer, pos, f in torch.nonzero(acts_ltf) if layer > source_layer}
        assert set(fired) == expected


def test_changing_one_section_reruns_only_what_depends_on_it(study: Analysed) -> None:
    def ids(**sections: object) -> dict[str, str]:
        recipe = study.recipe.model_copy(update=sections)
        return {name: spec.run_id for name, spec in stage_list.specs(verbs.open_analysis(recipe)).items()}

    def changed(section: str, **values: object) -> set[str]:
        other = ids(**{section: getattr(study.recipe, section).model_copy(update=values)})
        summing_up = ("verdicts_", "statistics")  # these read every stage's answers
        return {name for name, run_id in ids().items() if other[name] != run_id and not name.startswith(summing_up)}

    assert changed("diagnostic", split="val") == {"layer_diagnostic"}
    assert changed("redundancy", min_cosine=0.9) == {"decoder_cosines"}
    assert changed("steering", values=(3.0,)) == {"steering"}
    assert changed("losses", sets=1) == {"losses"}
    assert changed("waking", controls=2) == {"waking", "waking_graph", "backups", "steering", "populations"}
