"""The folder of a shared set, as names.

set/
  README.md                            the card: what it is, where it comes from, how to load it
  croissant.json                       the same for machines, in MLCommons' words
  SHA256SUMS                           hashes of all other files, for `sha256sum -c`
  index.html, site/                    pages that show it without a server, where they are asked for
  runs/<run_id>.json                   the record of each run, with the hashes of its files
  data/<table>/<run_id>.parquet        a table's rows; one file per layer where the table lies by layer:
  data/<table>/<run_id>-layer-02.parquet

Tables come first, so that `data/activations/*.parquet` is one table for every reader.
"""

import re
from dataclasses import replace

from saelake.warehouse.files import DataFile, file_layer, file_name
from saelake.warehouse.records import RunRecord
from saelake.warehouse.schema import TABLES

RUN_ID = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,120}_[0-9a-f]{12}")
CARD = "README.md"
CROISSANT = "croissant.json"
SUMS = "SHA256SUMS"
PAGE = "index.html"
SITE = "site"
AS_IT_IS = ".nojekyll"
"""An empty file by which GitHub Pages serves all others as they are, README.md too."""
STUDIES = "studies"
"""In what a set's record says about its run: the studies that show it."""
SET_NAMES = (CARD, CROISSANT, SUMS, "runs", "data", PAGE, SITE, AS_IT_IS)
"""All that lies directly in a set."""


def record_name(run_id: str) -> str:
    return f"runs/{run_id}.json"


def data_name(file: DataFile, run_id: str) -> str:
    """Where a run's file lies in a set, from where it lies in a lake."""
    layer = f"-layer-{file_layer(file.path):02d}" if TABLES[file.table].by_layer else ""
    return f"data/{file.table}/{run_id}{layer}.parquet"


def lake_names(record: RunRecord) -> dict[str, str]:
    """Where each file of a set's record goes, below the folder of its run in a lake: set path -> lake path.

    Raises ValueError unless every path is exactly the one that `data_name` gives.
    """
    names = {}
    for file in record.files:
        found = re.fullmatch(
            rf"data/{re.escape(file.table)}/{re.escape(record.run_id)}(?:-layer-([0-9]{{2,5}}))?\.parquet", file.path
        )
        known = found is not None and file.table in TABLES and TABLES[file.table].by_layer == (found[1] is not None)
        name = file_name(file.table, None if found is None or found[1] is None else int(found[1]))
        # Read back, since a layer has one name only: layer-07 and layer-007 would be one file of a lake.
        if not known or data_name(replace(file, path=name), record.run_id) != file.path:
            raise ValueError(f"{file.path!r} is not where a file of {file.table!r} lies in a shared set")
        names[file.path] = name
    if len(names) < len(record.files):
        raise ValueError("it lists a file twice")
    return names
