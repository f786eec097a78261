"""The folder of a shared set, as names.

set/
  README.md                            the card: what it is, where it comes from, how to load it
  SHA256SUMS                           hashes of all other files, for `sha256sum -c`
  runs/<run_id>.json                   the record of each run, with the hashes of its files
  data/<table>/<run_id>.parquet        a table's rows; one file a layer where the table lies by layer:
  data/<table>/<run_id>-layer-02.parquet

Tables come first, so that `data/activations/*.parquet` is one table for every reader.
"""

import re

from saelake.warehouse.files import DataFile, file_layer, file_name
from saelake.warehouse.records import RunRecord
from saelake.warehouse.schema import TABLES

RUN_ID = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,120}_[0-9a-f]{12}")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,120}")
"""What a recipe or a stage may be called."""
CARD = "README.md"
SUMS = "SHA256SUMS"
SET_NAMES = (CARD, SUMS, "runs", "data")
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
        found = re.fullmatch(rf"data/{file.table}/{re.escape(record.run_id)}(?:-layer-(\d\d))?\.parquet", file.path)
        if file.table not in TABLES or found is None or TABLES[file.table].by_layer != (found[1] is not None):
            raise ValueError(f"{file.path!r} is not where a file of {file.table!r} lies in a shared set")
        names[file.path] = file_name(file.table, None if found[1] is None else int(found[1]))
    if len(names) < len(record.files):
        raise ValueError("it lists a file twice")
    return names
