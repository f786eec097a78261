"""Writes the pages of a shared set: files that any static host serves, and a browser reads the set's Parquet by.

    saelake share shared --site

index.html      the page; all that it shows it fetches from this folder
site/           its script, its style, and what it needs to know before it reads Parquet:
  index.json    the study, its SAEs, which tables the set has nothing of, and where tokens lie
  prompts.parquet, conditions.json, features.json
  saes/<n>.json where the rows of an SAE's features lie (see index.py), and their densities; saes/<n>.parquet: a row for each, of
                what follows from several tables; saes/<n>-features.json: those that come first

Everything is asked of the set as it was written, so that what it leaves out is left out here.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from saelake import queries
from saelake.analysis import served
from saelake.analysis.explorer.orders import ORDERS
from saelake.analysis.explorer.public import public_pages
from saelake.analysis.static_pages.index import LOOKUPS, file_index
from saelake.analysis.static_pages.linked import absent, as_lake
from saelake.analysis.static_pages.tables import LISTED, cards_of, lists, make_tables
from saelake.queries.rows import rows
from saelake.warehouse.catalog import connect
from saelake.warehouse.files import DataFile
from saelake.warehouse.records import RunRecord
from saelake.warehouse.sharing.names import AS_IT_IS, PAGE, SITE

SERVED = Path(str(served.__file__)).parent / "pages"
PAGES = Path(__file__).parent / "pages"
VENDORED = Path(__file__).parent / "vendored"
STATIC = (
    *(SERVED / name for name in ("page.css", "explorer.js")),
    *sorted(PAGES.glob("*.js")),
    *(VENDORED / name for name in ("hyparquet.js", "hyparquet.LICENSE", "fzstd.LICENSE")),
)
CARD_GROUP = 1_024
"""Features of a row group of what the site tells of each."""


def write_pages(folder: Path, records: Sequence[RunRecord], study: str) -> None:
    """Writes the pages into the folder of a set whose files and runs are there."""
    site = folder / SITE
    (site / "saes").mkdir(parents=True)
    for file in STATIC:
        shutil.copyfile(file, site / file.name)
    (folder / PAGE).write_text(_page(study), encoding="utf-8")
    (folder / AS_IT_IS).touch()
    with as_lake(folder, records, study) as lake, connect(lake, study) as con:
        make_tables(con)
        saes = rows(con, "feature_layers")
        for number, sae in enumerate(saes):
            _write_sae(con, folder, records, number, sae)
        numbers = {sae["sae_id"]: number for number, sae in enumerate(saes)}
        for sae_id, listed in lists(con):
            name = "features.json" if sae_id is None else f"saes/{numbers[sae_id]}-features.json"
            _write_json(site / name, listed)
        _write_json(site / "conditions.json", rows(con, "condition_list"))
        _write_table(con.sql(queries.step("static_prompts")).to_arrow_table(), site / "prompts.parquet")
        public = public_pages(con)
        saes = [sae | {"public": public.get(sae["sae_id"])} for sae in saes]
        _write_json(site / "index.json", _index(con, folder, records, study, saes))


def _page(study: str) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([PAGES, SERVED]), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("site.html").render(recipe=study)


def _index(
    con: duckdb.DuckDBPyConnection, folder: Path, records: Sequence[RunRecord], study: str, saes: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "study": study,
        "labels": {"target": "target", "control": "control"} | queries.labels(con),
        "saes": saes,
        "orders": ORDERS,
        "listed": LISTED,
        "absent": absent(records),
        "tokens": _files(folder, records, "tokens"),
        "prompts": file_index(folder, f"{SITE}/prompts.parquet", None),
    }


def _write_sae(
    con: duckdb.DuckDBPyConnection, folder: Path, records: Sequence[RunRecord], number: int, sae: dict[str, Any]
) -> None:
    name = f"{SITE}/saes/{number}"
    _write_table(cards_of(con, sae["sae_id"]), folder / f"{name}.parquet")
    told = {table: _files(folder, records, table, sae["sae_id"]) for table in ("activations", "feature_logits")}
    densities = [
        [one["low"], one["high"], one["n_features"]] for one in rows(con, "densities", sae_id=sae["sae_id"], feature_id=-1)
    ]
    cards = [file_index(folder, f"{name}.parquet", "feature_id")]
    _write_json(folder / f"{name}.json", told | {"cards": cards, "densities": densities})


def _files(folder: Path, records: Sequence[RunRecord], table: str, sae_id: str | None = None) -> list[dict[str, Any]]:
    """Where a table's rows lie, in files that hold any."""
    files: list[DataFile] = [file for record in records for file in record.files if file.table == table]
    found = [file_index(folder, file.path, *LOOKUPS[table], sae_id) for file in files]
    return [file for file in found if file["groups"]]


def _write_table(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, row_group_size=CARD_GROUP, compression="zstd", store_schema=False)


def _write_json(path: Path, told: Any) -> None:
    """Raises ValueError for numbers that JSON has none of."""
    path.write_text(json.dumps(told, ensure_ascii=False, separators=(",", ":"), allow_nan=False), encoding="utf-8")
