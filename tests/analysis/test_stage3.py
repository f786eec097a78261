"""Stage 3, the causal link and the comparisons on the planted study, against literal recomputation."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import saelake
from saelake.analysis.interactions.stage3 import Ranking, asked
from saelake.analysis.report.interactions import machine_sentence
from tests.analysis.effects import Analysed
from tests.planted import Feature, ablate, prompt_ids

LAST = 4
KS = (1, 2, 4, 8)


def values_on_last_tokens(study: Analysed) -> dict[int, dict[Feature, list[float]]]:
    """prompt_id -> feature -> its activations on the last tokens, zeros left out."""
    rows = study.sql(f"""
        select prompt_id, layer, feature_id, activation from activations join prompts using (prompt_id)
        where pos >= n_tokens - {LAST}
    """)
    found: dict[int, dict[Feature, list[float]]] = defaultdict(lambda: defaultdict(list))
    for prompt_id, layer, feature_id, activation in rows:
        found[prompt_id][layer, feature_id].append(activation)
    return found


def critical_of(study: Analysed) -> dict[int, set[Feature]]:
    found: dict[int, set[Feature]] = defaultdict(set)
    for prompt_id, layer, feature_id in study.sql(
        "select prompt_id, layer, feature_id from critical_features where method = 'minimal' and start = 0"
    ):
        found[prompt_id].add((layer, feature_id))
    return found


def ranked(study: Analysed, **values: str) -> dict[int, list[Feature]]:
    found: dict[int, list[Feature]] = defaultdict(list)
    for prompt_id, layer, feature_id in study.ask("new_features", "prompt_id, layer, feature_id", model="fm_4", **values):
        found[prompt_id].append((layer, feature_id))
    return found


def sets_of(study: Analysed, condition: str) -> dict[tuple[int, int, int | None], set[Feature]]:
    """(prompt_id, k, draw) -> features of the ablated set, on harmful prompts."""
    found: dict[tuple[int, int, int | None], set[Feature]] = defaultdict(set)
    for prompt_id, k, draw, layer, feature_id in study.sql(f"""
        select prompt_id, k, draw, layer, feature_id
        from ablations join feature_sets using (set_id) join prompts using (prompt_id)
        where condition = '{condition}' and label = 'harmful'
    """):
        found[prompt_id, k, draw].add((layer, feature_id))
    return found


def test_prompts_are_split_within_labels_by_the_seed(study: Analysed) -> None:
    full = study.ask("fm_prompts", val=0.25, test=0.125)
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for _, label, split in full:
        counts[label, split] += 1
    per_label = {"train": 15, "val": 6, "test": 3}
    assert counts == {(label, split): n for label in ("harmful", "benign") for split, n in per_label.items()}
    assert full == study.ask("fm_prompts", val=0.25, test=0.125)
    assert full != study.ask("fm_prompts", val=0.25, test=0.125, seed=1)
    assert study.ask("fm_prompts", sets="nothing,else") == []


@pytest.mark.parametrize(("aggregate", "combine"), [("max", max), ("sum", sum), ("mean", lambda v: sum(v) / LAST)])
def test_input_is_the_last_tokens_up_to_the_directions_layer(
    study: Analysed, aggregate: str, combine: Callable[[list[float]], float]
) -> None:
    [(chosen,)] = study.sql("select layer from directions where chosen")
    expected = {
        (prompt_id, *feature): combine(values)
        for prompt_id, by_feature in values_on_last_tokens(study).items()
        for feature, values in by_feature.items()
        if 2 <= feature[0] <= chosen
    }
    rows = study.ask("fm_input", "prompt_id, layer, feature_id, value, number", aggregate=aggregate, exclude_layers=[0, 1])
    assert {row[:3]: pytest.approx(row[3], rel=1e-5) for row in rows} == expected
    numbers = {row[1:3]: row[4] for row in rows}
    assert sorted(numbers.values()) == list(range(len(numbers)))
    assert sorted(numbers, key=lambda feature: numbers[feature]) == sorted(numbers)


def test_ranking_is_by_cosine_with_the_critical_features(study: Analysed) -> None:
    vectors = {
        (layer, feature_id): np.array(vector) / np.linalg.norm(vector)
        for layer, feature_id, vector in study.sql("select layer, feature_id, vector from fm_embeddings where model = 'fm_4'")
    }
    values, critical = values_on_last_tokens(study), critical_of(study)
    for similarity, combine in (("maximum", max), ("mean", np.mean)):
        found = ranked(study, similarity=similarity)
        assert found.keys() == {p for p, features in critical.items() if features & vectors.keys()} != set()
        for prompt_id, features in found.items():
            references = [vectors[f] for f in sorted(critical[prompt_id]) if f in vectors]
            active = (values[prompt_id].keys() & vectors.keys()) - critical[prompt_id]
            score = {f: combine([float(vectors[f] @ reference) for reference in references]) for f in active}
            assert set(features) == active
            assert [score[f] for f in features] == pytest.approx(sorted(score.values(), reverse=True), abs=1e-5)


def test_the_report_says_which_part_of_the_papers_claim_stands() -> None:
    def row(condition: str, k: int, rate: float) -> dict[str, object]:
        return {"condition": condition, "k": k, "flip_rate": rate}

    def test(k: int, b: str, estimate: float, p_holm: float) -> dict[str, object]:
        return {"measure": "flipped", "a": "stage3_alone", "b": b, "k": k, "estimate": estimate, "p_holm": p_holm}

    rows = [row("stage3_alone", 20, 0.6), row("stage3_alone", 40, 0.9), row("stage3_probe_alone", 20, 0.0)]
    assert machine_sentence(rows, []) == "", "nothing fair to hold it against"
    rows += [row(f"stage3_{name}_alone", k, rate) for k in (20, 40) for name, rate in (("signed", 0.6), ("alignment", 0.7))]
    said = machine_sentence(rows, [])
    assert said.startswith(
        "The first 40 new features alone flip 90% by the machine's ranking, 60% by the signed probe, 70% by decoder"
    )
    assert "the paper's comparison, it is 0%" in machine_sentence(rows[:1] + rows[2:], [])
    assert said.endswith("that it takes the machine to find them does not."), "a lead that no test tells from chance"
    ahead = [test(40, f"stage3_{name}_alone", 0.2, 0.01) for name in ("signed", "alignment")]
    assert "At K = 40 alone does the machine" in machine_sentence(rows, ahead), "the K that does best was chosen here"
    for more in ([0.2, 0.01], [0.2, 0.3], [-0.2, 0.01]):
        said = machine_sentence(
            rows, [*ahead, test(20, "stage3_signed_alone", 0.2, 0.01), test(20, "stage3_alignment_alone", *more)]
        )
        stands = more == [0.2, 0.01]
        assert ("at K = 20, 40 (p < 0.05" in said) == said.endswith("that part of the paper's claim stands here.") == stands


def test_a_machine_that_saw_none_of_the_ablated_prompts_ranks_beside_the_papers(study: Analysed) -> None:
    """Its examples are prompts of the other splits alone; its rankings are of its own embeddings, and are ablated."""
    splits = study.sql(
        "select distinct p.split from predictions as f join prompts as p using (prompt_id) where model = 'fm_4_held_out'"
    )
    assert {split for (split,) in splits} == {"train", "val"}
    both = study.sql("select distinct p.split from predictions as f join prompts as p using (prompt_id) where model = 'fm_4'")
    assert {split for (split,) in both} == {"train", "val", "test"}
    ranked = study.ask("new_features", "prompt_id, layer, feature_id", model="fm_4_held_out", k=1)
    asked = study.sql(
        "select prompt_id, layer, feature_id from ablations join prompts using (prompt_id) join feature_sets using (set_id) "
        "where method = 'stage3_held_out' and part = 'alone' and k = 1 and label = 'harmful'"
    )
    assert asked
    assert sorted(asked) == sorted(ranked)


def test_the_probes_ranking_is_by_the_size_of_its_weights(study: Analysed) -> None:
    weights = {(layer, f): abs(w) for layer, f, w in study.sql("select layer, feature_id, weight from probe_weights")}
    found = ranked(study, by="weight")
    assert found.keys() == critical_of(study).keys() != set(), "it needs no embedding of the critical features"
    for features in found.values():
        assert [weights[f] for f in features] == sorted((weights[f] for f in features), reverse=True)


def test_signed_weights_and_alignment_rank_from_harmful_to_benign(study: Analysed) -> None:
    weights = {(layer, f): w for layer, f, w in study.sql("select layer, feature_id, weight from probe_weights")}
    cosines = {
        (layer, f): c for layer, f, c in study.sql("select layer, feature_id, cosine from alignments where direction = 'own'")
    }
    by_size = ranked(study, by="weight")
    for by, scores in (("signed_weight", weights), ("alignment", cosines)):
        found = ranked(study, by=by)
        assert found.keys() == by_size.keys() != set()
        for prompt_id, features in found.items():
            assert set(by_size[prompt_id]) == set(features), "all rank the same features"
            assert [scores[f] for f in features] == sorted((scores[f] for f in features), reverse=True)
    assert max(weights.values()) > 0.1, "what speaks for harmful comes first"
    assert min(weights.values()) < 1e-3, "what fires on both alike says nothing"
    for condition, by in (("stage3_signed", "signed_weight"), ("stage3_alignment", "alignment")):
        order = ranked(study, by=by)
        alone = sets_of(study, f"{condition}_alone")
        assert alone
        for (prompt_id, k, _), ablated in alone.items():
            assert ablated == set(order[prompt_id][:k])


def test_what_is_ablated_is_the_active_critical_features_with_the_top_k_and_the_top_k_alone(study: Analysed) -> None:
    active = defaultdict(set)
    for prompt_id, layer, feature_id in study.sql(
        "select prompt_id, layer, feature_id from critical_features where method = 'minimal' and start = 0 and n_tokens > 0"
    ):
        active[prompt_id].add((layer, feature_id))
    together, alone, critical = sets_of(study, "stage3"), sets_of(study, "stage3_alone"), critical_of(study)
    random, random_alone = sets_of(study, "stage3_control"), sets_of(study, "stage3_alone_control")
    values = values_on_last_tokens(study)
    for prompt_id, features in ranked(study).items():
        for k in KS:
            top = set(features[:k])
            assert alone[prompt_id, k, None] == top
            assert together[prompt_id, k, None] == top | active[prompt_id]
            for draw in (0, 1):
                drawn = random_alone[prompt_id, k, draw]
                assert random[prompt_id, k, draw] == drawn | active[prompt_id]
                assert sorted(layer for layer, _ in drawn) == sorted(layer for layer, _ in top), "as many a layer"
                assert drawn <= values[prompt_id].keys() - critical[prompt_id]
    assert len(alone) == len(ranked(study)) * len(KS) > 0


def test_answers_and_links_are_those_of_the_literal_ablation(study: Analysed) -> None:
    texts = dict(study.sql("select prompt_id, text from prompts"))
    answers = {
        (prompt_id, k): (p, flipped)
        for prompt_id, k, p, flipped in study.sql("""
            select prompt_id, k, p_refusal_token, flipped from ablations join verdicts using (ablation_id)
            join prompts using (prompt_id)
            where condition = 'stage3_alone' and judge = 'first_token' and label = 'harmful'
        """)
    }
    links = study.sql("select prompt_id, k, layer, feature_id, lowest_layer, clean, ablated from causal_links")
    assert links
    for (prompt_id, k, _), features in sets_of(study, "stage3_alone").items():
        outcome = ablate(study.loaded, prompt_ids(study.loaded, texts[prompt_id]), [(), sorted(features)])
        p, flipped = answers[prompt_id, k]
        assert p == pytest.approx(float(outcome.p_refusal_b[1]), abs=1e-4)
        assert flipped == bool(outcome.flipped_b[1])
        for *key, layer, feature_id, lowest, clean, ablated in links:
            if key == [prompt_id, k]:
                literal = outcome.acts_bltf[:, layer, :, feature_id].amax(1)
                assert lowest == min(layer for layer, _ in features)
                assert (clean, ablated) == (
                    pytest.approx(float(literal[0]), rel=1e-4),
                    pytest.approx(float(literal[1]), rel=1e-4),
                )


def test_causal_link_counts_what_the_tables_hold(study: Analysed) -> None:
    flips = {
        (condition, k, prompt_id)
        for condition, k, prompt_id in study.sql("""
            select condition, k, prompt_id from ablations join verdicts using (ablation_id) join prompts using (prompt_id)
            where label = 'harmful' and judge = 'first_token' and flipped and coalesce(draw, 0) = 0
        """)
    }
    active = {prompt_id for condition, _, prompt_id in flips if condition == "minimal_active"}
    links = study.sql("select k, prompt_id, clean, ablated from causal_links")
    columns = "k, n_active, n_alone, n_alone_up_to, switched_off, most_switched_off"
    rows = study.ask("causal_link", columns, judge="first_token")
    assert [row[0] for row in rows] == list(KS)
    for k, n_active, n_alone, up_to, off, most in rows:
        by_k = {smaller: {p for c, j, p in flips if (c, j) == ("stage3_alone", smaller)} for smaller in KS}
        assert (n_active, n_alone) == (len(active), len(by_k[k] & active))
        assert up_to == len(active & set().union(*(by_k[smaller] for smaller in KS if smaller <= k)))
        of_prompts = defaultdict(list)
        for j, prompt_id, _, ablated in links:
            if j == k:
                of_prompts[prompt_id].append(ablated == 0)
        shares = [np.mean(found) for found in of_prompts.values()]
        assert (off, most) == (pytest.approx(np.mean(shares)), pytest.approx(max(shares)))


def test_stage3_question_counts_flips_and_failures(study: Analysed) -> None:
    rows = {
        row[:2]: row[2:]
        for row in study.ask("stage3", "condition, k, n_refused, n_searched, flip_rate, flip_rate_up_to", judge="first_token")
    }
    [(n_refused, n_at_2, n_at_0)] = study.sql("""
        select
            count(distinct prompt_id) filter (where condition = 'none' and refused),
            count(*) filter (where condition = 'stage3' and k = 2 and flipped),
            count(*) filter (where condition = 'minimal_active' and draw = 0 and flipped)
        from ablations join verdicts using (ablation_id) join prompts using (prompt_id)
        where label = 'harmful' and judge = 'first_token'
    """)
    assert rows["stage3", 2][:3] == (n_refused, len(ranked(study)), n_at_2 / n_refused)
    assert rows["stage3", 0][2] == n_at_0 / n_refused
    for condition in ("stage3", "stage3_alone", "stage3_control"):
        up_to = [rows[condition, k][3] for k in KS]
        assert up_to == sorted(up_to)
        assert all(rows[condition, k][2] <= rows[condition, k][3] + 1e-9 for k in KS)


def test_coverage_counts_what_has_no_embedding(study: Analysed) -> None:
    trained = set(study.sql("select layer, feature_id from fm_embeddings where model = 'fm_4'"))
    layers = {layer for layer, _ in trained}
    critical, values = critical_of(study), values_on_last_tokens(study)
    active = [f for p in critical for f in values[p].keys() - critical[p] if f[0] in layers]
    members = [f for features in critical.values() for f in features]
    [row] = study.ask("stage3_coverage", model="fm_4")
    assert row == (
        len(critical),
        sum(bool(features & trained) for features in critical.values()),
        len(members),
        sum(f not in trained for f in members),
        len(active),
        sum(f not in trained for f in active),
    )


def test_partners_are_ranked_by_cosine_or_interaction(study: Analysed) -> None:
    vectors = {
        f[:2]: np.array(f[2]) for f in study.sql("select layer, feature_id, vector from fm_embeddings where model = 'fm_4'")
    }
    given = min(vectors)
    for order_by, key in (
        ("cosine", lambda v: float(vectors[given] @ v / np.linalg.norm(v))),
        ("interaction", lambda v: abs(float(vectors[given] @ v))),
    ):
        rows = study.ask(
            "fm_partners", "partner_layer, partner_id", features=f"{given[0]}:{given[1]}", n=3, model="fm_4", order_by=order_by
        )
        assert rows == sorted(vectors.keys() - {given}, key=lambda f: -key(vectors[f]))[:3]


def test_a_random_set_of_the_same_layers_is_possible_even_when_all_are_taken() -> None:
    columns = {"sae": np.array([2, 3, 3, 5]), "feature_id": np.array([7, 1, 2, 9])}
    ranking = Ranking(0, {n: c[:0] for n, c in columns.items()}, columns, 0)
    assert ranking.top(9).tolist() == [0, 1, 2, 3]
    assert ranking.like(ranking.top(4), np.random.default_rng(0)).tolist() == [0, 1, 2, 3]
    one = {tuple(ranking.like(np.array([1]), np.random.default_rng(seed)).tolist()) for seed in range(20)}
    assert one == {(1,), (2,)}


def test_what_is_asked_of_a_ranking_by_hand() -> None:
    critical = {"sae": np.array([2]), "feature_id": np.array([50]), "max_activation": np.array([1.0])}
    others = {"sae": np.array([3, 2, 3, 3]), "feature_id": np.array([7, 1, 2, 9])}
    ranking = Ranking(4, critical, others, 6)
    found = list(asked(ranking, "stage3", (2, 9), 2, 5))
    kinds = [(None, None), ("alone", None), *[(None, "matched"), ("alone", "matched")] * 2]
    assert [one.condition for one in found] == [("stage3", *kind) for kind in kinds] * 2
    assert [one.k for one in found] == [2] * 6 + [9] * 6
    assert [one.draw for one in found] == [None, None, 0, 0, 1, 1] * 2
    assert [one.seed for one in found] == [None, None, 5, 5, 5, 5] * 2
    assert {one.request.prompt for one in found} == {4}
    sets = [[(row[0], row[1]) for row in one.request.features.rows.tolist()] for one in found]
    assert sets[0] == [(2, 1), (2, 50), (3, 7)]
    assert sets[1] == [(2, 1), (3, 7)]
    assert sets[6:8] == [[(2, 1), (2, 50), (3, 2), (3, 7), (3, 9)], [(2, 1), (3, 2), (3, 7), (3, 9)]], "all that there are"
    for draw in (0, 1):
        joined, alone = sets[2 + 2 * draw], sets[3 + 2 * draw]
        assert [sae for sae, _ in alone] == [2, 3], "as many of each SAE"
        assert joined == sorted([*alone, (2, 50)])
        rng = np.random.default_rng([5, draw, 6, 2])
        assert rng.choice([1], size=1, replace=False).tolist() == [1]
        assert alone[1][1] == others["feature_id"][rng.choice([0, 2, 3], size=1, replace=False)[0]], "by the seed"


def test_on_the_organism_the_machine_tells_harmful_from_benign(organism_lake: Path) -> None:
    with saelake.open(organism_lake) as lake:
        accuracy = dict(lake.query("fm_metrics").select("model", "test_accuracy").fetchall())
        assert accuracy["fm_20"] >= 0.97
        assert min(accuracy.values()) >= 0.9
        rates = {
            row[:2]: row[2] for row in lake.query("stage3", judge="first_token").select("condition", "k", "flip_rate").fetchall()
        }
    assert rates["stage3_alone", 40] > rates["stage3_alone_control", 40] + 0.2
    assert rates["stage3_alone", 40] > rates["stage3_probe_alone", 40] + 0.2
