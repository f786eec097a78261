"""What must hold for the rows of a lake beyond their types: what each column says, and keys that point to rows that are there."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from saelake.warehouse.records import run_tag
from saelake.warehouse.schema import TABLES, Table

SLACK = 1e-3
"""How far rounding may carry a float32 with two limits, a probability or a cosine, over them."""
OWNERS = {"prompt_id": "prompts", "set_id": "feature_sets", "ablation_id": "ablations"}
"""The table that numbers an id; wherever else the id stands, it must be one of that table's."""
REFERENCE_COLUMNS = {
    "prompts": ["prompt_id", "n_tokens"],
    "saes": ["sae_id", "layer", "width"],
    "feature_sets": ["set_id"],
    "ablations": ["ablation_id"],
}
"""Tables whose rows others point to, and the columns that are read for it; the first one is pointed to."""


@dataclass(frozen=True)
class References:
    """What the rows of a run may point to: ids and SAEs of the run and of all that it is computed from."""

    ids: Mapping[str, np.ndarray] = field(default_factory=dict)
    """id column -> sorted ids; absent if no such table is there to point to"""
    n_tokens: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    """length of each prompt, in the order of ids["prompt_id"]"""
    saes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """sae_id -> (layer, width)"""

    def joined(self, other: "References") -> "References":
        """What may be pointed to in either."""
        ids = {name: _merged(self.ids.get(name), other.ids.get(name)) for name in {*self.ids, *other.ids}}
        prompts = [r.ids["prompt_id"] for r in (self, other) if "prompt_id" in r.ids]
        order = np.unique(np.concatenate(prompts), return_index=True)[1] if prompts else np.empty(0, dtype=np.int64)
        return References(ids, np.concatenate([self.n_tokens, other.n_tokens])[order], {**self.saes, **other.saes})


def _merged(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray:
    return np.unique(np.concatenate([ids for ids in (one, other) if ids is not None]))


def referred(table: str, batches: Iterable[pa.RecordBatch]) -> References:
    """What rows of `prompts`, `saes`, `feature_sets` or `ablations` let others point to."""
    rows = pa.Table.from_batches(batches, TABLES[table].schema.empty_table().select(REFERENCE_COLUMNS[table]).schema)
    if table == "saes":
        columns = (rows[name].to_pylist() for name in ("sae_id", "layer", "width"))
        return References(saes={sae_id: (layer, width) for sae_id, layer, width in zip(*columns, strict=True)})
    name = REFERENCE_COLUMNS[table][0]
    ids, first = np.unique(rows[name].to_numpy(), return_index=True)
    return References({name: ids}, rows["n_tokens"].to_numpy()[first]) if table == "prompts" else References({name: ids})


def broken_rules(table: Table, rows: pa.RecordBatch, run_id: str, known: References) -> Iterator[tuple[str, int]]:
    """What is wrong with published rows, each with the number of rows that it is wrong with."""
    for column in (c for c in table.columns if c.name in rows.schema.names):
        for what, is_wrong in _column_rules(table, column.name, rows[column.name], run_id):
            yield f"{column.name} {what}", _count(is_wrong)
        if column.identity in known.ids and OWNERS[column.identity] != table.name:
            ids = rows[column.name].drop_null().to_numpy()
            what = f"{column.name} is not in {OWNERS[column.identity]} of this run or of one that it is computed from"
            yield what, int((_places(known.ids[column.identity], ids) < 0).sum())
    if {"prompt_id", "pos"} <= set(rows.schema.names) and "prompt_id" in known.ids and len(known.ids["prompt_id"]):
        places = _places(known.ids["prompt_id"], rows["prompt_id"].to_numpy())
        yield "pos is past the prompt's end", int((rows["pos"].to_numpy() >= known.n_tokens[places])[places >= 0].sum())
    if {"sae_id", "feature_id"} <= set(rows.schema.names) and known.saes:
        yield from _sae_rules(rows, known.saes)


def _column_rules(table: Table, name: str, values: pa.Array, run_id: str) -> Iterator[tuple[str, pa.Array]]:
    if name == "run_id":
        yield f"is not {run_id}", pc.not_equal(values, run_id)
    if pa.types.is_list(values.type):
        values = values.flatten()
    if pa.types.is_floating(values.type):
        yield "is not a finite number", pc.invert(pc.is_finite(values))
    column = table.column(name)
    slack = SLACK if values.type == pa.float32() and None not in (column.at_least, column.at_most) else 0
    if column.at_least is not None:
        yield f"is below {column.at_least:g}", pc.less(values, column.at_least - slack)
    if column.at_most is not None:
        yield f"is above {column.at_most:g}", pc.greater(values, column.at_most + slack)
    if column.choices:
        yield f"is neither {' nor '.join(column.choices)}", pc.invert(pc.is_in(values, pa.array(column.choices)))
    if OWNERS.get(name) == table.name:
        yield "does not carry the run's tag", pa.array(values.to_numpy() >> 32 != run_tag(run_id))


def _count(is_wrong: pa.Array) -> int:
    return int(pc.sum(is_wrong).as_py() or 0)


def _places(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Where each id stands in the sorted `known`; -1 if it does not."""
    if not len(known):
        return np.full(len(ids), -1)
    places = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[places] == ids, places, -1)


def _sae_rules(rows: pa.RecordBatch, saes: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, int]]:
    encoded = rows["sae_id"].dictionary_encode()
    found = [saes.get(sae_id) for sae_id in encoded.dictionary.to_pylist()]
    layer, width = (np.array([-1 if sae is None else sae[i] for sae in found], dtype=np.int64) for i in (0, 1))
    which = encoded.indices.to_numpy()
    is_known = width[which] >= 0
    yield "sae_id is not in saes of this run or of one that it is computed from", int((~is_known).sum())
    yield "feature_id is past the SAE's width", int((is_known & (rows["feature_id"].to_numpy() >= width[which])).sum())
    yield "layer is not the SAE's", int((is_known & (rows["layer"].to_numpy() != layer[which])).sum())
