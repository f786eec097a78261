"""Over how many tokens and prompts features are counted, where several runs and versions have read an SAE: alike everywhere."""

from collections.abc import Iterator
from math import log10

import duckdb
import pytest

from saelake import queries

SCHEMA = """
create schema all_runs;
create table runs (run_id text);
create table prompts (run_id text, prompt_id int, label_role text);
create table tokens (run_id text, prompt_id int, pos int, role text);
create table all_runs.saes (
    run_id text, sae_id text, n_tokens bigint, n_target_prompts bigint, n_control_prompts bigint
);
create view saes as
    select sae_id, 0 as layer, sae_id as name, 4 as width, 'hook' as hook, null::float as declared_l0
    from all_runs.saes where run_id <> 'dropped' group by sae_id;
create table features (
    sae_id text, layer int, feature_id int, n_tokens bigint, n_prompts int, n_target int, n_control int,
    mean_activation float, max_activation float
);
insert into features values ('a', 0, 1, 6, 3, 2, 1, 1.0, 1.0), ('b', 0, 1, 6, 3, 2, 1, 1.0, 1.0);
"""


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    """SAE a has been read by a run of version 1, one of now, and an imported one; b by the first two; dropped is not current.

    The run of version 1 holds its prompts and does not count; that of now counts and reads prompts of another run.
    """
    with duckdb.connect() as con:
        con.execute(SCHEMA)
        con.execute("insert into runs values ('old'), ('prompts'), ('activations'), ('imported')")
        for run, roles in {"old": "ttc", "prompts": "tcc", "imported": "oo"}.items():
            for n, role in enumerate(roles):
                whole = {"t": "target", "c": "control", "o": "other"}[role]
                con.execute("insert into prompts values (?, ?, ?)", [run, n, whole])
                con.execute("insert into tokens select ?, ?, p, if(p = 0, 'bos', 'user') from range(5) as t(p)", [run, n])
        for sae in "ab":
            con.execute("insert into all_runs.saes values ('old', ?, null, null, null), ('activations', ?, 12, 1, 2)", [sae, sae])
        con.execute("insert into all_runs.saes values ('imported', 'a', 8, 0, 0), ('dropped', 'a', 99, 99, 99)")
        yield con


def test_counts_are_added_up_over_the_current_runs_of_each_sae(con: duckdb.DuckDBPyConnection) -> None:
    assert con.sql(queries.step("sae_tokens")).order("sae_id").fetchall() == [("a", 12 + 12 + 8), ("b", 12 + 12)]
    con.execute("delete from tokens where run_id = 'old'")
    assert con.sql(queries.step("sae_tokens")).project("n_tokens").fetchall() == [(None,)] * 2


def test_the_health_of_an_sae_needs_no_prompts(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("drop table prompts")
    assert len(queries.run(con, "sae_health").fetchall()) == 2


def test_every_share_of_tokens_is_of_those_that_the_sae_has_read(con: duckdb.DuckDBPyConnection) -> None:
    shares = {"a": 6 / 32, "b": 6 / 24}
    assert dict(queries.run(con, "features").project("sae_id, rate").fetchall()) == shares
    assert queries.run(con, "features").project("target, control").fetchall() == [(2 / 3, 1 / 3)] * 2
    assert dict(queries.run(con, "sae_health").project("sae_id, l0").fetchall()) == shares
    for sae, share in shares.items():
        assert con.sql(queries.step("feature_densities"), params={"sae_id": sae}).fetchall()[0][1] == share
        bins = queries.run(con, "densities", sae_id=sae, feature_id=1, bins=96).filter("is_here").project("low, high").fetchall()
        ((low, high),) = bins
        assert low <= log10(share) < high
