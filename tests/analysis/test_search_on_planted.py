"""Every search, on the network whose causes are known, through the lake and by SQL alone."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import saelake
from saelake import cli
from saelake.analysis import stage_list, verbs
from saelake.analysis.search.algorithm1 import block_sequence
from saelake.analysis.search.directions import Scores, choose
from saelake.ingest.torch_threads import torch_threads
from saelake.queries import QueryError
from saelake.warehouse.errors import UserError
from tests.analysis.literal import literal_loop
from tests.analysis.searched import BLOCK_SIZE, CLAMPED, SEEDS, STARTS, TAUS, Analysed
from tests.planted import Loaded, ablate, load, minimal_sets, prompt_ids, write_planted


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Analysed]:
    with torch_threads(torch.get_num_threads()):  # the analysis takes those of its recipe
        analysed = Analysed(tmp_path_factory.mktemp("analysed"))
        yield analysed
        analysed.opened.close()


@pytest.fixture(scope="module")
def loaded(analysed: Analysed) -> Loaded:
    return load(analysed.planted)


def test_the_table_that_defines_the_network_comes_out_of_the_lake(analysed: Analysed) -> None:
    found = analysed.rows(
        """
        select condition, count(*), count(*) filter (where flipped), min(a.p_refusal_token), max(a.p_refusal_token)
        from ablations as a join verdicts using (ablation_id) join prompts using (prompt_id)
        where condition in ('none', 'primary', 'backup_only', 'primary_and_backup', 'noise')
            and label = 'harmful' and judge = 'first_token'
        group by condition
        """
    )
    table = {condition: row for condition, *row in found}
    assert all(n == 6 for n, *_ in table.values())
    assert {condition: n_flipped for condition, (_, n_flipped, *_) in table.items()} == {
        "none": 0,
        "primary": 0,
        "backup_only": 0,
        "primary_and_backup": 6,
        "noise": 0,
    }
    for condition in ("none", "backup_only", "noise"):
        assert table[condition][2] > 0.9999
    assert 0.99 < table["primary"][2] <= table["primary"][3] < 0.9995, "the backup alone refuses a little less surely"
    assert table["primary_and_backup"][3] < 0.01


def test_benign_prompts_are_answered_whatever_was_chosen(analysed: Analysed) -> None:
    answered = analysed.rows(
        "select condition, count(*), count(*) filter (where flipped) from ablations join verdicts using (ablation_id) "
        "join prompts using (prompt_id) where label = 'benign' and condition not like 'clamp%' group by condition, judge"
    )
    assert len({condition for condition, *_ in answered}) >= 10
    assert all(n == n_answered for _, n, n_answered in answered)


def test_the_dormant_backup_never_fires_and_the_primary_fires_on_every_harmful_prompt(analysed: Analysed) -> None:
    backup, primary = analysed.planted.backup, analysed.planted.primary
    assert analysed.rows(f"select count(*) from activations where feature_id = {backup}") == [(0,)]
    assert analysed.rows(f"select sum(n_tokens), sum(n_bos) from features where feature_id = {backup}") == [(0, 0)]
    fires = analysed.rows(
        f"select label, layer, count(distinct prompt_id) from activations join prompts using (prompt_id) "
        f"where feature_id = {primary} group by label, layer order by layer"
    )
    assert fires == [("harmful", layer, 24) for layer in (2, 3, 4, 5)]


def test_the_direction_is_chosen_where_the_primary_is(analysed: Analysed) -> None:
    rows = analysed.rows("select layer, n_flipped, n_prompts, chosen from directions order by layer")
    assert [n_flipped for _, n_flipped, _, _ in rows] == [0, 0, 6, 6, 6, 6]
    assert {n for _, _, n, _ in rows} == {6}
    tied = analysed.rows("select layer from directions where n_flipped = 6 order by p_refusal_token, layer")
    assert [layer for layer, *_, chosen in rows if chosen] == [tied[0][0]]
    aligned = analysed.rows(
        "select layer, feature_id from alignments where direction = 'own' and layer >= 2 "
        "qualify row_number() over (partition by layer order by cosine desc) = 1 order by layer"
    )
    assert aligned == [(layer, analysed.planted.primary) for layer in (2, 3, 4, 5)]
    asr = analysed.opened.query("asr", judge="first_token").filter("condition = 'direction'")
    assert asr.select("label", "asr", "asr_of_refused").order("label").fetchall() == [
        ("benign", 1.0, None),
        ("harmful", 1.0, 1.0),
    ]


def test_ties_between_layers_go_to_the_surer_and_then_the_lower_one() -> None:
    def scores(n_flipped: int, p: float) -> Scores:
        return Scores(n_prompts=9, n_flipped=n_flipped, p_refusal_token=p, kl=0.0, induced=1.0)

    layers = [scores(8, 0.0), scores(9, 0.2), scores(9, 0.1), scores(9, 0.1), scores(9, 0.0)]
    assert choose(layers, [True] * 5) == 4
    assert choose(layers, [True] * 4 + [False]) == 2
    assert choose(layers, [True, True, False, False, False]) == 1
    assert choose(layers, [False] * 5) is None


@pytest.mark.parametrize("direction", ["own", "chosen"])
def test_one_feature_a_layer_flips_none_and_two_flip_all(analysed: Analysed, direction: str) -> None:
    by_k = analysed.opened.query("asr", judge="first_token").filter(f"condition = 'top_k_{direction}' and label = 'harmful'")
    assert by_k.select("k", "n_flipped").order("k").fetchall() == [(1, 0), (2, 6), (3, 6), (4, 6)]
    first = analysed.opened.query("first_flip", condition=f"top_k_{direction}", judge="phrases").filter("label = 'harmful'")
    assert first.select("first_k").fetchall() == [(2,)] * 6
    choice = analysed.opened.query("k_choice", condition=f"top_k_{direction}", judge="first_token")
    assert choice.select("k", "flipped_0", "flipped_1").fetchall() == [(2, 1.0, 1.0)]


def test_the_guaranteed_search_finds_exactly_the_enumerated_minimal_sets(analysed: Analysed, loaded: Loaded) -> None:
    texts = dict(analysed.rows("select prompt_id, text from prompts where label = 'harmful' and split = 'test'"))
    found = analysed.sets("minimal")
    assert len(found) == 6 * STARTS
    by_prompt = {prompt_id: [features for (of, *_), features in found.items() if of == prompt_id] for prompt_id in texts}
    for prompt_id, text in texts.items():
        true_sets = minimal_sets(analysed.planted, text, loaded)
        assert set(by_prompt[prompt_id]) <= true_sets, "every start ends in a true minimal set"
    assert {len(set(ends)) for ends in by_prompt.values()} == {len(analysed.planted.minimal_sets)}, "the starts find all of them"
    flips = analysed.rows("select distinct flipped from ablations join verdicts using (ablation_id) where condition = 'minimal'")
    assert flips == [(True,)]


def test_algorithm_1_equals_the_literal_loop_on_the_literal_network(analysed: Analysed) -> None:
    """The paper's loop, one evaluation after another, by full decode plus error in float64, from the same draws."""
    single = load(analysed.planted)  # not the fixture's, which stays in float32
    double = Loaded(single.model.double(), single.tokenizer, [sae.double() for sae in single.saes], single.refusal_id)
    pool = [
        (layer, feature_id)
        for layer, feature_id in analysed.opened.query("candidates", k=2, direction="own", exclude_layers=[0, 1])
        .select("layer", "feature_id")
        .fetchall()
    ]
    first_id = analysed.rows("select min(prompt_id) from prompts")[0][0]
    traces = {
        (prompt_id, seed): np.array(ps)
        for prompt_id, seed, ps in analysed.rows(
            "select prompt_id, seed, list(p_refusal_token order by step) from search_trace group by prompt_id, seed"
        )
    }
    spec = stage_list.specs(verbs.open_analysis(analysed.recipe))["algorithm1"]
    found = analysed.sets("algorithm1")
    texts = dict(analysed.rows("select prompt_id, text from prompts where label = 'harmful' and split = 'test'"))
    assert set(traces) == set(product(texts, range(SEEDS)))
    assert len(found) == len(traces) * len(TAUS)
    for (prompt_id, seed), trace in traces.items():
        ids_1t = prompt_ids(double, texts[prompt_id])
        seen: dict[frozenset[int], float] = {}

        def p(ablated: frozenset[int], ids_1t: torch.Tensor = ids_1t, seen: dict[frozenset[int], float] = seen) -> float:
            if ablated not in seen:
                seen[ablated] = float(ablate(double, ids_1t, [[pool[i] for i in ablated]]).p_refusal_b)
            return seen[ablated]

        rng = np.random.default_rng([spec.seed, seed, prompt_id - first_id])
        draws = block_sequence(len(pool), BLOCK_SIZE, rng)
        for tau in TAUS:
            literal = {pool[i] for i in literal_loop(len(pool), BLOCK_SIZE, tau, draws, p)}
            assert found[prompt_id, None, seed, np.float32(tau).item()] == literal, (texts[prompt_id], seed, tau)
        ablated = [set(range(len(pool))) - set(draws[:t].ravel().tolist()) for t in range(len(draws) + 1)]
        np.testing.assert_allclose(trace, [p(frozenset(a)) for a in ablated], atol=1e-4)
    assert {len(s) for s in found.values()} != {0}, "some set is found"


def test_algorithm_1_keeps_what_all_seeds_share_and_tests_the_complements(analysed: Analysed) -> None:
    found, common = analysed.sets("algorithm1"), analysed.sets("algorithm1_common")
    pool = {f for s in analysed.sets("algorithm1_complement").values() for f in s} | {f for s in found.values() for f in s}
    for (prompt_id, _, _, tau), features in common.items():
        of_seeds = [s for (p, _, _, of_tau), s in found.items() if (p, of_tau) == (prompt_id, tau)]
        assert len(of_seeds) == SEEDS
        assert features == frozenset.intersection(*of_seeds)
    for key, rest in analysed.sets("algorithm1_complement").items():
        assert rest == pool - found[key]


def test_random_controls_are_of_the_asked_size_and_flip_nothing(analysed: Analysed) -> None:
    controls = analysed.opened.query("asr").filter("condition like 'random%' and label = 'harmful'")
    rows = controls.select("condition", "n_flipped", "n_refused_at_baseline").fetchall()
    found = "select count(distinct prompt_id) from critical_features join prompts using (prompt_id) where label = 'harmful'"
    ((by_algorithm1,),) = analysed.rows(f"{found} and method = 'algorithm1'")
    assert len(rows) >= 10
    n_searched = {"random_algorithm1": by_algorithm1}
    every = [row for row in rows if row[0] != "random_algorithm1_common"]
    assert all(row[1:] == (0, n_searched.get(row[0], 6)) for row in every)
    assert not any(n_flipped for _, n_flipped, _ in rows)
    largest = analysed.rows(
        "select a.k, max(n) from (select set_id, layer, count(*) as n from feature_sets group by all) "
        "join ablations as a using (set_id) where condition = 'random' group by a.k order by a.k"
    )
    assert largest == [(k, k) for k in (1, 2, 3, 4)]
    candidates = {analysed.planted.primary, analysed.planted.backup, analysed.planted.decoy, analysed.planted.dead[0]}
    drawn = analysed.rows(
        "select distinct feature_id from feature_sets join ablations using (set_id) where condition like 'random%'"
    )
    assert not {feature_id for (feature_id,) in drawn} & candidates


def test_random_controls_are_as_many_a_layer_as_what_stage_2_found(analysed: Analysed) -> None:
    """Unless the prompt has fewer features that fire and are not candidates."""
    sizes = (
        "select a.prompt_id, f.layer, count(*) as n from ablations as a join prompts as p using (prompt_id) "
        "join feature_sets as f using (set_id) where p.label = 'harmful' and "
    )
    taus = "select prompt_id, tau from critical_features where method = 'algorithm1'"
    for random, found in (
        ("random_minimal", "a.condition = 'minimal' and draw = 0"),
        ("random_algorithm1", f"a.condition = 'algorithm1_common' and (a.prompt_id, a.tau) in ({taus})"),
    ):
        theirs = {row[:2]: row[2] for row in analysed.rows(f"{sizes} {found} group by all")}
        ours = {row[:2]: row[2] for row in analysed.rows(f"{sizes} a.condition = '{random}' and draw = 0 group by all")}
        prompts = analysed.rows(
            f"select distinct prompt_id from ablations join prompts using (prompt_id) "
            f"where condition = '{random}' and label = 'harmful'"
        )
        assert {p for (p,) in prompts} == {p for p, _ in theirs}
        assert ours
        assert all(n <= theirs[key] for key, n in ours.items())


def test_what_all_seeds_find_has_controls_of_its_own_at_every_threshold(analysed: Analysed) -> None:
    """Sets that flip and sets that do not, each against as many random features; never those that success chose alone."""
    sizes = (
        "select a.prompt_id, a.tau, f.layer, count(*) as n from ablations as a join prompts as p using (prompt_id) "
        "join feature_sets as f using (set_id) where p.label = 'harmful' and a.method = 'algorithm1' and a.part = 'common'"
    )
    theirs = {row[:3]: row[3] for row in analysed.rows(f"{sizes} and a.control is null group by all")}
    ours = {row[:3]: row[3] for row in analysed.rows(f"{sizes} and a.control = 'random' and draw = 0 group by all")}
    firing = dict(
        analysed.rows(
            "select (prompt_id, layer), count(distinct feature_id) from activations join tokens using (prompt_id, pos) "
            "where role <> 'bos' and feature_id not in (select feature_id from alignments qualify row_number() over "
            "(partition by direction, layer order by cosine desc, feature_id) <= 4) group by all"
        )
    )
    assert len({tau for _, tau, _ in theirs}) > 1
    at_most = {key: min(n, firing.get((key[0], key[2]), 0)) for key, n in theirs.items()}
    assert ours == {key: n for key, n in at_most.items() if n}
    compared = (
        analysed.opened.query("comparisons", rows="comparison").filter("a = 'algorithm1_common'").project("b, tau").fetchall()
    )
    assert {tau for b, tau in compared if b == "random_algorithm1_common"} == {tau for _, tau, _ in theirs}


def test_the_first_candidate_of_every_layer_is_clamped_on_control_prompts(analysed: Analysed) -> None:
    clamped = analysed.rows(
        "select p.label, a.prompt_id, a.part, a.k, a.draw, list((f.layer, f.feature_id, f.value) order by f.layer) "
        "from ablations as a join prompts as p using (prompt_id) join feature_sets as f using (set_id) "
        "where a.method = 'clamp' and a.stage = 'controls' group by all order by all"
    )
    assert len(clamped) == 6 * 2 * len(CLAMPED), "six benign prompts, two directions"
    for label, _, direction, k, draw, features in clamped:
        candidates = analysed.opened.query("candidates", k=1, direction=direction, exclude_layers=[0, 1])
        first = candidates.project("layer, feature_id").order("layer").fetchall()
        assert (label, k) == ("benign", 1)
        assert features == [(layer, feature_id, CLAMPED[draw]) for layer, feature_id in first]
    assert {feature_id for *_, features in clamped for _, feature_id, _ in features} == {analysed.planted.primary}


def test_table_1_compares_the_methods(analysed: Analysed) -> None:
    found = analysed.opened.query("search_methods", judge="first_token")
    rows = {(r[0], r[1]): dict(zip(found.columns, r, strict=True)) for r in found.fetchall()}
    minimal, random = rows["minimal", None], rows["random_minimal", None]
    assert (minimal["n_refused"], minimal["n_searched"], minimal["flip_rate"]) == (6, 6, 1.0)
    assert minimal["largest"] == 2
    assert random["flip_rate"] == 0
    assert len([key for key in rows if key[0] == "algorithm1"]) == len(TAUS)
    assert rows["algorithm1", np.float32(0.1).item()]["n_evaluations"] == 6 * SEEDS * (8 // BLOCK_SIZE + 1)
    assert rows["algorithm1", np.float32(0.1).item()]["n_untested"] == 0
    # blocks of nine in pools of eight: nothing is tested, which is not a failure of the search
    untested = rows["algorithm1_n9_common", np.float32(0.1).item()]
    assert (untested["n_untested"], untested["flip_rate"], untested["flip_rate_of_tested"]) == (6, 0, None)
    assert untested["n_evaluations"] == 6 * SEEDS
    automatic = rows["algorithm1_nauto", np.float32(0.1).item()]
    assert automatic["n_evaluations"] == 6 * SEEDS * (8 + 1), "one candidate a block"
    assert (automatic["n_untested"], automatic["flip_rate_of_tested"]) == (0, automatic["flip_rate"])
    never = {key for key, row in rows.items() if row["control_answered"] != 1}
    common = {key for key in rows if key[0] == "random_algorithm1_common"}
    assert never == {("random_algorithm1", None)} | common, "drawn for harmful prompts only"


def test_chosen_features_are_a_list_or_a_select_and_a_condition_is_replaced(analysed: Analysed) -> None:
    listed = verbs.ablate(analysed.recipe, analysed.lake, "mine", f"4:{analysed.planted.primary}")
    same = verbs.ablate(analysed.recipe, analysed.lake, "mine", [(4, analysed.planted.primary)])
    assert same.run_id == listed.run_id
    selected = verbs.ablate(
        analysed.recipe, analysed.lake, "mine", "select 4 as layer, feature_id from features where feature_id = 5", value=9.0
    )
    assert selected.run_id != listed.run_id
    with saelake.open(analysed.lake.root) as opened:
        rows = opened.sql(
            "select distinct layer, feature_id, value from feature_sets join ablations using (set_id) where condition = 'mine'"
        )
        assert rows.fetchall() == [(4, 5, 9.0)]


def test_ablating_makes_a_lake_and_ingests_where_there_is_none(tmp_path: Path) -> None:
    planted = write_planted(tmp_path / "study")
    arguments = ["ablate", str(planted.recipe), "--features", f"4:{planted.primary}", "--condition", "mine", "--lake"]
    result = CliRunner().invoke(cli.main, [*arguments, str(tmp_path / "new")])
    assert result.exit_code == 0, result.output
    assert "what the unmodified model answers is not known here" in result.output
    with saelake.open(tmp_path / "new") as opened:
        found = opened.query("asr", judge="first_token").project("condition, label, n_prompts, asr").fetchall()
    assert found == [("mine", "benign", 6, 1.0), ("mine", "harmful", 6, 1.0)]


@pytest.mark.parametrize(
    ("condition", "features", "error", "words"),
    [
        ("none", "2:5", UserError, "one of the analysis' own"),
        ("top_k_own", "2:5", UserError, "one of the analysis' own"),
        ("stage3_alone", "2:5", UserError, "one of the analysis' own"),
        ("a b", "2:5", UserError, "not a name"),
        ("mine", "2:999", QueryError, "there is no feature 999"),
        ("mine", "9:5", QueryError, "no SAE with layer 9"),
        ("mine", "select 1 as a", QueryError, "needs the columns"),
        ("mine", "drop view prompts", QueryError, "features"),
        ("mine", "select layer, feature_id from features where false", UserError, "no feature at all"),
    ],
)
def test_chosen_features_that_are_none_are_one_sentence(
    analysed: Analysed, condition: str, features: str, error: type[Exception], words: str
) -> None:
    before = analysed.lake.run_ids()
    with pytest.raises(error, match=words):
        verbs.ablate(analysed.recipe, analysed.lake, condition, features)
    assert analysed.lake.run_ids() == before


def test_results_reach_any_duckdb(analysed: Analysed) -> None:
    with duckdb.connect(str(analysed.lake.catalog), read_only=True) as con:
        con.execute("set variable lake = $1", [str(analysed.lake.root)])
        assert con.sql("select count(distinct condition) from ablations").fetchall()[0][0] >= 12
