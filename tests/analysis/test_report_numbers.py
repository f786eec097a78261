"""The report's numbers of the embedded study, against the tables."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.proportion import proportion_confint

import saelake
from tests.analysis.reported import Rows, answers


@pytest.fixture(scope="module")
def lake(organism_lake: Path) -> Iterator[saelake.OpenLake]:
    with saelake.open(organism_lake) as opened:
        yield opened


def one(rows: Rows, **values: Any) -> dict[str, Any]:
    (found,) = [row for row in rows if all(row[name] == value for name, value in values.items())]
    return found


def flips(lake: saelake.OpenLake, condition: str, k: int | None) -> np.ndarray:
    """The share of answers that flip, of each harmful prompt that is refused at baseline, straight from the tables."""
    found = lake.connection.execute(
        """
        select avg(v.flipped::int) from ablations as a join verdicts as v using (ablation_id) join prompts as p using (prompt_id)
        where v.judge = 'first_token' and p.label = 'harmful' and a.condition = $1 and a.k is not distinct from $2
        and prompt_id in (
            select b.prompt_id from ablations as b join verdicts as w using (ablation_id)
            where b.condition = 'none' and w.judge = 'first_token' and w.refused
        )
        group by prompt_id
        """,
        [condition, k],
    )
    return np.array([value for (value,) in found.fetchall()])


def test_rates_and_their_intervals(html: str, lake: saelake.OpenLake) -> None:
    rates = answers(html, "rates")[0]
    for condition, k in [("top_k_own", 1), ("top_k_chosen", 3), ("random", 20)]:
        mine = flips(lake, condition, k)
        low, high = proportion_confint(mine.sum(), len(mine), method="wilson")
        row = one(rates, condition=condition, k=k)
        assert row["n_prompts"] == len(mine)
        assert [row["rate"], row["low"], row["high"]] == pytest.approx([mine.mean(), low, high], abs=1e-9)


def test_means_of_the_diagnostic_and_their_intervals(html: str, lake: saelake.OpenLake) -> None:
    chosen = answers(html, "direction_by_layer")[0]
    for layer, label in [(0, "benign"), (3, "harmful"), (5, "benign")]:
        found = lake.sql(
            f"select cosine from layer_cosines join prompts using (prompt_id) "
            f"where direction = 'chosen' and layer = {layer} and label = '{label}'"
        ).fetchnumpy()["cosine"]
        low, high = scipy.stats.t.interval(0.95, len(found) - 1, found.mean(), scipy.stats.sem(found))
        row = one(chosen, layer=layer, label=label)
        assert [row["mean"], row["low"], row["high"]] == pytest.approx([found.mean(), low, high], abs=1e-3)


def test_counts_of_critical_features(html: str, lake: saelake.OpenLake) -> None:
    minimal = one(answers(html, "search_methods")[0], condition="minimal")
    sets = lake.sql(
        "select set_id, prompt_id, list(distinct (sae_id, feature_id)) from ablations join feature_sets using (set_id) "
        "join prompts using (prompt_id) where condition = 'minimal' and label = 'harmful' group by all"
    ).fetchall()
    assert minimal["n_unique"] == len({member for *_, members in sets for member in members})
    assert minimal["largest"] == max(len(members) for *_, members in sets)
    assert minimal["n_searched"] == len({prompt_id for _, prompt_id, _ in sets})


def test_shares_of_woken_tokens_and_the_most_certain_edges(html: str, lake: saelake.OpenLake) -> None:
    role = one(answers(html, "waking_roles")[0], source="one", is_control=False)
    tokens, first, user = lake.sql(
        "select sum(n_tokens), sum(n_first), sum(n_user) from wakings join waking_passes using (ablation_id) "
        "where method is null and control is null"
    ).fetchall()[0]
    assert [role["tokens_first"], role["tokens_user"]] == pytest.approx([first / tokens, user / tokens])
    edges = answers(html, "waking_edges")[0]
    assert (
        len(edges)
        == lake.sql("select count(*) from waking_edges where q_value <= 0.05 and source_layer is not null").fetchall()[0][0]
    )


def test_accuracies_losses_and_seconds(html: str, lake: saelake.OpenLake) -> None:
    machine = one(answers(html, "fm_metrics")[0], model="fm_20")
    right = lake.sql("select avg(correct::int) from predictions where model = 'fm_20' and split = 'test'").fetchall()[0][0]
    assert machine["test_accuracy"] == pytest.approx(right)
    for condition in ("none", "direction", "minimal"):
        for texts, mean in lake.sql(
            f"select texts, avg(loss) from losses where condition = '{condition}' group by texts"
        ).fetchall():
            assert one(answers(html, "losses")[0], texts=texts, condition=condition)["loss"] == pytest.approx(mean, rel=1e-6)
    for stage in ("prompts", "candidates", "fm"):
        seconds = lake.sql(f"select epoch(finished - started) from runs where stage = '{stage}'").fetchall()[0][0]
        assert one(answers(html, "runs")[0], stage=stage)["seconds"] == pytest.approx(seconds, abs=2e-3)


def test_tables_on_the_page_hold_the_data(html: str) -> None:
    shown = re.sub(r"<script.*", "", html, flags=re.DOTALL)
    rows = answers(html, "causal_link")[0][:3]
    assert len(rows) == 3
    for row in rows:
        assert re.search(rf">{row['k']}</td>\s*<td[^>]*>{row['n_active']}</td>\s*<td[^>]*>{row['n_alone']}</td>", shown)
