"""SAEDashboard's dashboards of features: batch-N.json, as its runner writes them, and the same as a columnar Parquet bundle.

One folder per SAE. Each batch-N.json is a NeuronpediaDashboardBatch. columnar/ holds a manifest, and for each batch a folder
feature_batch_N with its own, which names six tables with one row per feature, or per text of one. Features that fire on nothing
have no dashboard, there as here. What a lake does not know of them, such as their correlations with neurons, is left empty.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saelake import queries
from saelake.analysis.meaning.explanations import KnownSae
from saelake.formats.feature_facts import NOTHING, Moved, densities, moved_logits
from saelake.formats.joined import as_name, saes_of
from saelake.formats.models import model_of
from saelake.formats.registry import Asked, Format
from saelake.formats.sources import source_of
from saelake.formats.top_texts import Top, Tops, restricted_sets

if TYPE_CHECKING:
    from saelake.lake import OpenLake

BATCH_FEATURES = 256
N_BINS = 50
"""Of a histogram of activations, as SAEDashboard has it."""
SOURCE = re.compile(r"(\d+)-(.+)")
TOP = -1.0
"""What stands for the least activation, and the share, of the group of the strongest texts."""
COUNTS = 'select count(*), coalesce(max(n_tokens), 0) from prompts where n_tokens > 0 and not list_contains($restricted, "set")'
UNKNOWN = tuple(
    f"{what}_{how}"
    for what, kinds in (
        ("neuron_alignment", ("indices", "values", "l1")),
        ("correlated_neurons", ("indices", "l1", "pearson")),
        ("correlated_features", ("indices", "l1", "pearson")),
    )
    for how in kinds
)
"""What a lake does not hold."""


def _write(opened: "OpenLake", folder: Path, asked: Asked) -> Mapping[str, int]:
    model, written, tops = model_of(opened), dict[str, int](), Tops(opened)
    counts = opened.sql(COUNTS, {"restricted": restricted_sets(opened)}).fetchall()[0]
    about = {"n_prompts_total": counts[0], "n_tokens_in_prompt": counts[1], "dataset": opened.studies[0]}
    for sae in saes_of(opened, asked.sae):
        rows = list(_features(opened, tops, sae, about))
        if not rows:
            continue
        name, (model_id, source) = as_name(sae.sae_id), source_of(sae, model)
        said = SOURCE.fullmatch(source)
        whose = {"model_id": model_id, "layer": sae.layer, "sae_set": said[2] if said else source, "sae_id_suffix": None}
        manifest = []
        for number, first in enumerate(range(0, len(rows), BATCH_FEATURES)):
            some = rows[first : first + BATCH_FEATURES]
            place = folder / name / f"batch-{number}.json"
            place.parent.mkdir(exist_ok=True)
            dashboards = [{k: v for k, v in row.items() if k != "logit_ids"} for row in some]
            place.write_text(json.dumps(whose | {"features": dashboards}, ensure_ascii=False) + "\n", encoding="utf-8")
            written[f"{name}/{place.name}"] = len(some)
            part = f"feature_batch_{number}"
            counted = _write_tables(folder / name / "columnar" / part, some)
            manifest.append({"artifact_dir": part, "row_counts": counted})
            written[f"{name}/columnar/{part}"] = sum(counted.values())
        (folder / name / "columnar" / "manifest.json").write_text(json.dumps({"batches": manifest}, indent=1) + "\n")
    return written


def _features(opened: "OpenLake", tops: Tops, sae: KnownSae, about: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The dashboards of the features that fire, in the order of their numbers."""
    values = dict(opened.sql(queries.step("fired_values"), {"layer": sae.layer, "sae_id": sae.sae_id}).fetchall())
    density = {feature_id: share for feature_id, share, *_ in densities(opened, sae)}
    logits = moved_logits(opened, sae)
    for feature_id, some in groupby(tops.of(sae), key=lambda top: top.feature_id):
        promoted, suppressed = (logits.get((feature_id, side), NOTHING) for side in ("promoted", "suppressed"))
        heights, edges = np.histogram(np.array(values[feature_id], dtype=np.float64), N_BINS)
        yield {
            "feature_index": feature_id,
            **{name: [] for name in UNKNOWN},
            "neg_str": suppressed.tokens,
            "neg_values": suppressed.logits,
            "pos_str": promoted.tokens,
            "pos_values": promoted.logits,
            "frac_nonzero": density.get(feature_id) or 0.0,
            "freq_hist_data_bar_values": ((edges[:-1] + edges[1:]) / 2).tolist(),
            "freq_hist_data_bar_heights": heights.tolist(),
            "logits_hist_data_bar_heights": [],
            "logits_hist_data_bar_values": [],
            **about,
            "decoder_weights_dist": [],
            "activations": _texts(list(some)),
            "vector": [],
            "logit_ids": (promoted, suppressed),
        }


def _texts(tops: Sequence[Top]) -> list[dict[str, Any]]:
    largest = max(top.activation for top in tops)
    return [
        {
            "bin_min": TOP,
            "bin_max": largest,
            "bin_contains": TOP,
            "tokens": top.tokens,
            "values": top.values,
            "qualifying_token_index": top.pos,
        }
        for top in tops
    ]


def _write_tables(folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The tables of one batch, and its manifest."""
    folder.mkdir(parents=True)
    counts = {}
    tables = _tables(rows)
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
        counts[name] = table.num_rows
    manifest = {"row_counts": counts, "tables": {name: f"{name}.parquet" for name in tables}}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return counts


NUMBERS, IDS = pa.list_(pa.float32()), pa.list_(pa.int32())


def _tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.Table]:
    index = pa.array([row["feature_index"] for row in rows], pa.int64())

    def table(**columns: tuple[list[Any], pa.DataType]) -> pa.Table:
        return pa.table({"feature_index": index, **{name: pa.array(values, kind) for name, (values, kind) in columns.items()}})

    def of(name: str) -> list[Any]:
        return [row[name] for row in rows]

    moved: list[tuple[Moved, Moved]] = of("logit_ids")
    largest, density = [row["activations"][0]["bin_max"] for row in rows], of("frac_nonzero")
    kinds = {name: (of(name), IDS if name.endswith("indices") else NUMBERS) for name in UNKNOWN}
    return {
        "feature_statistics": table(
            max=(largest, pa.float32()), frac_nonzero=(density, pa.float64()), positive_density=(density, pa.float64())
        ),
        "feature_tables": table(**{name.replace("_l1", "_cossim") if "corr" in name else name: k for name, k in kinds.items()}),
        "activation_histograms": table(
            bar_heights=(of("freq_hist_data_bar_heights"), NUMBERS), bar_values=(of("freq_hist_data_bar_values"), NUMBERS)
        ),
        "logits_histograms": table(
            bar_heights=(of("logits_hist_data_bar_heights"), NUMBERS), bar_values=(of("logits_hist_data_bar_values"), NUMBERS)
        ),
        "logits_tables": table(
            top_token_ids=([promoted.token_ids for promoted, _ in moved], IDS),
            top_logits=([promoted.logits if promoted.token_ids else [] for promoted, _ in moved], NUMBERS),
            bottom_token_ids=([suppressed.token_ids for _, suppressed in moved], IDS),
            bottom_logits=([suppressed.logits if suppressed.token_ids else [] for _, suppressed in moved], NUMBERS),
        ),
        "activation_rows": _activation_rows(rows),
    }


def _activation_rows(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    texts = [(row["feature_index"], number, text) for row in rows for number, text in enumerate(row["activations"])]
    values = [text["values"] for *_, text in texts]
    columns = {
        "feature_index": pa.array([index for index, *_ in texts], pa.int64()),
        "sequence_index": pa.array([number for _, number, _ in texts], pa.int64()),
        "tokens": pa.array([text["tokens"] for *_, text in texts], pa.list_(pa.string())),
        "values": pa.array(values, pa.list_(pa.float64())),
        "max_value": pa.array([max(some) for some in values], pa.float64()),
        "max_value_token_index": pa.array([int(np.argmax(some)) for some in values], pa.int64()),
        "min_value": pa.array([min(some) for some in values], pa.float64()),
        **{name: pa.array([text[name] for *_, text in texts], pa.float64()) for name in ("bin_min", "bin_max", "bin_contains")},
        "qualifying_token_index": pa.array([text["qualifying_token_index"] for *_, text in texts], pa.int64()),
    }
    return pa.table(columns)


FORMAT = Format(
    what="SAEDashboard's dashboards: batch-N.json and the columnar Parquet bundle",
    write=_write,
    writes=frozenset({"sae"}),
)
