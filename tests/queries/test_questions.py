"""Every question against answers computed by hand from tests/lakes.py, some against plain Python on random tables."""

import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelake import queries
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from tests.lakes import HOSTILE, TEXTS, build_lake, prompt_id


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return build_lake(tmp_path_factory.mktemp("lake"))


@pytest.fixture(scope="module")
def con(lake: Lake) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(lake) as con:
        yield con


def ask(con: duckdb.DuckDBPyConnection, name: str, columns: str, **values: Any) -> list[Any]:
    return queries.run(con, name, **values).project(columns).fetchall()


def test_asr_counts_prompts_and_shares_pairs_of_prompt_and_draw(con: duckdb.DuckDBPyConnection) -> None:
    relation = queries.run(con, "asr", judge="first_token").select("* exclude (tau)")
    assert relation.columns == [
        "condition", "judge", "label", "k", "n_prompts", "n_flipped", "asr",
        "n_refused_at_baseline", "n_flipped_of_refused", "asr_of_refused",
        "n_answers", "n_prompts_flipped", "n_prompts_flipped_of_refused",
    ]  # fmt: skip
    expected = [
        ("direction", "benign", None, 2, 2, 1.0, 1, 1, 1.0),
        ("direction", "harmful", None, 4, 3, 0.75, 3, 2, 2 / 3),
        ("none", "benign", None, 2, 1, 0.5, 1, 0, 0.0),
        ("none", "harmful", None, 4, 1, 0.25, 3, 0, 0.0),
        ("random", "benign", 1, 2, 2, 0.5, 1, 0, 0.0),
        ("random", "harmful", 1, 4, 3, 3 / 8, 3, 1, 1 / 6),
        ("top_k_chosen", "benign", 1, 2, 1, 0.5, 1, 0, 0.0),
        ("top_k_chosen", "benign", 2, 2, 1, 0.5, 1, 0, 0.0),
        ("top_k_chosen", "harmful", 1, 4, 1, 0.25, 3, 0, 0.0),
        ("top_k_chosen", "harmful", 2, 4, 2, 0.5, 3, 1, 1 / 3),
        ("top_k_own", "benign", 1, 2, 1, 0.5, 1, 0, 0.0),
        ("top_k_own", "benign", 2, 2, 1, 0.5, 1, 0, 0.0),
        ("top_k_own", "benign", 3, 2, 1, 0.5, 1, 1, 1.0),
        ("top_k_own", "harmful", 1, 4, 2, 0.5, 3, 1, 1 / 3),
        ("top_k_own", "harmful", 2, 4, 2, 0.5, 3, 1, 1 / 3),
        ("top_k_own", "harmful", 3, 4, 3, 0.75, 3, 2, 2 / 3),
    ]
    prompts = {("random", "harmful"): (8, 2, 1), ("random", "benign"): (4, 1, 0)}  # two draws; elsewhere a prompt has one answer
    counted = [prompts.get((row[0], row[1]), (row[3], row[4], row[7])) for row in expected]
    assert relation.fetchall() == [
        (row[0], "first_token", *row[1:], *counts) for row, counts in zip(expected, counted, strict=True)
    ]


def test_asr_of_all_judges_and_of_some_k(con: duckdb.DuckDBPyConnection) -> None:
    judges = ask(con, "asr", "judge, n_flipped", k=[2])
    assert {judge for judge, _ in judges} == {"first_token", "phrases"}
    rows = ask(con, "asr", "condition, k, n_flipped", judge="phrases", k="2,3")
    assert ("top_k_own", 2, 3) in rows, "phrases takes the degenerate answer to prompt 2 for a flip"
    assert {(condition, k) for condition, k, _ in rows} == {
        ("direction", None), ("none", None), ("top_k_chosen", 2), ("top_k_own", 2), ("top_k_own", 3),
    }  # fmt: skip


def test_asr_of_refused_is_null_where_nothing_was_refused(lake: Lake) -> None:
    with connect(lake) as mine:
        mine.execute("create temp view verdicts as select * replace (false as refused) from memory.main.verdicts")
        assert set(ask(mine, "asr", "n_refused_at_baseline, asr_of_refused")) == {(0, None)}


def test_the_judge_is_the_oracle_unless_another_is_named(con: duckdb.DuckDBPyConnection) -> None:
    assert queries.oracle(con) == "first_token"
    flips = {judge: ask(con, "per_prompt", "*", judge=judge) for judge in ("first_token", "phrases")}
    assert ask(con, "per_prompt", "*") == flips["first_token"] != flips["phrases"]
    for question in ("per_prompt", "asr"):
        with pytest.raises(
            queries.QueryError, match="'harmbench' has judged no answer here; there are verdicts of first_token, ph"
        ):
            queries.run(con, question, judge="harmbench")


def test_the_oracle_is_that_of_the_latest_analysis_whatever_chosen_features_were_judged_by() -> None:
    con = duckdb.connect()
    con.execute("create table runs (stage varchar, finished int, config json)")
    assert queries.oracle(con) is None
    for row in (("chosen_mine", 9, "first_token"), ("baseline", 1, "harmbench"), ("candidates", 2, "phrases")):
        con.execute("insert into runs values (?, ?, {'verdicts': {'name': ?::varchar}}::json)", row)
    assert queries.oracle(con) == "phrases"


def test_first_flip_is_the_smallest_k_or_null(con: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    rows = ask(
        con, "first_flip", "prompt_id, refused_at_baseline, first_k, n_k, largest_k", condition="top_k_own", judge="first_token"
    )
    first = prompt_id(lake, 0)
    by_prompt = {row[0] - first: row[1:] for row in rows}
    assert by_prompt == {
        0: (True, 2, 3, 3),
        1: (True, 1, 3, 3),
        2: (True, None, 3, 3),
        3: (False, 1, 3, 3),
        4: (False, 1, 3, 3),
        5: (True, 3, 3, 3),
    }
    assert len(ask(con, "first_flip", "1")) == 2 * 2 * 6, "both searches, both judges, six prompts"


def test_k_is_chosen_on_one_half_and_reported_on_the_other(con: duckdb.DuckDBPyConnection) -> None:
    rows = queries.run(con, "k_choice", judge="first_token").fetchall()
    # Refused at baseline: 0, 1, 2; half 0 is {0, 2}. K = 2 and 3 both flip prompt 0 alone, so the smaller; it leaves 1 refused.
    assert rows == [("top_k_own", "first_token", 2, 2, 0.5, 1, 0.0, 2, 0.5, 1 / 3, 0.5)]
    assert ask(con, "k_choice", "judge, k, flipped_0", judge=None) == [("first_token", 2, 0.5), ("phrases", 2, 1.0)]
    assert ask(con, "k_choice", "k, flipped_0, flipped_1", condition="top_k_chosen", judge="first_token") == [(1, 0.0, 0.0)]
    assert ask(con, "k_choice", "k", condition="absent") == []


def test_features_leaves_bos_out_and_orders_by_difference(con: duckdb.DuckDBPyConnection) -> None:
    columns = "layer, feature_id, n_tokens, rate, mean_activation, max_activation, n_prompts, target, control, difference"
    assert ask(con, "features", columns) == [
        (1, 0, 3, 3 / 18, pytest.approx(6.5 / 3), 4.0, 3, 0.75, 0.0, 0.75),
        (0, 2, 1, 1 / 18, 0.5, 0.5, 1, 0.25, 0.0, 0.25),
        (1, 3, 1, 1 / 18, 2.5, 2.5, 1, 0.25, 0.0, 0.25),
        (0, 1, 4, 4 / 18, 2.25, 3.0, 3, 0.5, 0.5, 0.0),
    ]


def test_features_filters_and_orders(con: duckdb.DuckDBPyConnection) -> None:
    ids = "layer, feature_id"
    assert ask(con, "features", ids, layer=0, order_by="rate") == [(0, 1), (0, 2)]
    assert ask(con, "features", ids, min_prompts=2, order_by="max") == [(1, 0), (0, 1)]
    assert ask(con, "features", ids, order_by="prompts", limit=1) == [(0, 1)]
    assert len(ask(con, "features", ids, min_prompts=0, limit=None, order_by="mean")) == 8


def test_top_samples_takes_the_strongest_token_of_each_prompt(con: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    columns = f"layer, feature_id, rank, activation, token, role, context, prompt_id - {prompt_id(lake, 0)}, pos, label, text"
    assert ask(con, "top_samples", columns, features="1:3,0:1", n=2, window=1) == [
        (0, 1, 1, 3.0, "b0", "user", "a0 [[b0]]", 0, 3, "harmful", "text 0"),
        (0, 1, 2, 3.0, "b4", "user", "a4 [[b4]]", 4, 3, "benign", "text 4"),
        (1, 3, 1, 2.5, "a2", "user", "user [[a2]] b2", 2, 2, "harmful", "text 2"),
    ]


def test_top_samples_with_bos_and_token_by_token(con: duckdb.DuckDBPyConnection) -> None:
    with_bos = ask(con, "top_samples", "rank, activation, context", features=[(1, 3)], window=1, bos=True)
    assert with_bos == [(1, 7.0, "[[<bos>]] user"), (2, 2.5, "user [[a2]] b2")]
    tokens = ask(con, "top_samples", "activation, token", features="0:1", per_prompt="false")
    assert tokens == [(3.0, "b0"), (3.0, "b4"), (2.0, "a1"), (1.0, "a0")]
    assert ask(con, "top_samples", "rank", features=[]) == []


def test_prompt_shows_every_token_with_its_strongest_features(con: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    columns = "pos, token, role, rank, layer, feature_id, activation"
    assert ask(con, "prompt", columns, prompt_id=str(prompt_id(lake, 0)), n=2) == [
        (0, "<bos>", "bos", 1, 0, 0, 9.0),
        (0, "<bos>", "bos", 2, 1, 3, 7.0),
        (1, "user", "template", None, None, None, None),
        (2, "a0", "user", 1, 1, 0, 4.0),
        (2, "a0", "user", 2, 0, 1, 1.0),
        (3, "b0", "user", 1, 0, 1, 3.0),
    ]
    assert ask(con, "prompt", "pos, feature_id", prompt_id=prompt_id(lake, 0), layer=1, n=1) == [
        (0, 3),
        (1, None),
        (2, 0),
        (3, None),
    ]


def test_candidates_break_ties_by_feature_id(con: duckdb.DuckDBPyConnection) -> None:
    ids = "layer, feature_id, rank"
    assert ask(con, "candidates", ids, k=2, direction="own") == [(0, 1, 1), (0, 2, 2), (1, 3, 1), (1, 0, 2)]
    assert ask(con, "candidates", ids, k=1, exclude_layers=[0]) == [(1, 1, 1)]
    assert len(ask(con, "candidates", ids, direction="own", exclude_layers=[])) == 8


def test_firing_on_tokens_counts_tokens_of_a_prompt(con: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    columns = f"prompt_id - {prompt_id(lake, 0)}, layer, feature_id, n_tokens"
    assert ask(con, "firing_on_tokens", columns, k=2) == [(0, 0, 1, 2)]
    only = {"k": 1, "prompt_id": prompt_id(lake, 2)}
    assert ask(con, "firing_on_tokens", columns, **only) == [(2, 1, 0, 1), (2, 1, 3, 1)]
    assert ask(con, "firing_on_tokens", columns, bos=True, exclude_layers="1", **only) == [(2, 0, 0, 1)]


EVERY_FEATURE = "select distinct layer, feature_id from activations"


def test_cofiring_pairs_within_and_across_layers(con: duckdb.DuckDBPyConnection) -> None:
    columns = "layer_a, feature_id_a, layer_b, feature_id_b, n_a, n_b, n_both, jaccard"
    rows = ask(con, "cofiring", columns, features=EVERY_FEATURE)
    assert rows == [
        (0, 1, 1, 0, 3, 3, 2, 0.5),
        (0, 1, 0, 2, 3, 1, 1, 1 / 3),
        (0, 2, 1, 0, 1, 3, 1, 1 / 3),
        (1, 0, 1, 3, 3, 1, 1, 1 / 3),
    ]
    assert ask(con, "cofiring", columns, features=EVERY_FEATURE, pairs="same_layer") == [rows[1], rows[3]]
    assert ask(con, "cofiring", columns, features=EVERY_FEATURE, pairs="across_layers") == [rows[0], rows[2]]
    assert ask(con, "cofiring", columns, features=EVERY_FEATURE, min_jaccard=0.4) == rows[:1]
    with_bos = ask(con, "cofiring", columns, features="0:0,1:3", bos=True)
    assert with_bos == [(0, 0, 1, 3, 6, 2, 2, 2 / 6)]


def test_random_controls_fire_on_the_prompt_outside_the_pool(con: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    columns = "draw, layer, feature_id, rank"
    drawn = ask(con, "random_active", columns, prompts=[prompt_id(lake, 1)], pool=1, draws=2)
    assert drawn == [(0, 0, 2, 1), (0, 1, 0, 1), (1, 0, 2, 1), (1, 1, 0, 1)]
    both = [prompt_id(lake, 0), prompt_id(lake, 1)]
    draws = {seed: ask(con, "random_active", columns, prompts=both, pool=0, draws=20, seed=seed) for seed in (0, 1)}
    assert draws[0] == ask(con, "random_active", columns, prompts=both, pool=0, draws=20, seed=0)
    assert draws[0] != draws[1]


@pytest.fixture
def searched() -> Iterator[duckdb.DuckDBPyConnection]:
    """Two prompts on which features 0 to 5 fire; 0 is the first by cosine, the others are candidates of one prompt each."""
    with duckdb.connect() as con:
        con.execute(
            "create table alignments as "
            "select 'own' as direction, 's' as sae_id, i as feature_id, -i as cosine from range(6) t(i)"
        )
        con.execute(
            "create table activations as "
            "select p as prompt_id, 1 as pos, 0 as layer, 's' as sae_id, i as feature_id, 1.0 as activation "
            "from range(2) prompts(p), range(6) features(i)"
        )
        con.execute("create table tokens as select p as prompt_id, 1 as pos, 'user' as role from range(2) prompts(p)")
        con.execute(
            "create table ablations as from (values (0, 10, 'top_k', 'attribution', null), (0, 11, 'minimal', null, null), "
            "(1, 12, 'minimal', null, null), (0, 13, 'minimal', null, 'random'), (0, 14, 'algorithm1', 'complement', null)) "
            "t(prompt_id, set_id, method, part, control)"
        )
        con.execute(
            "create table feature_sets as from (values (10, 's', 1), (11, 's', 2), (12, 's', 3), (13, 's', 4), (14, 's', 5)) "
            "t(set_id, sae_id, feature_id)"
        )
        con.execute(
            "create table critical_features as "
            "select prompt_id, 0 as layer, sae_id, feature_id, 'minimal' as method, 1 as n_tokens "
            "from ablations join feature_sets using (set_id) where method = 'minimal' and control is null"
        )
        yield con


def test_controls_are_neither_a_prompts_own_candidates_nor_what_was_found_for_it(searched: duckdb.DuckDBPyConnection) -> None:
    """Whatever other prompts of the same call have: what a control is drawn from does not depend on the shard."""
    for name, column in (("random_active", "feature_id"), ("matched_active", "other_feature_id")):
        both = set(ask(searched, name, f"prompt_id, {column}", prompts=[0, 1], pool=1))
        assert both == {(0, f) for f in (3, 4, 5)} | {(1, f) for f in (1, 2, 4, 5)}, name
        alone = set(ask(searched, name, f"prompt_id, {column}", prompts=[0], pool=1))
        assert alone == {(prompt, f) for prompt, f in both if prompt == 0}, name


def test_runs_tell_where_everything_comes_from(con: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    stages = ask(con, "runs", "stage, recipe, current, parents, rows, device, seed")
    ingest, alignments = (lake.current()["small", stage][0] for stage in ("ingest", "alignments"))
    assert stages == [
        ("ingest", "small", True, [], "prompts 6, tokens 24, saes 2, features 8, activations 16", "cpu", 0),
        ("alignments", "small", True, [ingest], "alignments 16", "cpu", 0),
        ("candidates", "small", True, [alignments, ingest], "ablations 54, verdicts 108", "cpu", 7),
    ]
    record = lake.record(ingest)
    assert record is not None
    known = ask(con, "runs", "run_id, content_hash, duckdb, seconds >= 0", stage="ingest", study="small")
    assert known == [(ingest, record.content_hash, record.versions["duckdb"], True)]


def test_a_feature_list_reads_only_its_layers_files_where_the_catalog_can(lake: Lake) -> None:
    with connect(lake) as mine:
        mine.execute("create temp macro activations_of(l) as table select * from activations where layer = l and feature_id <> 2")
        assert "activations_of(0)" in queries.load("cofiring").statement(mine, {"features": "0:1"})
        assert ask(mine, "cofiring", "feature_id_b", features="0:1,0:2,1:0") == [(0,)]


def test_long_feature_lists_give_the_same_rows(con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ask(con, "cofiring", "*", features="0:0,0:2,1:0,1:3", bos=True)
    monkeypatch.setattr("saelake.queries.features.LARGEST_IN_LIST", 1)
    assert ask(con, "cofiring", "*", features="0:0,0:2,1:0,1:3", bos=True) == short != []


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.tuples(st.integers(0, 1), st.integers(0, 5)), st.sets(st.integers(0, 5), min_size=1), min_size=1))
def test_jaccard_equals_plain_python(fires: dict[tuple[int, int], set[int]]) -> None:
    with duckdb.connect() as con:
        con.execute("create table saes as select 's' || i as sae_id, i as layer, 6 as width from range(2) t(i)")
        con.execute("create table tokens as select i as prompt_id, 0 as pos, 'user' as role from range(6) t(i)")
        con.execute("create table activations (layer int, sae_id text, feature_id int, prompt_id int, pos int)")
        rows = [(layer, f"s{layer}", f, p) for (layer, f), prompts in fires.items() for p in prompts]
        con.executemany("insert into activations values (?, ?, ?, ?, 0)", rows)
        found = ask(con, "cofiring", "layer_a, feature_id_a, layer_b, feature_id_b, jaccard", features=list(fires))
    expected = {
        (*a, *b): len(fires[a] & fires[b]) / len(fires[a] | fires[b])
        for a, b in combinations(sorted(fires), 2)
        if fires[a] & fires[b]
    }
    assert {row[:4]: row[4] for row in found} == expected
    assert found == sorted(found, key=lambda row: (-row[4], row[:4]))


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.tuples(st.integers(0, 3), st.integers(0, 9)), st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=1),
    st.integers(0, 4),
    st.sets(st.integers(0, 3)),
)
def test_candidates_equal_plain_python(cosines: dict[tuple[int, int], float], k: int, excluded: set[int]) -> None:
    with duckdb.connect() as con:
        con.execute("create table alignments (direction text, layer int, sae_id text, feature_id int, cosine float)")
        con.executemany(
            "insert into alignments values ('own', ?, ?, ?, ?)", [(n, f"s{n}", f, c) for (n, f), c in cosines.items()]
        )
        found = ask(con, "candidates", "layer, feature_id", k=k, direction="own", exclude_layers=sorted(excluded))
    ranked = sorted((-value, f, layer) for (layer, f), value in cosines.items())
    of_layer = {layer: [(layer, f) for _, f, at in ranked if at == layer][:k] for layer in range(4) if layer not in excluded}
    assert found == [feature for layer in sorted(of_layer) for feature in of_layer[layer]]


def test_every_question_is_in_one_order_only(con: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    """Rows that tie on what a question orders by would make its answer depend on threads."""
    needed = {"features": EVERY_FEATURE, "prompt_id": prompt_id(lake, 0), "prompts": [prompt_id(lake, 0)]}
    needed |= {"layer": 0, "feature_id": 1, "study": "pilot", "sae_id": "sae0", "token": "a0", "words": "text"}
    needed |= {"judge": "first_token", "split": "test"}
    needed |= {name: lake.current()["small", "candidates"][0] for name in "ab"}
    needed |= {"condition": "top_k_own", "run_id": needed["a"]}
    others = {"compare_runs": {"differing": False}}
    for name in (*queries.names(), *queries.names_of_stages(), *queries.names_of_pages()):
        asked = queries.load(name)
        values = {p.name: needed[p.name] for p in asked.parameters if p.required} | others.get(name, {})
        rows = queries.run(con, name, **values).fetchall()
        assert len({repr(row) for row in rows}) == len(rows), f"{name} repeats rows"
        code = re.sub(r"--.*|'[^']*'", "", asked.sql)
        assert code == code.lower(), f"{name}.sql is not lower case"
        assert "order by" in asked.sql.rsplit("\n)", 1)[-1], f"{name}.sql ends without an order"


def test_model_text_passes_through_unchanged(con: duckdb.DuckDBPyConnection) -> None:
    assert TEXTS[3] == HOSTILE
    assert HOSTILE in [row[0] for row in ask(con, "first_flip", "text")]
