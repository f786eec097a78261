"""What must hold for the rows of a lake beyond their types: what each column says, and keys that point to rows that are there."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from saelake.warehouse.records import run_tag
from saelake.warehouse.schema import TABLES, Column, Table
from saelake.warehouse.schema.columns import RUN_ID

SLACK = 1e-3
"""How far rounding may carry a float32 with two limits, a probability or a cosine, over them."""


def _pointed() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for column in (c for table in TABLES.values() for c in table.columns):
        if column.table is not None:
            found.setdefault(column.table, [column.identity])
    for table in TABLES.values():
        names = {c.name: c for c in table.columns}
        for limit in (c.limit for c in table.columns if c.limit and c.limit.by in names):
            columns = found[str(names[limit.by].table)]
            columns += [limit.fact] if limit.fact not in columns else []
    return found


UNKNOWN, MISSING = -1, -2
POINTED = _pointed()
"""Tables whose rows others point to -> the id that is pointed to, and the other columns that are read for it."""


@dataclass(frozen=True)
class Known:
    """Rows of one table that others may point to."""

    ids: np.ndarray
    """Sorted, each once."""
    facts: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Other columns, in the same order."""

    def joined(self, other: "Known") -> "Known":
        """The rows of both."""
        ids, first = np.unique(np.concatenate([self.ids, other.ids]), return_index=True)
        return Known(ids, {name: np.concatenate([self.facts[name], other.facts[name]])[first] for name in self.facts})


References = Mapping[str, Known]
"""table -> what the rows of a run may point to there: rows of the run and of all that it is computed from; a table that is not
there is not known
"""


def joined(one: References, other: References) -> dict[str, Known]:
    """What may be pointed to in either."""
    found = dict(one)
    for table, known in other.items():
        found[table] = found[table].joined(known) if table in found else known
    return found


def referred(table: str, batches: Iterable[pa.RecordBatch]) -> References:
    """What rows of a table that is POINTED to let others point to."""
    name, *facts = POINTED[table]
    rows = pa.Table.from_batches(batches, TABLES[table].schema.empty_table().select(POINTED[table]).schema)
    ids, first = np.unique(_values(rows[name]), return_index=True)
    return {table: Known(ids, {fact: rows[fact].to_numpy()[first] for fact in facts})}


def _values(ids: pa.ChunkedArray) -> np.ndarray:
    return np.array(ids.to_pylist(), dtype=str) if pa.types.is_string(ids.type) else ids.to_numpy()


def broken_rules(table: Table, rows: pa.RecordBatch, run_id: str, known: References) -> Iterator[tuple[str, int]]:
    """What is wrong with published rows, each with the number of rows that it is wrong with."""
    columns = [c for c in table.columns if c.name in rows.schema.names]
    places: dict[str, np.ndarray] = {}
    for column in columns:
        for what, n in _column_rules(table, column, rows[column.name], run_id):
            yield f"{column.name} {what}", n
        if column.table is not None and column.table in known and column.table != table.name:
            places[column.name] = _places(known[column.table].ids, rows[column.name])
            what = f"{column.name} is not in {column.table} of this run or of one that it is computed from"
            yield what, int((places[column.name] == UNKNOWN).sum())
    for column in columns:
        if column.limit and column.limit.by in places:
            place = places[column.limit.by]
            fact = known[str(table.column(column.limit.by).table)].facts[column.limit.fact]
            value, is_here = rows[column.name].fill_null(0).to_numpy(zero_copy_only=False), place >= 0
            limits = fact[place[is_here]]
            is_wrong = value[is_here] != limits if column.limit.is_equal else value[is_here] >= limits
            yield f"{column.name} {column.limit.otherwise}", int(is_wrong.sum())


def broken_values(table: Table, column: Column, values: pa.Array) -> Iterator[tuple[str, int]]:
    """What is wrong with the values of a column by themselves, each with the number of rows that it is wrong with."""
    return _column_rules(table, column, values, "")


def _column_rules(table: Table, column: Column, values: pa.Array, run_id: str) -> Iterator[tuple[str, int]]:
    if not pa.types.is_list(values.type):
        for what, is_wrong in _value_rules(table, column, values, run_id):
            yield what, int(pc.sum(is_wrong).as_py() or 0)
        return
    rows = pc.list_parent_indices(values)
    for what, is_wrong in _value_rules(table, column, values.flatten(), run_id):
        yield what, len(pc.unique(rows.filter(is_wrong)))


def _value_rules(table: Table, column: Column, values: pa.Array, run_id: str) -> Iterator[tuple[str, pa.Array]]:
    if column.name == RUN_ID.name:
        yield f"is not {run_id}", pc.not_equal(values, run_id)
    if pa.types.is_floating(values.type):
        yield "is not a finite number", pc.invert(pc.is_finite(values))
    slack = SLACK if values.type == pa.float32() and None not in (column.at_least, column.at_most) else 0
    if column.at_least is not None:
        yield f"is below {column.at_least:g}", pc.less(values, column.at_least - slack)
    if column.at_most is not None:
        yield f"is above {column.at_most:g}", pc.greater(values, column.at_most + slack)
    if column.choices:
        yield f"is neither {' nor '.join(column.choices)}", pc.invert(pc.is_in(values.drop_null(), pa.array(column.choices)))
    if column.table == table.name and values.type == pa.int64():
        yield "does not carry the run's tag", pa.array(values.to_numpy() >> 32 != run_tag(run_id))


def _places(known: np.ndarray, ids: pa.Array) -> np.ndarray:
    """Where each id stands in the sorted `known`: UNKNOWN if it does not, MISSING if there is none."""
    if ids.null_count or pa.types.is_string(ids.type):
        coded = ids.dictionary_encode()
        places = np.append(_places_of(known, _values(pa.chunked_array([coded.dictionary]))), MISSING)
        return places[coded.indices.fill_null(len(coded.dictionary)).to_numpy()]
    return _places_of(known, ids.to_numpy())


def _places_of(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    if not len(known):
        return np.full(len(ids), UNKNOWN)
    places = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[places] == ids, places, UNKNOWN)
