"""The lake's own tables for others: its views as a DuckDB script, and what every column is as a dataset_info card.

catalog.sql makes the views in any DuckDB, with comments on all tables and columns. dataset_info.json has the same in the words of
`datasets`: a configuration a table, with its features, its rows and what they mean. Nothing is copied: both are about the lake
where it lies. What is shared (`saelake share`) has a Croissant card too.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from saelake.formats.registry import Asked, Format
from saelake.warehouse.catalog import current_records
from saelake.warehouse.schema import TABLES, Table
from saelake.warehouse.script import catalog_script

if TYPE_CHECKING:
    from saelake.lake import OpenLake

SCRIPT, CARD = "catalog.sql", "dataset_info.json"


def _write(opened: "OpenLake", folder: Path, _asked: Asked) -> Mapping[str, int]:
    (folder / SCRIPT).write_text(catalog_script(opened.lake, opened.recipe), encoding="utf-8")
    files = [file for record in current_records(opened.lake, opened.recipe) for file in record.files]
    card = {}
    for table in TABLES.values():
        mine = [file for file in files if file.table == table.name]
        if mine:
            card[table.name] = _info(table, sum(f.n_rows for f in mine), sum(f.n_bytes for f in mine), opened.studies)
    (folder / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {SCRIPT: len(TABLES), CARD: len(card)}


def _info(table: Table, n_rows: int, n_bytes: int, studies: tuple[str, ...]) -> dict[str, Any]:
    return {
        "dataset_name": ", ".join(studies),
        "config_name": table.name,
        "description": "\n".join([table.row, *(f"{column.name}: {column.described}" for column in table.columns)]),
        "features": {column.name: _feature(column.type) for column in table.columns},
        "splits": {"train": {"name": "train", "num_bytes": n_bytes, "num_examples": n_rows, "dataset_name": table.name}},
        "dataset_size": n_bytes,
    }


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    return {"dtype": {"float": "float32", "double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}


FORMAT = Format(
    what="the lake's tables for other tools: its views as a DuckDB script, and a dataset_info card of their columns",
    write=_write,
    takes_studies=True,
)
