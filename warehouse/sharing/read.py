"""Reads a shared set that nobody vouches for: whatever is in its folder, the outcome is sound records or UserError.

Nothing but regular files is opened, by names that the protocol gives and not the set; sizes are compared before bytes are read.
"""

import json
import os
import stat
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from saelake.warehouse.errors import UserError, one_line
from saelake.warehouse.files import DataFile
from saelake.warehouse.keys import NAME
from saelake.warehouse.layout import open_parquet
from saelake.warehouse.records import RunRecord
from saelake.warehouse.schema import SCHEMA_VERSION, TABLES
from saelake.warehouse.sharing.names import RUN_ID, STUDIES, lake_names

LARGEST_RECORD = 4 << 20
LARGEST_RECORDS = 16 << 20
"""Bytes of all run records of a set: parsed, JSON takes twenty times its size."""
MOST_RUNS = 10_000
DEEPEST = 32
"""Levels of a run record."""
MOST_ROWS_A_BYTE = 100
"""Twice what a table reaches whose columns are all constant, but for ids that count up."""
SPARE_ROWS = 100_000
DIGEST = frozenset("0123456789abcdef")


def read_records(folder: Path) -> list[RunRecord]:
    """The runs of the set in `folder`, parents before children; raises UserError for what is not a sound set."""
    if not folder.is_dir():
        raise UserError(f"there is no shared set at {folder}: give the folder that `saelake share` wrote")
    paths = sorted(_entries(folder / "runs", folder))
    if not paths:
        raise UserError(f"{folder} is not a shared set: it has no runs/*.json; `saelake share` writes one")
    if len(paths) > MOST_RUNS:
        raise UserError(f"{folder} has {len(paths):,} run records, at most {MOST_RUNS:,} are read")
    records: dict[str, RunRecord] = {}
    if (n_bytes := sum(path.lstat().st_size for path in paths)) > LARGEST_RECORDS:
        raise UserError(f"{folder} has {n_bytes:,} bytes of run records, more than {LARGEST_RECORDS:,} are not read")
    for path in paths:
        try:
            records[path.stem] = _read_record(path)
        except UserError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
            raise UserError(f"{folder}: the run record runs/{path.name!r} is refused: {one_line(error)}") from error
    return list(_in_order(records))


def open_file(folder: Path, name: str) -> BinaryIO:
    """A file of the set; raises OSError where it, or a folder on the way, is not a regular one (a link, a pipe, a device)."""
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        *parents, last = name.split("/")
        for part in parents:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = below
        file = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{name} is not a regular file")
    return os.fdopen(file, "rb")


def check_footer(path: Path, file: DataFile, version: int) -> None:
    """Raises ValueError where a Parquet file declares other columns or rows."""
    with open_parquet(path) as parquet:
        metadata = parquet.metadata
        if not parquet.schema_arrow.equals(TABLES[file.table].schema_at(version)):
            raise ValueError(f"its columns are not those of {file.table}")
        if metadata.num_rows != file.n_rows:
            raise ValueError(f"it has {metadata.num_rows:,} rows, its record says {file.n_rows:,}")


def _entries(runs: Path, folder: Path) -> Iterator[Path]:
    """The run records of a set, by name; runs/ itself must be a folder and no link."""
    if runs.is_symlink():
        raise UserError(f"{folder}: runs is a link; a shared set has regular files only")
    if runs.is_dir():
        yield from (Path(entry.path) for entry in os.scandir(runs) if entry.name.endswith(".json") and entry.name[0] != ".")


def _read_record(path: Path) -> RunRecord:
    with open_file(path.parent.parent, f"runs/{path.name}") as opened:
        text = opened.read(LARGEST_RECORD + 1)
    if len(text) > LARGEST_RECORD:
        raise ValueError(f"it has more than {LARGEST_RECORD:,} bytes")
    fields = json.loads(text.decode("utf-8"))
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise ValueError(f"it has schema version {str(version)[:20]}, but this saelake reads 1 to {SCHEMA_VERSION}")
    _require_plain(fields)
    record = RunRecord.from_json(text.decode("utf-8"))
    _require_types(record)
    if record.run_id != path.stem:
        raise ValueError("its run_id is not its name")
    lake_names(record)
    return record


def _require_plain(value: Any, depth: int = 0) -> None:
    """Raises ValueError for what a reader elsewhere may not survive: control characters, numbers past 64 bits, deep nesting."""
    if depth > DEEPEST:
        raise ValueError(f"it has more than {DEEPEST} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            _require_plain(key, depth + 1)
            _require_plain(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _require_plain(item, depth + 1)
    elif isinstance(value, str) and any((ord(c) < 32 and c not in "\n\r\t") or 0xD800 <= ord(c) < 0xE000 for c in value):
        raise ValueError("it has control characters in a text")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("it has a number past 64 bits")


def _require_types(record: RunRecord) -> None:
    """Raises ValueError unless every field is what the code and the catalog take it for."""
    _require(isinstance(record.run_id, str) and RUN_ID.fullmatch(record.run_id), "its run_id is none")
    for name in (record.stage, record.recipe):
        _require(isinstance(name, str) and NAME.fullmatch(name), "its stage or recipe is not a name")
    _require(all(isinstance(p, str) and RUN_ID.fullmatch(p) for p in record.parents), "a parent is not a run_id")
    for value in (record.config, record.hardware, record.versions, record.about):
        _require(isinstance(value, dict), "config, hardware, versions or about is not an object")
    studies = record.about.get(STUDIES, [])
    _require(isinstance(studies, list) and all(isinstance(s, str) and NAME.fullmatch(s) for s in studies), "about is none")
    words = record.about.get("behaviour", {})
    _require(isinstance(words, dict) and all(isinstance(word, str) for word in words.values()), "about is none")
    _require_told(record)
    _require(isinstance(record.code_version, str), "its code_version is not text")
    _require(type(record.seed) is int, "its seed is not an integer")
    for time in (record.started, record.finished):
        _require(isinstance(time, str) and 1970 <= datetime.fromisoformat(time).year < 10_000, "its times are none")
        _require(datetime.fromisoformat(time).tzinfo is None, "its times are not in UTC")
    _require(_is_digest(record.content_hash), "its content_hash is none")
    for table in record.tables:
        _require(table.name in TABLES, f"there is no table {str(table.name)[:60]!r}")
        _require(
            type(table.n_rows) is int and table.n_rows >= 0 and _is_digest(table.content_hash), f"{table.name} is not described"
        )
    names = [table.name for table in record.tables]
    _require(len(set(names)) == len(names), "it has a table twice")
    for file in record.files:
        _require(file.table in names, "a file belongs to none of its tables")
        _require(type(file.n_rows) is int and type(file.n_bytes) is int, "a file's rows or bytes are not integers")
        _require(file.n_bytes >= 0, f"a file has {file.n_bytes} bytes")
        _require(
            0 <= file.n_rows <= SPARE_ROWS + MOST_ROWS_A_BYTE * file.n_bytes,
            f"{file.n_rows:,} rows do not fit in {file.n_bytes:,} bytes",
        )
        _require(_is_digest(file.sha256), "a file's sha256 is none")
    columns = {f"{t.name}.{c.name}" for t in TABLES.values() for c in t.columns}
    _require(all(name in columns or name in TABLES for name in record.withheld), "it withholds what is not a table or column")


def _require_told(record: RunRecord) -> None:
    """Raises ValueError unless prompt sets, and what a card tells of a study's model and SAEs, are what it takes them for.

    What an import or a person says of rows may be anything.
    """
    about, config = record.about, record.config
    sets = about.get("prompts", [])
    _require(isinstance(sets, list), "its prompt sets are no list")
    told = [*sets]
    if "prompts" in about and "model_hash" in config:
        older = config.get("prompts", {})
        _require(isinstance(older, dict) and isinstance(older.get("sets", []), list), "its prompt sets are no list")
        told += [about.get("model", {}), about.get("saes", {}), *older.get("sets", [])]
        sets = [*sets, *older.get("sets", [])]
        _require(isinstance(config["model_hash"], str), "its model_hash is not text")
    for one in told:
        _require(isinstance(one, dict), "model, SAEs or prompts are not objects")
        texts = [one.get(name) for name in ("id", "licence", "revision", "sha256")]
        for name in ("sources", "pins"):
            _require(isinstance(one.get(name, []), list), f"its {name} are no list")
            texts += [each.get("sha256") if isinstance(each, dict) else each for each in one.get(name, [])]
        _require(all(text is None or isinstance(text, str) for text in texts), "model, SAEs or prompts are not told as text")
    _require(all(isinstance(one.get("set"), str) for one in sets), "a prompt set has no name")


def _require(is_so: object, otherwise: str) -> None:
    if not is_so:
        raise ValueError(otherwise)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= DIGEST


def _in_order(records: dict[str, RunRecord]) -> Sequence[RunRecord]:
    """Parents before children."""
    ordered: dict[str, RunRecord] = {}
    waiting = dict(records)
    while waiting:
        ready = [r for r in waiting.values() if not any(p in waiting for p in r.parents)]
        if not ready:
            raise UserError(f"the runs {', '.join(sorted(waiting))} are computed from each other: that is not a shared set")
        for record in ready:
            ordered[record.run_id] = waiting.pop(record.run_id)
    return list(ordered.values())
