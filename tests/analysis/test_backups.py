"""R13: what wakes is a backup only if its removal flips. The planted network has real ones, and they are known."""

import shutil
from itertools import product
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

from saelake import cli, queries
from saelake.analysis.engine.requests import Request
from saelake.analysis.interactions import backups
from saelake.analysis.interactions.backups import Source
from saelake.analysis.report.causes import backup_sentence
from tests.analysis.effects import Analysed
from tests.planted import ablate, prompt_ids


def test_the_planted_backups_are_found_and_nothing_else_is(study: Analysed) -> None:
    """The primary at layers 2 and 3 is backed up by the silent head at 4 and 5; at 4 and 5 its removal flips alone."""
    primary, backup = study.planted.primary, study.planted.backup
    rows = study.sql("select source_layer, source_feature_id, layer, feature_id, flips from backups where method is null")
    assert set(rows) == {(source, primary, layer, backup, True) for source, layer in product((2, 3), (4, 5))}
    n_prompts = len(study.sql("select distinct prompt_id from critical_features"))
    assert len(rows) == 4 * n_prompts
    sources = r"regexp_replace(sources, 'layer_0(\d)-\w+:', 'L\1-', 'g')"
    assert set(study.ask("backup_features", f"layer, feature_id, n_alone = n_backup, {sources}")) == {
        (layer, backup, True, f"L2-{primary}, L3-{primary}") for layer in (4, 5)
    }


def test_analyze_shows_what_is_backed_up_and_what_others_do_instead(planted_lake: Path, tmp_path: Path) -> None:
    shutil.copytree(planted_lake, tmp_path / "lake")
    done = CliRunner().invoke(cli.main, ["analyze", "planted", "--lake", str(tmp_path / "lake")])
    assert done.exit_code == 0, done.output
    names, _, *rows = done.stdout.split("with what wakes then, and with as many others, by first_token\n")[1].splitlines()
    sources = dict(zip(names.split(), next(row for row in rows if row.startswith("minimal")).split(), strict=True))
    assert (sources["n_tested"], sources["n_backed_up"], sources["n_random"]) == ("9", "9", "0")


def test_every_verdict_is_that_of_the_literal_network(study: Analysed) -> None:
    rows = study.sql(
        "select t.ablated, p.text, a.p_refusal_token, v.flipped, list((s.layer, s.feature_id)) "
        "from backup_tests as t join ablations as a using (ablation_id) join prompts as p on p.prompt_id = t.prompt_id "
        "join verdicts as v on v.ablation_id = t.ablation_id and v.judge = 'first_token' "
        "join feature_sets as s on s.set_id = a.set_id group by all"
    )
    assert {what for what, *_ in rows} == {"source", "woken", "random"}
    for _, text, p_target, flipped, members in rows:
        outcome = ablate(study.loaded, prompt_ids(study.loaded, text), [members])
        assert p_target == pytest.approx(float(outcome.p_refusal_b[0]), abs=1e-5)
        assert flipped == bool(outcome.flipped_b[0])


def test_a_smallest_part_of_what_wakes_is_one_that_the_enumeration_knows(study: Analysed) -> None:
    needed: dict[Any, set[tuple[int, int]]] = {}
    for *source, layer, feature_id in study.sql(
        "select prompt_id, source_layer, source_feature_id, layer, feature_id from backups where is_needed and method is null"
    ):
        needed.setdefault(tuple(source), set()).add((layer, feature_id))
    assert needed
    for (_, *source), members in needed.items():
        assert frozenset({(source[0], source[1]), *members}) in study.planted.minimal_sets


def test_the_question_counts_what_restores_and_what_does_not(study: Analysed) -> None:
    names = (
        "source, n_prompts, n_sources, n_flip, n_wake, n_tested, n_backed_up, n_random, n_prompts_backed_up, n_lower, n_higher"
    )
    rows = {row[0]: row[1:] for row in study.ask("backups", names)}
    assert rows["one"] == (6, 24, 12, 12, 12, 12, 0, 6, 12, 0)
    assert study.ask("backups", "n_more, n_less")[-1] == (6, 0)
    means = {row[0]: row[1:] for row in study.ask("backups", "source, p_source, p_woken, p_random")}
    p_source, p_woken, p_random = means["one"]
    assert p_woken < 0.01 < 0.9 < p_source
    assert p_random == pytest.approx(p_source, abs=0.01)
    with study.connect() as con:
        # What wakes but pushes the other way: the same passes, with answers that the source alone gives.
        con.execute("create temp table real_verdicts as from verdicts")
        con.execute("create temp table real_tests as from backup_tests")
        con.execute(
            "create temp view verdicts as select * replace (case when ablation_id in "
            "(select ablation_id from real_tests where ablated = 'woken') then false else flipped end as flipped) "
            "from real_verdicts"
        )
        one = next(row for row in _dicts(con, "backups") if row["source"] == "one")
    assert (one["n_tested"], one["n_backed_up"], one["n_flip"], one["n_more"]) == (12, 0, 12, 0)
    assert "is not a backup" in backup_sentence(one)


def _dicts(con: Any, question: str) -> list[dict[str, Any]]:
    relation = queries.run(con, question)
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def test_the_sentence_calls_nothing_a_backup_that_random_features_do_as_well(study: Analysed) -> None:
    with study.connect() as con:
        one = next(row for row in _dicts(con, "backups") if row["source"] == "one")
    assert backup_sentence(one).endswith("(sign test: p = 0.016). What wakes there stands in for its source: it is a backup.")
    assert "is not a backup" in backup_sentence(one | {"n_random": 12, "n_more": 0})
    few = one | {"n_tested": 4, "n_backed_up": 3, "n_random": 1, "n_more": 2}
    assert backup_sentence(few).endswith("(sign test: p = 0.25). These are too few to tell a backup from chance.")
    without = few | {"n_compared": 2, "n_random": 0, "n_more": 0}
    assert backup_sentence(without).endswith(
        "These are too few, or without others to compare with, to tell a backup from chance."
    )
    assert "it is a backup" not in backup_sentence(one | {"n_more": 4, "n_less": 4})
    part = backup_sentence(one | {"n_compared": 7, "n_random": 2})
    assert "when what wakes is ablated too, and 2 of the 7 that have other active features to ablate instead flip it with" in part
    alone = backup_sentence(one | {"n_compared": 0, "n_more": 0})
    assert alone.endswith("no other active features to ablate instead. Whether chance does as much is not known.")
    assert "nothing can be said" in backup_sentence(one | {"n_tested": 0})
    assert backup_sentence(one | {"n_sources": 0}) == ""


def test_what_is_asked_of_a_source_by_hand() -> None:
    def rows(request: Request) -> Any:
        return request.features.rows.tolist()

    one = Source(7, None, None, ((2, 5),), ((3, 1), (3, 4)), ((3, 8),))
    found = list(backups.tests(one, 11))
    assert [(source, what, ablation.condition, ablation.draw, ablation.seed) for source, what, ablation in found] == [
        (one, "source", ("woken", "without", None), None, None),
        (one, "woken", ("woken", "with", None), None, None),
        (one, "random", ("woken", "with", "matched"), 0, 11),
    ]
    assert [rows(ablation.request) for *_, ablation in found] == [
        [(2, 5, 0.0)],
        [(2, 5, 0.0), (3, 1, 0.0), (3, 4, 0.0)],
        [(2, 5, 0.0), (3, 8, 0.0)],
    ]
    assert {ablation.request.prompt for *_, ablation in found} == {7}
    silent, unmatched = (Source(7, "minimal", 0, ((2, 5),), woken, ()) for woken in ((), ((3, 1),)))
    parts = {source: [(what, one.condition.part) for _, what, one in backups.tests(source, 11)] for source in (silent, unmatched)}
    assert parts == {
        silent: [("source", "nothing")],
        unmatched: [("source", "without_unmatched"), ("woken", "with_unmatched")],
    }, "what is compared with what is over the same sources"
    names = [Source(7, method, start, ((2, i),), (), ()).name for method, start in ((None, None), ("minimal", 0)) for i in (5, 6)]
    names.append(Source(7, "minimal", 1, ((2, 5),), (), ()).name)
    assert len(set(names)) == 4, "a feature by itself, a set by its method and start"
    assert names[2] == names[3]


def test_others_are_taken_once_where_two_saes_of_a_layer_wake_in_turn() -> None:
    woken = ((1, 1), (2, 2), (1, 3))
    assert backups.others_of({1: (8, 5, 9, 7), 2: ()}, ((1, 5),), woken) == ((1, 8), (1, 9)), "as many of SAE 1 as wake of it"
    assert backups.others_of({1: (8,), 2: (6, 4)}, (), woken) == ((1, 8), (2, 6)), "fewer where the prompt has no more"


def test_a_source_without_others_is_compared_with_nothing() -> None:
    """Three sources that what wakes flips; the second has no control, and the third's flips as well."""
    tests = [
        (prompt, ablated, ablated == "woken" or (prompt, ablated) == (3, "random"))
        for prompt, ablated in product((1, 2, 3), ("source", "woken", "random"))
        if (prompt, ablated) != (2, "random")
    ]
    with duckdb.connect() as con:
        con.execute(
            "create table prompts as select p as prompt_id, null::text as family, 'h' || p as prompt_hash from range(4) t(p)"
        )
        con.execute(
            "create table backup_tests (ablation_id int, prompt_id int, ablated text, n_woken int, "
            "method text, start int, source_sae_id text, source_feature_id int)"
        )
        con.execute("create table ablations (ablation_id int, p_refusal_token float)")
        con.execute("create table verdicts (ablation_id int, judge text, flipped bool)")
        for i, (prompt, ablated, flips) in enumerate(tests):
            con.execute("insert into backup_tests values (?, ?, ?, 2, null, null, 'sae', 5)", [i, prompt, ablated])
            con.execute("insert into ablations values (?, 0.5)", [i])
            con.execute("insert into verdicts values (?, 'hand', ?)", [i, flips])
        found = queries.run(con, "backups", judge="hand").project("n_tested, n_backed_up, n_compared, n_random, n_more, n_less")
        assert found.fetchall() == [(3, 3, 2, 1, 1, 0)]
