"""Questions on tables of a few rows, which hold what a small study does not: two judges, several SAEs on a layer, chats."""

from collections.abc import Iterator
from typing import Any

import duckdb
import pytest

from saelake import queries
from saelake.ingest.sites import KINDS, Site
from saelake.warehouse.views import statements_without_runs

JUDGES = """'{"verdicts": {"name": "harmbench", "control": {"name": "phrases"}}}'::json"""


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    """All tables, without rows; target prompts are read by harmbench and others by phrases."""
    with duckdb.connect() as con:
        for statement in statements_without_runs():
            con.execute(statement)
        con.execute(f"create table runs as select 'baseline' as stage, {JUDGES} as config, 0 as finished")
        yield con


def fill(con: duckdb.DuckDBPyConnection, table: str, columns: str, *rows: tuple[Any, ...]) -> None:
    """Rows of a table, with null in the columns that are not named."""
    con.execute(f"create temp table {table} as from main.{table}")
    names = columns.split(", ")
    con.executemany(f"insert into {table} ({columns}) values ({', '.join('?' for _ in names)})", rows)


def ask(con: duckdb.DuckDBPyConnection, name: str, columns: str, **values: Any) -> list[Any]:
    return queries.run(con, name, **values).project(columns).fetchall()


@pytest.fixture
def read_by_two(con: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """Prompt 1 is harmful, 2 benign, 3 benign and read by nobody: unmodified, steered, and with features ablated."""
    fill(
        con,
        "prompts",
        "prompt_id, label, label_role, text, n_tokens",
        (1, "h", "target", "x", 3),
        *((p, "b", "control", "x", 3) for p in (2, 3)),
    )
    asked = {
        "none": "baseline",
        "direction": "baseline",
        "woken": "backups",
        "clamp": "steering",
        "mine": "user",
        "minimal": "minimal",
    }
    places = {method: 10 * n for n, method in enumerate(asked)}
    columns = "ablation_id, prompt_id, stage, condition, method, set_id, p_refusal_token, completion"
    answers = [(m, stage, prompt) for m, stage in asked.items() for prompt in (1, 2, 3)]
    rows = [(places[m] + p, p, stage, m, m, 7 if m == "minimal" else None, 0.5, "said") for m, stage, p in answers]
    fill(con, "ablations", columns, *rows)
    read = [(places[m] + 1, "harmbench", m == "none", False, m != "none") for m in asked]
    read += [(places[m] + 2, "phrases", m == "none", m == "minimal", m == "mine") for m in asked]
    fill(con, "verdicts", "ablation_id, judge, refused, degenerate, flipped", *read)
    fill(con, "feature_sets", "set_id, layer, sae_id, feature_id, value", (7, 0, "s", 5, 0.0))
    return con


def test_control_prompts_are_read_by_their_own_judge_on_every_page(read_by_two: duckdb.DuckDBPyConnection) -> None:
    con = read_by_two
    assert set(ask(con, "prompt_list", "prompt_id, p_target, refused")) == {(1, 0.5, True), (2, 0.5, True), (3, 0.5, None)}
    conditions = ask(con, "condition_list", "condition, n_refused, n_flipped, n_degenerate")
    assert {row[0]: row[1:] for row in conditions}["minimal"] == (2, 1, 1)
    assert {row[0]: row[1:] for row in conditions}["mine"] == (2, 2, 0)
    answers = ask(con, "condition_answers", "prompt_id, clean_refused, refused, flipped, degenerate", condition="minimal")
    assert answers == [(1, True, False, True, False), (2, True, False, False, True), (3, None, None, False, None)]
    rows = ask(con, "prompt_answers", "condition, refused, flipped, degenerate", prompt_id=2)
    assert {row[0]: row[1:] for row in rows}["minimal"] == (False, False, True)
    assert {row[0]: row[1:] for row in rows}["mine"] == (False, True, False)
    effects = ask(con, "feature_effects", "prompt_id, flipped", layer=0, feature_id=5)
    assert set(effects) == {(1, True), (2, False), (3, None)}
    assert ask(con, "feature_effects_held", "n_prompts, n_flipped") == [(3, 1)]


def test_a_prompt_is_flipped_by_methods_of_the_search_alone(read_by_two: duckdb.DuckDBPyConnection) -> None:
    """Not by the direction, what is held or what a person gave."""
    assert set(ask(read_by_two, "prompt_list", "prompt_id, n_methods")) == {(1, 1), (2, 0), (3, None)}


def test_features_of_a_set_are_listed_in_one_order_whatever_their_saes_are(read_by_two: duckdb.DuckDBPyConnection) -> None:
    con = read_by_two
    con.executemany("insert into feature_sets by position values (null, 7, ?, 0, 5, 0.0, null)", [(s,) for s in ("t", "a")])
    (row,) = [row for row in ask(con, "prompt_answers", "condition, features", prompt_id=1, features=2) if row[0] == "minimal"]
    assert [one["sae_id"] for one in row[1]] == ["a", "s"]


def test_what_first_token_has_not_read_is_not_none_of_it(con: duckdb.DuckDBPyConnection) -> None:
    fill(con, "prompts", "prompt_id, label_role", (1, "control"))
    columns = "ablation_id, prompt_id, method, part, control, set_id, draw, completion"
    fill(con, "ablations", columns, (1, 1, "none", None, None, None, None, ""), (2, 1, "clamp", "all_tokens", None, 7, 0, ""))
    fill(con, "verdicts", "ablation_id, judge, refused, degenerate", (1, "phrases", False, False), (2, "phrases", True, False))
    fill(con, "feature_sets", "set_id, value", (7, 2.0))
    assert ask(con, "steering_rates", "n_refused, n_first") == [(1, None)]
    con.execute("insert into verdicts (ablation_id, judge, refused) values (2, 'first_token', false)")
    assert ask(con, "steering_rates", "n_refused, n_first") == [(1, 0)]


def test_a_deeper_site_of_the_ablated_layer_wakes_and_a_chats_messages_are_not_the_templates(
    con: duckdb.DuckDBPyConnection,
) -> None:
    fill(con, "waking_passes", "ablation_id, prompt_id", (1, 1))
    roles = ("bos", "template", "system", "user", "assistant", "template")
    fill(con, "tokens", "prompt_id, pos, role", *((1, pos, role) for pos, role in enumerate(roles)))
    woken = [(1, "mlp", 3, 5, pos, 1.0) for pos in range(6)]
    fill(con, "reactivations", "ablation_id, sae_id, layer, feature_id, pos, activation", *woken)
    fill(con, "ablations", "ablation_id, prompt_id, set_id", (1, 1, 7))
    fill(con, "feature_sets", "set_id, layer, sae_id, feature_id", (7, 3, "attn", 2))
    counts = "layer, feature_id, n_tokens, n_first, n_template, n_user"
    assert ask(con, "wakings", counts) == [(3, 5, 6, 1, 2, 1)]
    fill(con, "saes", "sae_id, layer, width", ("mlp", 3, 8))
    con.execute("create temp macro reactivations_of(l) as table select * from reactivations where layer = l")
    con.execute("create temp macro activations_of(l) as table select * from activations where layer = l")
    assert ask(con, "dormant", counts, features="select 'mlp' as sae_id, 5 as feature_id") == [(3, 5, 6, 1, 2, 1)]


def test_what_lies_behind_a_site_goes_by_sites_and_not_by_layers(con: duckdb.DuckDBPyConnection) -> None:
    """In layer 3 the attention's output comes before the MLP's, whose transcoder reads before it writes."""
    hooks = {"attn": ("hook_attn_out", None), "code": ("ln2.hook_normalized", "hook_mlp_out"), "resid": ("hook_resid_post", None)}
    at = {name: [one and f"blocks.3.{one}" for one in pair] for name, pair in hooks.items()}
    fill(
        con,
        "saes",
        "sae_id, layer, hook, hook_out",
        *((name, 3, *pair) for name, pair in at.items()),
        ("old", 4, "resid_post", None),
    )
    sets = {name: n for n, name in enumerate((*at, "old"))}
    fill(con, "feature_sets", "set_id, layer, sae_id, feature_id", *((n, 3, name, 1) for name, n in sets.items()))
    fill(con, "prompts", "prompt_id, label_role, n_tokens", *((n, "target", 9) for n in sets.values()))
    asked: list[tuple[Any, ...]] = [(n, n, "stage3", "alone", "stage3_alone", 5, n) for n in sets.values()]
    asked += [(10 + n, n, "none", None, "none", None, None) for n in sets.values()]
    asked += [(20 + n, n, "minimal", "active", "minimal_active", None, None) for n in sets.values()]
    fill(con, "ablations", "ablation_id, prompt_id, method, part, condition, k, set_id", *asked)
    fill(
        con,
        "verdicts",
        "ablation_id, judge, refused, flipped",
        *((one[0], "j", one[2] == "none", one[2] != "none") for one in asked),
    )
    columns = "prompt_id, k, sae_id, layer, feature_id, lowest_layer, clean, ablated"
    expected = {"attn": ("code", "resid", "old"), "code": ("resid", "old"), "resid": ("old",), "old": ()}
    fill(con, "causal_links", columns, *((n, 5, name, 3, 1, 3, 1.0, 1.0) for name in sets for n in sets.values()))
    shares = [len(behind) / len(sets) for behind in expected.values()]
    assert ask(con, "causal_link", "round(in_reach, 6)") == [(round(sum(shares) / len(shares), 6),)]
    columns = "prompt_id, source, set_id, sae_id, layer, kind, budget, shown_before, shown, pos"
    fill(
        con,
        "recoveries",
        columns,
        *((n, "minimal", n, s, 3, "gradient", 0.1, False, True, 0) for n in sets.values() for s in sets),
    )
    behind = {row[0]: row[1] for row in ask(con, "recovery_sites", "sae_id, behind")}
    assert behind == {name: sum(name in those for those in expected.values()) / len(sets) for name in sets}


def test_what_is_cut_or_joined_has_one_order(con: duckdb.DuckDBPyConnection) -> None:
    """Features of equal rank by their SAE, the widths of SAEs by size."""
    fill(con, "saes", "sae_id, layer, width", *((name, 0, width) for name, width in (("b", 10), ("a", 10), ("c", 9), ("d", 100))))
    assert con.execute(queries.step("saes_in_short")).fetchall()[0][:2] == (4, "9, 10, 100")
    fill(con, "populations", "population, sae_id, layer, feature_id, n_prompts", *(("critical", s, 0, 5, 1) for s in "cbad"))
    assert ask(con, "concepts", "concept, examples", examples=3) == [("unexplained", "a:5, b:5, c:5")]


def test_sites_are_as_deep_in_sql_as_in_a_pass(con: duckdb.DuckDBPyConnection) -> None:
    sites = [Site(layer, kind) for layer in (0, 1, 11) for kind in KINDS]
    fill(con, "saes", "sae_id, layer, hook", *[(site.hook, site.layer, site.hook) for site in reversed(sites)])
    found = con.sql(queries.step("site_depths")).filter("place = 'reads'").order("depth").project("sae_id").fetchall()
    assert [hook for (hook,) in found] == [site.hook for site in sorted(sites, key=lambda site: site.depth)]
