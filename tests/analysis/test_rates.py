"""Rates with their intervals, comparisons that are paired and corrected, and what starts share, from the tables of a study."""

from collections import defaultdict

import duckdb
import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from saelake import queries
from saelake.analysis import stage_list
from tests.analysis.effects import Analysed
from tests.planted import Feature


def test_every_rate_has_wilsons_interval_and_is_that_of_the_answers(study: Analysed) -> None:
    rates = study.sql("""
        select a, k, n, estimate, low, high from comparisons
        where kind = 'rate' and measure = 'flipped' and label = 'harmful' and tau is null
    """)
    asked = {
        row[:2]: row[2]
        for row in study.ask("asr", "condition, k, asr_of_refused, label", judge="first_token")
        if row[3] == "harmful"
    }
    compared = {"none", "direction", "top_k_own", "random"}
    assert compared <= {a for a, *_ in rates}
    for a, k, n, estimate, low, high in rates:
        if a in compared:
            assert estimate == pytest.approx(asked[a, k])
        assert (low, high) == pytest.approx(proportion_confint(estimate * n, n, method="wilson"), abs=1e-9)
    answered = {c for (c,) in study.sql("select distinct condition from ablations join verdicts using (ablation_id)")}
    assert {a for (a,) in study.sql("select distinct a from comparisons where kind = 'rate' and measure = 'flipped'")} == answered


def test_comparisons_are_paired_and_corrected(study: Analysed) -> None:
    rows = study.sql(
        "select measure, a, b, k, n, estimate, low, high, test, p, p_holm from comparisons where kind = 'comparison'"
    )
    pairs = {(measure, a, b) for measure, a, b, *_ in rows}
    for a, b in (("top_k_own", "random"), ("minimal", "random_minimal"), ("stage3_alone", "stage3_alone_control")):
        assert {("flipped", a, b), ("p_refusal_token", a, b)} <= pairs
    assert ("correct", "fm_4", "probe") in pairs
    assert all(low - 1e-9 <= estimate <= high + 1e-9 and 0 <= p <= p_holm <= 1 for *_, estimate, low, high, _, p, p_holm in rows)
    [(n, estimate, p)] = [(r[4], r[5], r[9]) for r in rows if r[:3] == ("flipped", "top_k_own", "top_k_chosen") and r[3] == 1]
    own, chosen = (
        np.array(
            [
                f
                for (f,) in study.sql(f"""
                select flipped from ablations join verdicts using (ablation_id) join prompts using (prompt_id)
                where condition = 'top_k_{direction}' and k = 1 and label = 'harmful' and judge = 'first_token' order by prompt_id
            """)
            ]
        )
        for direction in ("own", "chosen")
    )
    n_a, n_b = int((own & ~chosen).sum()), int((~own & chosen).sum())
    assert (n, estimate) == (len(own), pytest.approx((n_a - n_b) / len(own)))
    assert p == pytest.approx(stats.binomtest(n_a, n_a + n_b).pvalue if n_a + n_b else 1.0)


def test_stability_is_the_mean_jaccard_of_what_starts_find(study: Analysed) -> None:
    sets: dict[int, dict[int, set[Feature]]] = defaultdict(lambda: defaultdict(set))
    for prompt_id, draw, layer, feature_id in study.sql("""
        select prompt_id, draw, layer, feature_id from ablations join feature_sets using (set_id) join prompts using (prompt_id)
        where condition = 'minimal' and label = 'harmful'
    """):
        sets[prompt_id][draw].add((layer, feature_id))
    of_prompts = []
    for by_start in sets.values():
        found = list(by_start.values())
        of_prompts.append(np.mean([len(a & b) / len(a | b) for i, a in enumerate(found) for b in found[i + 1 :]]))
    halves = [set[Feature](), set[Feature]()]
    for place, prompt_id in enumerate(sorted(sets)):
        halves[place % 2] |= set().union(*sets[prompt_id].values())
    rows = dict(study.sql("select b, estimate from comparisons where kind = 'stability' and a = 'minimal'"))
    assert rows["starts"] == pytest.approx(np.mean(of_prompts))
    assert rows["halves"] == pytest.approx(len(halves[0] & halves[1]) / len(halves[0] | halves[1]))


def test_every_stage_names_its_own_conditions(study: Analysed) -> None:
    names = {stage.name: stage.conditions for stage in stage_list.COMPUTED}
    found = study.sql("select distinct stage, condition from ablations")
    assert len(found) > 20
    for stage, condition in found:
        assert any(f"{condition}_".startswith(f"{name}_") for name in names[stage]), (stage, condition)


def test_a_verdict_that_does_not_apply_is_no_answer_that_did_not_flip() -> None:
    """Where a judge cannot say what the new features do alone on a prompt, the prompt is in neither count."""
    with duckdb.connect() as con:
        con.execute(
            """
            create table prompts as select unnest([1, 2, 3]) as prompt_id, 'harmful' as label, 'target' as label_role;
            create table ablations as
            select prompt_id * 10 + kind as ablation_id, prompt_id, null::integer as draw, null as control,
                ['none', 'minimal_active', 'stage3_alone'][kind] as condition, ['none', 'minimal', 'stage3'][kind] as method,
                [null, 'active', 'alone'][kind] as part, if(kind = 3, 5, null) as k, null::integer as set_id
            from prompts, range(1, 4) as kinds(kind);
            create table verdicts as
            select ablation_id, 'first_token' as judge, condition = 'none' as refused, condition <> 'none' as flipped
            from ablations;
            update verdicts set flipped = false where ablation_id = 13;
            create table causal_links (
                k integer, prompt_id integer, ablated float, clean float, sae_id text
            );
            create table feature_sets (set_id integer, sae_id text);
            create table saes (sae_id text, layer integer, hook text, hook_out text);
            """
        )
        counted = "k, n_active, n_alone, alone_share, n_alone_up_to"
        assert queries.run(con, "causal_link").project(counted).fetchall() == [(5, 3, 2, 2 / 3, 2)]
        con.execute("update verdicts set flipped = null, refused = null where ablation_id = 13")
        assert queries.run(con, "causal_link").project(counted).fetchall() == [(5, 2, 2, 1.0, 2)]
        con.execute("delete from verdicts where ablation_id = 23")
        assert queries.run(con, "causal_link").project(counted).fetchall() == [(5, 2, 1, 0.5, 1)], "an answer that there is not"
