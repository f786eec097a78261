"""What a study's tables say against reading them as they stand."""

import duckdb
import pytest

from saelake import queries
from saelake.analysis.notices import target_notice

WORDS = {"shown": "refused"}
Said = tuple[str, str, float, bool]
"""label, first token, probability of a target token, refused"""


def lake(said: list[Said]) -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    con.execute("create table prompts (prompt_id int, label varchar, label_role varchar)")
    con.execute(
        "create table ablations (ablation_id int, prompt_id int, condition varchar, first_token varchar, p_refusal_token float)"
    )
    con.execute("create table verdicts (ablation_id bigint, judge varchar, refused boolean)")
    con.execute(
        'create table runs as select \'baseline\' as stage, \'{"verdicts": {"name": "phrases"}}\'::json as config, 1 as finished'
    )
    for n, (label, token, p, refused) in enumerate(said):
        con.execute("insert into prompts values (?, ?, ?)", [n, label, "target" if label == "harmful" else "control"])
        con.execute("insert into ablations values (?, ?, 'none', ?, ?), (?, ?, 'random', 'Oh', 0)", [n, n, token, p, n + 100, n])
        con.execute("insert into verdicts values (?, 'phrases', ?), (?, 'phrases', true)", [n, refused, n + 100])
    return con


SORRY: list[Said] = [("harmful", "Sorry", 0.001, True), ("harmful", "Sorry", 0.003, True), ("harmful", "I", 0.9, True)]
ANSWERED: list[Said] = [("harmful", "Sure", 0.01, False), ("benign", "Sure", 0.0, False)]


def test_first_tokens_at_baseline_with_the_probability_of_a_target_token() -> None:
    rows = queries.run(lake(SORRY + ANSWERED), "first_tokens", judge="phrases").fetchall()
    assert [row[:4] for row in rows] == [
        ("benign", "Sure", 1, 0),
        ("harmful", "Sorry", 2, 2),
        ("harmful", "I", 1, 1),
        ("harmful", "Sure", 1, 0),
    ]
    assert [row[4] for row in rows] == pytest.approx([0, 0.002, 0.9, 0.01])
    assert rows[1][5] == pytest.approx(0.002)
    assert rows[3][5] is None, "none of them is refused"


def test_refusals_that_begin_with_no_target_token_are_noticed() -> None:
    told = target_notice(lake(SORRY + ANSWERED), WORDS)
    assert told is not None
    assert told.startswith(
        '2 of 3 prompts that are refused at baseline by phrases begin with no target token, but with "Sorry" (2): '
    )
    assert "model.target_tokens" in told
    assert target_notice(lake([*SORRY[2:], *ANSWERED]), WORDS) is None, "all is well"
    assert target_notice(lake([]), WORDS) is None


def test_what_a_model_says_is_escaped() -> None:
    told = target_notice(lake([("harmful", "\x1b[2J\n", 0.0, True)]), WORDS)
    assert told is not None
    assert r'"\x1b[2J\n" (1)' in told
