"""Which harms a feature fires on, and whether more than on others (R18).

A feature that fires everywhere fires on every category: counting says nothing of it. The test asks, of the prompts on which it
fires, whether more belong to a category than if they had been drawn whatever their category.
"""

from collections.abc import Iterator, Sequence

import duckdb
import numpy as np
import pyarrow as pa
from scipy.stats import false_discovery_control, hypergeom

from saelake import queries
from saelake.analysis.stage import Stage, Work, single_shard
from saelake.ingest.recipe import Recipe
from saelake.ingest.study import Study
from saelake.warehouse.errors import UserError
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import TAXONOMY


def enrichment(n_fired_fc: np.ndarray, n_prompts_c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(f, c) p-values of more firing prompts in category c than expected by chance, and their q-values.

    The p-value is the upper tail of the hypergeometric distribution: of all prompts, as many as fire are drawn. q-values are
    Benjamini-Hochberg's over all categories of the features that fire at all; of the others both are 1.

    Args:
        n_fired_fc: prompts of each category on which each feature fires.
        n_prompts_c: prompts of each category.
    """
    n_fired_f = n_fired_fc.sum(axis=1)
    p_fc = np.ones(n_fired_fc.shape)
    for category, n_prompts in enumerate(n_prompts_c):
        # few distinct pairs among many features: the distribution is worked out once for each
        pairs, where = np.unique(np.stack([n_fired_fc[:, category], n_fired_f]), axis=1, return_inverse=True)
        p_fc[:, category] = hypergeom.sf(pairs[0] - 1, n_prompts_c.sum(), pairs[1], n_prompts)[where.ravel()]
    p_fc = np.clip(p_fc, 0, 1)
    fires = n_fired_f > 0
    q_fc = np.ones(p_fc.shape)
    if fires.any():
        q_fc[fires] = false_discovery_control(p_fc[fires].ravel(), method="bh").reshape(-1, len(n_prompts_c))
    return p_fc, q_fc


def taxonomy(con: duckdb.DuckDBPyConnection, label: str, sets: Sequence[str]) -> pa.Table:
    """The table `taxonomy` of the study that a connection shows, layer by layer, so that one layer's firings fit in memory."""
    layers = [layer for (layer,) in con.execute("select distinct layer from saes order by layer").fetchall()]
    asked = {"label": label, "sets": ",".join(sets) or None}
    counts = pa.concat_tables(queries.run(con, "taxonomy_counts", **asked, layer=layer).to_arrow_table() for layer in layers)
    n_categories = len(counts["category"].unique())
    if not n_categories:
        return Rows.none(TAXONOMY).rows
    n_user_fc = counts["n_user"].to_numpy().reshape(-1, n_categories)
    p_fc, q_fc = enrichment(n_user_fc, counts["n_prompts"].to_numpy()[:n_categories])
    columns = {name: counts[name] for name in counts.column_names}
    return Rows.of(TAXONOMY, columns | {"p_value": p_fc.ravel(), "q_value": q_fc.ravel()}).rows


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    settings = work.context.recipe.taxonomy
    with work.sql() as con:
        rows = taxonomy(con, _label(work.context.recipe), settings.sets)
    for name in missing:
        yield name, [Rows("taxonomy", rows)]


def check(study: Study) -> None:
    """Raises UserError where sets that [taxonomy] names hold no prompt with a category."""
    label = _label(study.recipe)
    for name in study.recipe.taxonomy.sets:
        if not any(p.set == name and p.label == label and p.category is not None for p in study.prompts):
            raise UserError(f"taxonomy.sets names {name}, which has no {label} prompt with a category")


def _label(recipe: Recipe) -> str:
    """Whose categories features are mapped to."""
    return recipe.taxonomy.label or recipe.labels.target


STAGE = Stage(
    name="taxonomy",
    parents=("prompts", "activations"),
    sets=lambda recipe: recipe.taxonomy.sets,
    sections=("taxonomy",),
    tables=("taxonomy",),
    shards=single_shard,
    compute=_compute,
)
