"""The statistics of waking: the exact p-value, false discoveries where nothing is true, and power where something is."""

from collections.abc import Iterator

import duckdb
import numpy as np
import pytest
from scipy.stats import binom, false_discovery_control

from saelake import queries
from saelake.analysis.interactions.edges import edges, p_value

ALPHA = 0.05
SEEDS = 100


def test_the_p_value_is_the_exact_tail() -> None:
    chances = (0.2, 0.5, 1.0, 1 / 6)
    tail = 0.0
    for outcome in np.ndindex(2, 2, 2, 2):
        if sum(outcome) >= 3:
            tail += float(np.prod([c if o else 1 - c for o, c in zip(outcome, chances, strict=True)]))
    assert p_value(3, chances) == pytest.approx(tail)
    assert p_value(7, (1 / 6,) * 40) == pytest.approx(binom.sf(6, 40, 1 / 6))
    assert p_value(0, chances) == p_value(0, ()) == 1


def simulated(seed: int, *, planted: bool) -> Iterator[duckdb.DuckDBPyConnection]:
    """Three sources on 40 prompts, five controls each, 60 features; some wake easily, and some passes wake everything."""
    rng = np.random.default_rng(seed)
    n_sources, n_prompts, n_passes, n_features = 3, 40, 6, 60
    ease = rng.beta(0.4, 1.5, size=(n_sources, n_prompts, 1, n_features))
    shock = rng.random((n_sources, n_prompts, n_passes, 1)) < 0.1
    woken = (rng.random((n_sources, n_prompts, n_passes, n_features)) < ease) | shock & (ease > 0.3)
    if planted:
        woken[0, :, 0, :2] |= rng.random((n_prompts, 2)) < 0.9
    numbers = np.arange(n_sources * n_prompts * n_passes).reshape(n_sources, n_prompts, n_passes)
    with duckdb.connect(config={"threads": 1}) as con:
        source, prompt, control = (axis.ravel() for axis in np.indices(numbers.shape))
        named = {"ablation_id": numbers.ravel(), "prompt_id": prompt, "source": source, "number": control}
        ablation_id, feature_id = numbers[np.nonzero(woken)[:3]], np.nonzero(woken)[3]
        fired = {"ablation_id": ablation_id, "feature_id": feature_id}
        con.register("named", {name: np.ascontiguousarray(v) for name, v in named.items()})
        con.register("fired", fired)
        con.execute(
            "create table waking_passes as select ablation_id, prompt_id, null::varchar as method, null::integer as start, "
            "'sae' as source_sae_id, 0::smallint as source_layer, source::integer as source_feature_id, "
            "if(number = 0, null, number - 1)::integer as control from named"
        )
        con.execute(
            "create table wakings as select ablation_id, 'sae' as sae_id, 1::smallint as layer, feature_id, "
            "1 as n_tokens, 0 as n_first, 0 as n_template, 1 as n_user, 1::float as max_activation from fired"
        )
        yield con


def n_discoveries(con: duckdb.DuckDBPyConnection) -> int:
    return int((edges(con)["q_value"].to_numpy() <= ALPHA).sum())


def test_false_discoveries_stay_at_the_nominal_rate() -> None:
    """Where the null is true, a discovery is a false one: among 100 seeds no more than chance allows at 5%."""
    found = [n_discoveries(con) for seed in range(SEEDS) for con in simulated(seed, planted=False)]
    assert sum(n > 0 for n in found) <= binom.ppf(0.999, SEEDS, ALPHA)


def test_single_sources_and_whole_sets_are_corrected_apart() -> None:
    for con in simulated(3, planted=True):
        con.execute(
            "update waking_passes set method = 'minimal', start = 0, source_sae_id = null, source_feature_id = null, "
            "source_layer = null where source_feature_id = 0"
        )
        table = edges(con)
        p, q = (table[name].to_numpy() for name in ("p_value", "q_value"))
        is_one = np.array([one is not None for one in table["source_feature_id"].to_pylist()])
        assert 0 < is_one.sum() < len(is_one)
        for family in (is_one, ~is_one):
            np.testing.assert_allclose(q[family], false_discovery_control(p[family], method="bh"))
        chances = [one["chances"] for one in queries.run(con, "waking_counts").to_arrow_table().select(["chances"]).to_pylist()]
        np.testing.assert_allclose(table["expected"].to_numpy(), [sum(one) for one in chances], rtol=1e-6)


def test_the_test_has_power_where_features_wake_easily_anyway() -> None:
    for seed in range(5):
        for con in simulated(seed, planted=True):
            table = edges(con)
            found = [
                (source, feature)
                for source, feature, q in zip(
                    *(table[n].to_pylist() for n in ("source_feature_id", "feature_id", "q_value")), strict=True
                )
                if q <= ALPHA
            ]
            assert {(0, 0), (0, 1)} <= set(found)
            p_values = table["p_value"].to_numpy()
            assert 0.25 < np.mean(p_values < 0.5) < 0.75, "the p-values are not conservative to the point of uselessness"
