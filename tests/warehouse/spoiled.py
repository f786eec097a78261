"""Sets that are spoiled on purpose: what a test does to a set's records and files, which it signs again so that they fit."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saelake.warehouse.durable import canonical_json, sha256_text
from saelake.warehouse.layout import parquet_options

Record = dict[str, Any]


def records(folder: Path) -> list[Path]:
    return sorted((folder / "runs").glob("*.json"))


def edit(path: Path, change: Callable[[Record], object]) -> None:
    """Changes a record and signs it again: its checksum fits."""
    fields = json.loads(path.read_text())
    fields.pop("checksum")
    change(fields)
    path.write_text(json.dumps(fields | {"checksum": sha256_text(canonical_json(fields))}))


def ingest_record(folder: Path) -> Path:
    return next(p for p in records(folder) if p.name.startswith("ingest"))


def rewrite(folder: Path, table: str, change: Callable[[pa.Table], pa.Table], options: dict[str, Any] | None = None) -> None:
    """Other rows in a table's first file, with the record's hash, bytes and rows made to fit."""
    path = sorted((folder / "data" / table).glob("*.parquet"))[0]
    rows = change(pq.read_table(path))
    pq.write_table(rows, path, **(options or parquet_options(table)))
    sign(folder, path, len(rows))


def sign(folder: Path, path: Path, n_rows: int | None = None) -> None:
    """Makes the record of a file fit what the file is now."""
    name = path.relative_to(folder).as_posix()
    content = path.read_bytes()

    def fit(fields: Record) -> None:
        for file in fields["files"]:
            if file["path"] == name:
                file |= {"sha256": hashlib.sha256(content).hexdigest(), "n_bytes": len(content)}
                file |= {} if n_rows is None else {"n_rows": n_rows}

    edit(next(p for p in records(folder) if path.name.startswith(p.stem)), fit)


def set_first_file(**changes: Any) -> Callable[[Record], object]:
    return lambda fields: fields["files"][0].update(changes)
