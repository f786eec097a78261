"""Checks a whole lake for damage: what is missing, changed, or does not fit together, and what to repeat."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

import duckdb
import pyarrow as pa

from saelake.warehouse.catalog import LEFT_BEHIND, recover_catalog
from saelake.warehouse.commit import content_hash
from saelake.warehouse.content import ContentHash
from saelake.warehouse.damage import pointer_damage
from saelake.warehouse.durable import sha256_file
from saelake.warehouse.errors import UserError, one_line
from saelake.warehouse.files import DataFile
from saelake.warehouse.keys import pointer_key, record_key
from saelake.warehouse.lake import Lake
from saelake.warehouse.layout import open_parquet, stored_batches
from saelake.warehouse.order import RowOrder
from saelake.warehouse.progress import Quiet
from saelake.warehouse.records import RunRecord, RunSpec, with_ancestors
from saelake.warehouse.rules import POINTED, References, broken_rules, joined, referred
from saelake.warehouse.schema import TABLES
from saelake.warehouse.threads import at_once

UNREADABLE = (OSError, pa.ArrowException)
MOST_AT_ONCE = 8
"""Runs that are read at once, each in some 100 MB."""
MOST_KEPT = 64
"""Files whose ids are kept for the next run that points there: all runs of a study point to the same prompts and SAEs."""


@dataclass(frozen=True)
class Finding:
    """Something wrong in a lake: where (relative to the lake), what, and how to fix it."""

    run_id: str
    path: str
    what: str
    fix: str
    note: bool = False
    """Worth knowing, but no damage."""

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.fix}"


def check(lake: Lake, progress: Quiet | None = None) -> list[Finding]:
    """Reads every published byte and compares it with what run records and protocol say; a lake in which it finds nothing,
    or only notes, is sound.
    """
    progress = progress or Quiet()
    findings: list[Finding] = []
    records: dict[str, RunRecord] = {}
    for run_id in lake.run_ids():
        try:
            record = lake.record(run_id)
        except UserError as error:
            fix = f"restore it from a copy, or `saelake drop {run_id}` and repeat its stage"
            findings.append(Finding(run_id, record_key(run_id), str(error).split(": `saelake")[0], fix))
        else:
            if record:
                records[record.run_id] = record
    progress.start("checking", sum(len(r.files) for r in records.values()), "files")
    sizes = _sizes(lake)
    findings += check_records(lake, list(records.values()), records, progress)
    listed = {f.path for r in records.values() for f in r.files}
    return [*findings, *_check_pointers(lake, records), *_check_catalog(lake), *_unlisted(sorted(sizes.keys() - listed))]


def check_records(lake: Lake, records: Sequence[RunRecord], known: Mapping[str, RunRecord], progress: Quiet) -> Iterator[Finding]:
    """What is wrong with some runs, in themselves and with what they point to in the runs that are `known`.

    Several are read at once: reading, hashing and decoding leave Python to the others.
    """
    sizes = _sizes(lake)
    referred_once = lru_cache(MOST_KEPT)(partial(_referred, lake))

    def findings(record: RunRecord) -> list[Finding]:
        pointed = _references([record.run_id], known, referred_once)
        return [*_check_record(record, known), *_RunCheck(lake, record, pointed, sizes).findings(progress)]

    for found in at_once(min(os.cpu_count() or 1, MOST_AT_ONCE), findings, records):
        yield from found


def may_point_to(lake: Lake, run_ids: Sequence[str]) -> References:
    """What rows may point to that are computed from these runs."""
    records = with_ancestors(run_ids, lake.record)
    return _references(run_ids, records, partial(_referred, lake))


def _sizes(lake: Lake) -> dict[str, int]:
    return {entry.key: entry.n_bytes for entry in lake.published.entries("data")}


def _repeat(record: RunRecord) -> str:
    return f"restore it from a copy, or `saelake drop {record.run_id}` and repeat stage {record.stage} of recipe {record.recipe}"


def _check_record(record: RunRecord, records: Mapping[str, RunRecord]) -> Iterator[Finding]:
    path = record_key(record.run_id)
    spec = RunSpec(record.stage, record.recipe, record.config, record.parents, record.seed)
    if spec.run_id != record.run_id:
        yield Finding(record.run_id, path, "its id does not fit what it says of itself", _repeat(record))
    if content_hash(list(record.tables)) != record.content_hash:
        yield Finding(record.run_id, path, "its content hash does not fit those of its tables", _repeat(record))
    for parent in record.parents:
        if parent not in records:
            what = f"run {parent}, which it is computed from, is not in the lake"
            yield Finding(record.run_id, path, what, "keys into that run are not checked", note=True)


class _RunCheck:
    """Checks the files of one run, one batch of rows at a time."""

    def __init__(self, lake: Lake, record: RunRecord, known: References, sizes: Mapping[str, int]) -> None:
        self._lake = lake
        self._record = record
        self._sizes = sizes
        self._known = known

    def findings(self, progress: Quiet) -> Iterator[Finding]:
        for table in self._record.tables:
            version = self._record.schema_version
            content = ContentHash(TABLES[table.name].schema_at(version)) if table.name in TABLES else None
            files = [f for f in self._record.files if f.table == table.name]
            damaged = False
            for file in files:
                wrong = self._wrong(file, content)
                damaged |= bool(wrong)
                yield from (self._finding(file.path, what) for what in wrong)
                progress.advance(1, file.n_rows)
            if content and not damaged and (content.n_rows, content.hexdigest()) != (table.n_rows, table.content_hash):
                path = record_key(self._record.run_id)
                if files:
                    path = files[0].path if len(files) == 1 else PurePosixPath(files[0].path).parent.as_posix()
                yield self._finding(path, f"the rows of {table.name} are not those that were published")

    def _finding(self, path: str, what: str) -> Finding:
        return Finding(self._record.run_id, path, what, _repeat(self._record))

    def _wrong(self, file: DataFile, content: ContentHash | None) -> list[str]:
        """What is wrong with the file as a file or, if nothing is, with its rows."""
        if file.path not in self._sizes:
            return ["the file is missing"]
        if self._sizes[file.path] != file.n_bytes:
            return [f"the file has {self._sizes[file.path]:,} bytes, published were {file.n_bytes:,}"]
        try:
            with self._lake.published.local(file.path) as path:
                if sha256_file(path) != file.sha256:
                    return ["the file's bytes have changed since it was published"]
                return list(self._read(path, file, content)) if content else ["its table is unknown"]
        except OSError as error:
            return [f"the file cannot be read ({error})"]

    def _read(self, path: Path, file: DataFile, content: ContentHash) -> Iterator[str]:
        """What is wrong with the rows of a sound file; adds them to the table's content."""
        table = TABLES[file.table]
        unique = table.unique_at(self._record.schema_version)
        order = RowOrder([name for name in unique if name != "run_id"])
        broken: dict[str, int] = {}
        n_rows = 0
        try:
            with open_parquet(path) as parquet:
                if not parquet.schema_arrow.equals(table.schema_at(self._record.schema_version)):
                    yield f"its columns are not those of {table.name}"
                    return
            for batch in stored_batches(path, table.name, self._record.schema_version):
                batch.validate(full=True)  # text that is not UTF-8
                n_rows += len(batch)
                content.update(batch)
                order.update(batch)
                for what, n in broken_rules(table, batch, self._record.run_id, self._known):
                    broken[what] = broken.get(what, 0) + n
        except UNREADABLE as error:
            yield f"the file cannot be read ({one_line(error)})"
            return
        broken[f"({', '.join(unique)}) repeats"] = order.n_repeated
        broken[f"order by {', '.join(unique)} is broken"] = order.n_misplaced
        yield from (f"{what} in {n:,} row{'s' if n > 1 else ''}" for what, n in broken.items() if n)
        if n_rows != file.n_rows:
            yield f"the file has {n_rows:,} rows, published were {file.n_rows:,}"


def _referred(lake: Lake, path: str, table: str, version: int) -> References | None:
    """What a file's rows let others point to; None if it cannot be read."""
    try:
        with lake.published.local(path) as local:
            return referred(table, stored_batches(local, table, version, POINTED[table]))
    except UserError:
        raise
    except (*UNREADABLE, KeyError, ValueError):
        return None


def _references(
    run_ids: Sequence[str], records: Mapping[str, RunRecord], referred_once: Callable[[str, str, int], References | None]
) -> References:
    """What these runs hold, and all that they are computed from. Of a kind whose table is damaged or absent, nothing is known."""
    known: References = {}
    seen, waiting, unknown = set[str](), [*run_ids], set[str]()
    while waiting:
        run_id = waiting.pop()
        if run_id in seen:
            continue
        seen.add(run_id)
        if run_id not in records:
            return {}
        waiting += records[run_id].parents
        for file in records[run_id].files:
            if file.table in POINTED:
                rows = referred_once(file.path, file.table, records[run_id].schema_version)
                if rows is None:
                    unknown.add(file.table)
                else:
                    known = joined(known, rows)
    return {table: rows for table, rows in known.items() if table not in unknown}


def _check_pointers(lake: Lake, records: Mapping[str, RunRecord]) -> Iterator[Finding]:
    pointers = lake.current()
    stages = {run_id: records[run_id].stage if run_id in records else None for run_id in lake.run_ids()}
    damaged = pointer_damage(pointers, stages)
    now = lake.current() if damaged else {}
    for recipe, stage in damaged:
        if now.get((recipe, stage)) != pointers[recipe, stage]:
            continue  # another process has dropped or replaced what it pointed to meanwhile
        what = damaged[recipe, stage]
        fix = f"delete it, then repeat stage {stage} of recipe {recipe}"
        yield Finding(", ".join(pointers[recipe, stage]), pointer_key(recipe, stage), what, fix)


def _check_catalog(lake: Lake) -> Iterator[Finding]:
    """What is wrong with the catalog; one that a killed process left behind is built again first."""
    try:
        if recover_catalog(lake):
            yield Finding("", lake.catalog.name, LEFT_BEHIND, "it has been built again", note=True)
    except (UserError, OSError):  # a damaged record, or a lake that may only be read
        yield Finding("", lake.catalog.name, LEFT_BEHIND, "the next command that publishes or drops a run builds it again", True)
    fix = "delete it: the next command that publishes or looks up a run writes it anew"
    if lake.catalog.exists():
        try:
            with duckdb.connect(lake.catalog, read_only=True) as con:
                con.execute("select count(*) from duckdb_views()").fetchall()
                con.execute("select count(*) from all_runs.runs").fetchall()
        except duckdb.Error as error:
            yield Finding("", lake.catalog.name, f"it cannot be opened ({one_line(error)})", fix)


def _unlisted(keys: list[str]) -> list[Finding]:
    fix = "nobody reads it, and `saelake gc` deletes it"
    return [Finding("", key, "no run lists it", fix, note=True) for key in keys]
