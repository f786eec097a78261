"""R18: which categories features fire on, literally and specifically."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import fisher_exact
from statsmodels.stats.multitest import multipletests

from saelake import queries
from saelake.analysis.meaning.taxonomy import check, enrichment, taxonomy
from saelake.ingest.job import ingest
from saelake.ingest.recipe import load_recipe
from saelake.ingest.study import open_study
from saelake.warehouse.catalog import connect
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from tests.meaning import build_meaning_lake
from tests.planted import write_planted


def test_the_planted_category_features_are_found_exactly(tmp_path: Path) -> None:
    """The planted SAEs have one feature a category in every layer; template, noise and refusal features fire on all."""
    planted = write_planted(tmp_path)
    recipe = load_recipe(planted.recipe)
    lake = Lake.create(tmp_path / "lake")
    ingest(recipe, lake)
    with connect(lake) as con:
        found = taxonomy(con, recipe.labels.target, recipe.taxonomy.sets).to_pylist()
    specific = {(row["layer"], row["feature_id"], row["category"]) for row in found if row["q_value"] <= 0.05}
    assert specific == {(layer, feature, category) for category, feature in planted.categories.items() for layer in range(6)}
    literal = {row["feature_id"] for row in found if row["n_literal"] == row["n_prompts"]}
    assert set(planted.categories.values()) | {planted.primary} <= literal
    everywhere = [row for row in found if row["feature_id"] == planted.primary]
    assert all(row["n_literal"] == 8 and row["q_value"] > 0.05 for row in everywhere)


def test_synthetic_labels_are_found_at_the_false_discovery_rate() -> None:
    """Of 2,000 features 60 fire three times as often on one category; the rest fires whatever the category."""
    random = np.random.default_rng(0)
    n_prompts_c = np.array([500, 520, 480, 300, 786])  # 2,586 in all, as Coconot has
    n_false, n_found = 0, 0
    for _ in range(5):
        rate_fc = np.repeat(random.uniform(0.02, 0.3, 2000)[:, None], 5, axis=1)
        planted = np.zeros(rate_fc.shape, dtype=bool)
        planted[np.arange(60), random.integers(0, 5, 60)] = True
        rate_fc[planted] *= 3
        _, q_fc = enrichment(random.binomial(n_prompts_c, np.minimum(rate_fc, 1)), n_prompts_c)
        found = q_fc <= 0.05
        assert found[planted].mean() > 0.95
        n_found += found.sum()
        n_false += (found & ~planted).sum()
    assert n_false / n_found < 0.07


def test_p_and_q_equal_fishers_and_benjamini_hochbergs() -> None:
    random = np.random.default_rng(1)
    n_prompts_c = np.array([7, 12, 30])
    n_fired_fc = random.binomial(n_prompts_c, random.random((40, 1)))
    n_fired_fc[3] = 0
    p_fc, q_fc = enrichment(n_fired_fc, n_prompts_c)
    for f, c in np.ndindex(p_fc.shape):
        fired, others = n_fired_fc[f, c], n_fired_fc[f].sum() - n_fired_fc[f, c]
        table = [[fired, n_prompts_c[c] - fired], [others, n_prompts_c.sum() - n_prompts_c[c] - others]]
        assert p_fc[f, c] == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
    fires = n_fired_fc.sum(axis=1) > 0
    assert q_fc[fires].ravel() == pytest.approx(multipletests(p_fc[fires].ravel(), method="fdr_bh")[1])
    assert (q_fc[~fires] == 1).all()


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return build_meaning_lake(tmp_path_factory.mktemp("taxonomy") / "lake")


def test_counts_by_hand(lake: Lake) -> None:
    """Prompts 0 and 1 are about bombs, 2 about fraud; 3 has no category, 4 and 5 are benign (tests/lakes.py)."""
    with connect(lake) as con:
        rows = con.sql(
            "select layer, feature_id, category, n_prompts, n_literal, n_user, n_category_tokens, n_user_tokens from taxonomy"
        )
        found = {row[:3]: row[3:] for row in rows.fetchall()}
        p_values = dict(con.sql("select (layer, feature_id), p_value from taxonomy where category = 'bombs'").fetchall())
    assert found == {
        (0, 0, "bombs"): (2, 2, 0, 4, 0), (0, 0, "fraud"): (1, 1, 0, 2, 0),
        (0, 1, "bombs"): (2, 2, 2, 4, 3), (0, 1, "fraud"): (1, 0, 0, 2, 0),
        (0, 2, "bombs"): (2, 1, 1, 4, 1), (0, 2, "fraud"): (1, 0, 0, 2, 0),
        (1, 0, "bombs"): (2, 2, 1, 4, 1), (1, 0, "fraud"): (1, 1, 1, 2, 1),
        (1, 3, "bombs"): (2, 1, 0, 4, 0), (1, 3, "fraud"): (1, 1, 1, 2, 1),
    }  # fmt: skip
    assert p_values[0, 1] == pytest.approx(1 / 3), "both of the two firing prompts are among the two about bombs: 1 of 3 draws"
    assert p_values[0, 0] == 1


def test_categories_and_combinations_by_hand(lake: Lake) -> None:
    with connect(lake) as con:

        def ask(**values: object) -> set[tuple[object, ...]]:
            return set(
                queries.run(con, "taxonomy_combinations", **values).project("counted, categories, n_features, share").fetchall()
            )

        assert ask() == {
            ("category", "bombs", 5, 1.0), ("category", "fraud", 3, 0.6),
            ("combination", "bombs", 2, 0.4), ("combination", "bombs + fraud", 3, 0.6),
        }  # fmt: skip
        assert ask(mapping="user") == {
            ("category", "bombs", 3, 0.6), ("category", "fraud", 2, 0.4), ("combination", "none", 1, 0.2),
            ("combination", "bombs", 2, 0.4), ("combination", "fraud", 1, 0.2), ("combination", "bombs + fraud", 1, 0.2),
        }  # fmt: skip
        assert ask(mapping="specific") == {("combination", "none", 5, 1.0)}
        assert ask(population="critical") == {("category", "bombs", 1, 1.0), ("combination", "bombs", 1, 1.0)}
        rows = queries.run(con, "taxonomy", population="stage3").project(
            "category, literal_rate, user_rate, token_rate, n_categories"
        )
        assert rows.fetchall() == [("bombs", 1.0, 0.5, 0.25, 2), ("fraud", 1.0, 1.0, 0.5, 2)]


def test_sets_without_categories_are_refused_before_any_compute(tmp_path: Path) -> None:
    planted = write_planted(tmp_path)
    text = planted.recipe.read_text()
    planted.recipe.write_text(text + '\n[taxonomy]\nsets = ["coconot"]\n')
    with pytest.raises(UserError, match=r"taxonomy.sets names 'coconot', but the sets"):
        load_recipe(planted.recipe)
    planted.recipe.write_text(text.replace('category = { column = "category" }\n', "") + '\n[taxonomy]\nsets = ["planted"]\n')
    with pytest.raises(UserError, match=r"planted, which has no harmful prompt with a category"):
        check(open_study(load_recipe(planted.recipe)))
