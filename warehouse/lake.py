"""A lake: a folder or a place on S3, the runs that are published there, and which of them are current.

What its parts are called is in `saelake.warehouse.keys`; `saelake.lake` opens one for questions.
"""

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from saelake.warehouse.arguments import shown
from saelake.warehouse.durable import canonical_json
from saelake.warehouse.errors import UserError, one_line, storage_errors
from saelake.warehouse.keys import data_key, pointed, pointer_key, record_key, run_of_folder
from saelake.warehouse.records import RunRecord, newer
from saelake.warehouse.schema import SCHEMA_VERSION
from saelake.warehouse.storage import Folder, Storage

FORMAT = "saelake"
MARKER = "saelake.json"
FOLDERS = ("runs", "data", "current", "landing", "locks")
REMOTE = "s3://"
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
POINTER_IS_FOLDER = "/"
"""Stands for the run of a pointer that is a folder; no run has this name."""
WORK_VARIABLE = "SAELAKE_WORK"
"""Names the folder where lakes on S3 keep what is landing; workers that share a run's shards share it."""


@dataclass(frozen=True)
class Lake:
    """A lake. Making the object touches nothing; `create` and `existing` look at what is there."""

    root: Path
    """The lake's folder; of a lake on S3, the working folder of this machine."""
    remote: str | None = None
    """Of a lake on S3, s3://bucket/prefix."""

    @classmethod
    def at(cls, where: Path | str) -> "Lake":
        """The lake in a folder or, for the text s3://bucket/prefix, on S3; raises UserError for an address of another kind."""
        if not str(where).startswith(REMOTE):
            if ADDRESS.match(str(where)):
                raise UserError(f"the lake is {str(where)!r}: give a folder or s3://bucket/prefix")
            return cls(Path(where))
        work = Path(os.environ.get(WORK_VARIABLE) or Path.home() / ".cache" / "saelake")
        remote = str(where).rstrip("/")
        return cls(work / "s3" / remote.removeprefix(REMOTE), remote)

    @classmethod
    def existing(cls, where: Path | str) -> "Lake":
        """The lake at `where`; raises UserError if there is none, or one that a newer saelake has written to."""
        lake = cls.at(where)
        if lake.remote is None:
            try:
                why = None if lake.root.is_dir() else "it is no folder" if lake.root.exists() else "the folder does not exist"
            except OSError as error:  # a name that is too long, a folder that may not be entered
                why = str(error.strerror)
            if why is not None:
                raise UserError(f"no lake at {lake}: {why}; `saelake ingest RECIPE --lake DIR` makes one")
        lake._check_version()
        return lake

    @classmethod
    def create(cls, where: Path | str) -> "Lake":
        """The lake at `where`, made if nothing is there yet; raises UserError if something else is."""
        lake = cls.at(where)
        is_used = lake.root.is_file() or any(name[0] != "." for name in lake.published.names(""))
        if lake.published.exists(MARKER):  # asked last: another process may be making the same lake, and writes the marker first
            return cls.existing(where)
        if is_used:
            raise UserError(f"{lake} is not a lake and not empty: give a new or empty folder with --lake")
        with storage_errors(lake):
            lake.published.create(MARKER, _marker(SCHEMA_VERSION))
            for folder in FOLDERS:
                (lake.root / folder).mkdir(parents=True, exist_ok=True)
        return lake

    def __str__(self) -> str:
        return self.remote or str(self.root)

    @cached_property
    def published(self) -> Storage:
        """Where run records, pointers and data files lie."""
        if self.remote is None:
            return self.work
        from saelake.warehouse.bucket import Bucket

        return Bucket(self.remote, self.root)

    def listed(self) -> "Lake":
        """The lake as it is now, to be read right away: on S3 that takes one listing, and the small files that are new."""
        if self.remote is None:
            return self
        from saelake.warehouse.bucket_snapshot import BucketSnapshot

        now = Lake(self.root, self.remote)
        # Where cached_property looks first; a frozen dataclass takes no assignment.
        now.__dict__["published"] = BucketSnapshot(self.remote, self.root)
        return now

    @property
    def work(self) -> Folder:
        """Where landed shards, locks, drafts and the catalog lie: on a file system."""
        return Folder(self.root)

    def _check_version(self) -> None:
        version = self._version()
        if version > SCHEMA_VERSION:
            raise UserError(newer(f"the lake {self}", version))

    def _version(self) -> int:
        """The newest version of the schema that anything in the lake was written with."""
        try:
            marker = json.loads(self.published.read(MARKER))
            version = marker["schema_version"]
            if marker["format"] != FORMAT:
                raise ValueError("its format is unknown")
            if type(version) is not int or version < 1:
                raise ValueError(f"there is no schema version {shown(version)}")
        except FileNotFoundError as error:
            raise UserError(f"{self} is not a lake: it has no {MARKER}; give the folder of one") from error
        except UserError:  # the place itself cannot be read
            raise
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            text = _marker(SCHEMA_VERSION).strip()
            raise UserError(
                f"{self}/{MARKER} is damaged ({one_line(error)}): a lake of this saelake holds {text} there"
            ) from error
        return version

    def point(self, recipe: str, stage: str, run_ids: Sequence[str]) -> None:
        """Makes these runs the current ones of a recipe's stage; without any, its pointer is removed."""
        if run_ids:
            self.published.write(pointer_key(recipe, stage), "".join(f"{run_id}\n" for run_id in run_ids))
        else:
            self.published.delete(pointer_key(recipe, stage))

    def publish(self, record: RunRecord) -> None:
        """Writes a run's record, in the place of any, and thereby makes the run visible."""
        self._admit(record)
        self.published.write(record_key(record.run_id), record.to_json())

    def publish_new(self, record: RunRecord) -> bool:
        """Writes a run's record where none is; False, and nothing changes, if there is one."""
        self._admit(record)
        return self.published.create(record_key(record.run_id), record.to_json())

    def _admit(self, record: RunRecord) -> None:
        """First raises the lake's version to the record's, so that an older saelake does not misread the run's files."""
        if self._version() < record.schema_version:
            self.published.write(MARKER, _marker(record.schema_version))

    @property
    def catalog(self) -> Path:
        return self.root / "catalog.duckdb"

    @cached_property
    def built(self) -> dict[str, str]:
        """What this object last built the catalog from, and which file that was: the next build changes only what differs."""
        return {}

    @property
    def stale(self) -> Path:
        """A file that exists while runs or pointers change; left behind by a killed process, it has the catalog built again."""
        return self.root / "locks" / "catalog.stale"

    def data_folders(self, run_id: str) -> list[str]:
        """The folders that hold, or held, published files of a run: `data/run_id`, or `data/run_id-2` after it was dropped."""
        return [data_key(name) for name in self.published.names("data") if run_of_folder(name) == run_id and name[0] != "."]

    def landing(self, run_id: str) -> Path:
        return self.root / "landing" / run_id

    def lock(self, name: str) -> Path:
        return self.root / "locks" / f"{name}.lock"

    def run_ids(self) -> list[str]:
        """The runs that have a record, sound or not."""
        names = self.published.names("runs")
        return [name.removesuffix(".json") for name in names if name.endswith(".json") and name[0] != "."]

    def records(self) -> list[RunRecord]:
        """Every published run, oldest first; raises UserError for a damaged record."""
        records = [self.record(run_id) for run_id in self.run_ids()]
        return sorted((r for r in records if r), key=lambda r: (r.finished, r.run_id))

    def record(self, run_id: str) -> RunRecord | None:
        """One published run, or None; raises UserError for a damaged record."""
        try:
            record = RunRecord.from_json(self.published.read(record_key(run_id)))
            if run_id != record.run_id:
                raise ValueError(f"it is the record of {record.run_id}")
            return record
        except FileNotFoundError:  # of a listed run: dropped by another process since
            return None
        except UserError:
            raise
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(
                f"the run record {self}/{record_key(run_id)} is damaged ({one_line(error)}): `saelake drop {run_id}`, then "
                f"compute it again"
            ) from error

    def parents(self, run_id: str) -> tuple[str, ...]:
        """What a run is computed from, as far as its record, which may be damaged, still says."""
        try:
            return tuple(json.loads(self.published.read(record_key(run_id)))["parents"])
        except UserError:
            raise
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return ()

    def current(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """(recipe, stage) -> the runs that its pointer names, sound or not; POINTER_IS_FOLDER where the pointer is a folder."""
        found: dict[tuple[str, str], tuple[str, ...]] = {}
        for entry in self.published.entries("current"):
            recipe, _, rest = entry.key.removeprefix("current/").partition("/")
            stage, _, inside = rest.partition("/")
            if stage and not stage.startswith("."):
                with suppress(FileNotFoundError):  # dropped by another process since it was listed
                    found[recipe, stage] = (POINTER_IS_FOLDER,) if inside else pointed(self.published.read(entry.key))
        if self.remote is None:
            folders = (p for p in (self.root / "current").glob("*/*") if p.is_dir())
            found |= {(p.parent.name, p.name): (POINTER_IS_FOLDER,) for p in folders}
        return found


def _marker(version: int) -> str:
    return canonical_json({"format": FORMAT, "schema_version": version}) + "\n"
