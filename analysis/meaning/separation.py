"""How well each feature tells the prompts of two labels apart: the area under its ROC curve, with a test.

A prompt's score is the feature's largest activation on it, BOS left out, and 0 where it is silent. Most features are silent on
most prompts, so the silent ones are counted as one block of ties and only the firing ones are ranked.
"""

from collections.abc import Iterator, Sequence

import duckdb
import numpy as np
import pyarrow as pa
from scipy.stats import false_discovery_control, norm

from saelake import queries
from saelake.analysis.stage import Stage, Work, single_shard
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import SEPARATIONS

RESOLUTION = 1e-5
"""Activations nearer than this share of their size are ties: which of two equals rounding makes larger depends on the batch."""


def separation(
    feature: np.ndarray, is_target: np.ndarray, peak: np.ndarray, n_target: int, n_control: int
) -> dict[str, np.ndarray]:
    """AUROC and the two-sided Mann-Whitney test of every feature that fires, in the order of their ids.

    The p-value is the normal approximation with the correction for ties and for continuity, as scipy's
    `mannwhitneyu(..., method="asymptotic")`; where all scores are equal it is 1.

    Args:
        feature: (n,) int, the feature of each prompt on which one fires, in ascending order.
        is_target: (n,) bool, whether that prompt has the target label.
        peak: (n,) float above 0, ascending within a feature.
        n_target: prompts of the target label, silent ones too; n_control likewise.
    """
    ids, first, n_fired = np.unique(feature, return_index=True, return_counts=True)
    which = np.repeat(np.arange(len(ids)), n_fired)
    n_fired_target = np.bincount(which, weights=is_target, minlength=len(ids)).astype(np.int64)
    n = n_target + n_control
    n_silent = n - n_fired

    # Runs of peaks that are equal, up to rounding, within a feature share the mean of their ranks.
    differs = (feature[1:] != feature[:-1]) | (peak[1:] - peak[:-1] > RESOLUTION * peak[1:])
    starts = np.flatnonzero(np.r_[True, differs])[: len(feature)]
    n_tied = np.diff(np.r_[starts, len(feature)])
    place = np.arange(len(feature)) - first[which]
    mid_rank = n_silent[which] + 1 + np.repeat(place[starts] + (n_tied - 1) / 2, n_tied)
    fired_ranks = np.bincount(which, weights=mid_rank * is_target, minlength=len(ids))
    silent_ranks = (n_target - n_fired_target) * (n_silent + 1) / 2

    u = fired_ranks + silent_ranks - n_target * (n_target + 1) / 2
    fired_ties = np.bincount(which[starts], weights=n_tied.astype(float) ** 3 - n_tied, minlength=len(ids))
    ties = fired_ties + n_silent.astype(float) ** 3 - n_silent
    sd = np.sqrt(n_target * n_control / 12 * np.maximum(n + 1 - ties / (n * (n - 1)), 0))
    off = np.abs(u - n_target * n_control / 2) - 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(sd > 0, 2 * norm.sf(off / sd), 1.0)
    return {
        "feature_id": ids,
        "auroc": u / (n_target * n_control),
        "p_value": np.clip(p, 0, 1),
        "n_fired_target": n_fired_target,
        "n_fired_control": n_fired - n_fired_target,
    }


def separations(con: duckdb.DuckDBPyConnection) -> pa.Table:
    """The table `separations` of the study that a connection shows, SAE by SAE, so that one SAE's firings fit in memory.

    It has no row without target or control prompts. q-values are Benjamini and Hochberg's over all features of all SAEs.
    """
    n = dict(con.execute("select label_role, count(*) from prompts group by label_role").fetchall())
    n_target, n_control = n.get("target", 0), n.get("control", 0)
    empty = Rows.none(SEPARATIONS).rows
    if not n_target or not n_control:
        return empty
    parts = []
    for sae_id, layer in con.execute("select sae_id, layer from saes order by layer, sae_id").fetchall():
        peaks = queries.run(con, "label_peaks", sae_id=sae_id).to_arrow_table()
        feature, is_target, peak = (peaks[name].to_numpy() for name in ("feature_id", "is_target", "peak"))
        found = separation(feature, is_target, peak, n_target, n_control)
        n_found = len(found["feature_id"])
        counts = {"n_target": np.full(n_found, n_target), "n_control": np.full(n_found, n_control)}
        parts.append(pa.table({"sae_id": [sae_id] * n_found, "layer": np.full(n_found, layer)} | found | counts))
    rows = pa.concat_tables(parts)
    if not len(rows):
        return empty
    q = false_discovery_control(rows["p_value"].to_numpy(), method="bh")
    return Rows.of(SEPARATIONS, {name: rows[name] for name in rows.column_names} | {"q_value": q}).rows


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    with work.sql() as con:
        rows = separations(con)
    for name in missing:
        yield name, [Rows("separations", rows)]


STAGE = Stage(
    name="separation",
    parents=("prompts", "activations"),
    sections=(),
    tables=("separations",),
    shards=single_shard,
    compute=_compute,
)
