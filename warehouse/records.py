"""What a run is: its identity, and the record that makes it published. A lake's folder, as paths.

lake/
  saelake.json                    marks the folder as a lake, with its schema version
  runs/<run_id>.json              the record of a published run: the commit point, written last
  data/<run_id>/<table>/*.parquet the files that the record lists
  current/<recipe>/<stage>        which run of a recipe's stage is current
  landing/<run_id>/               shards of a run that is being computed
  studies/<name>/                 an annotation study and the append log of its answers, until it is closed; its links are secret
  locks/                          locks of living processes
  catalog.duckdb                  views for any DuckDB client

A name that starts with a dot is a draft: nobody but its writer reads it.
"""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import UserError, storage_errors
from .files import DataFile
from .schema import SCHEMA_VERSION
from .store import canonical_json, sha256_text, sync_folder, write_atomic

FORMAT = "saelake"
FOLDERS = ("runs", "data", "current", "landing", "locks")


@dataclass(frozen=True)
class RunSpec:
    """What determines a run's content. The same spec is the same run."""

    stage: str
    recipe: str
    config: dict[str, Any]
    """The stage's part of the recipe, hashes of prompts, template, model and SAEs, device kind, dtype, code version."""
    parents: tuple[str, ...] = ()
    seed: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    """What is worth knowing, but determines nothing: licences, and where content was read from."""

    @property
    def run_id(self) -> str:
        identity = {"stage": self.stage, "config": self.config, "parents": self.parents, "seed": self.seed}
        digest = sha256_text(canonical_json(identity | {"schema": SCHEMA_VERSION}))
        return f"{self.stage}_{digest[:12]}"

    @property
    def tag(self) -> int:
        return run_tag(self.run_id)


def run_tag(run_id: str) -> int:
    """31 bits that mark the ids which a run numbers."""
    return int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class TableContent:
    """One table of a run: its rows and the hash of their sorted content."""

    name: str
    n_rows: int
    content_hash: str


@dataclass(frozen=True)
class RunRecord:
    """A published run, as `runs/<run_id>.json` holds it; `schema.RUNS_COLUMNS` gives the SQL types."""

    run_id: str
    stage: str
    recipe: str
    parents: tuple[str, ...]
    config: dict[str, Any]
    code_version: str
    schema_version: int
    seed: int
    hardware: dict[str, Any]
    versions: dict[str, str]
    started: str
    finished: str
    tables: tuple[TableContent, ...]
    files: tuple[DataFile, ...]
    content_hash: str
    about: dict[str, Any] = field(default_factory=dict)
    withheld: tuple[str, ...] = ()
    """Tables (`tokens`) and columns (`ablations.completion`) that were left out, in part or whole, when the run was shared."""

    def to_json(self) -> str:
        fields = asdict(self)
        return json.dumps(fields | {"checksum": sha256_text(canonical_json(fields))}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "RunRecord":
        """The record that `to_json` wrote; raises ValueError, TypeError or KeyError if anything in it has changed."""
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.pop("checksum", None) != sha256_text(canonical_json(fields)):
            raise ValueError("its checksum does not fit its content")
        if any(not f["path"].startswith("data/") or ".." in f["path"].split("/") for f in fields["files"]):
            raise ValueError("it lists a file outside the lake's data folder")
        fields["parents"] = tuple(fields["parents"])
        fields["withheld"] = tuple(fields.get("withheld", ()))
        fields["tables"] = tuple(TableContent(**t) for t in fields["tables"])
        fields["files"] = tuple(DataFile(**f) for f in fields["files"])
        return cls(**fields)

    def n_rows(self, table: str) -> int:
        return sum(t.n_rows for t in self.tables if t.name == table)


@dataclass(frozen=True)
class Lake:
    """A lake's folder. Making the object touches nothing; `create` and `existing` check the folder."""

    root: Path

    @classmethod
    def existing(cls, root: Path | str) -> "Lake":
        """The lake at `root`; raises UserError if the folder is none, or is written by a newer saelake."""
        lake = cls(Path(root))
        if not lake.root.is_dir():
            raise UserError(f"no lake at {lake.root}: the folder does not exist; `saelake ingest RECIPE --lake DIR` makes one")
        if not lake.marker.is_file():
            raise UserError(f"{lake.root} is not a lake: it has no saelake.json; give the folder of a lake with --lake")
        lake._check_version()
        return lake

    @classmethod
    def create(cls, root: Path | str) -> "Lake":
        """The lake at `root`, made if the folder is absent or empty; raises UserError if it holds something else."""
        lake = cls(Path(root))
        is_used = lake.root.exists() and (not lake.root.is_dir() or any(p.name[0] != "." for p in lake.root.iterdir()))
        if lake.marker.is_file():  # asked last: another process may be making the same lake, and writes the marker first
            return cls.existing(root)
        if is_used:
            raise UserError(f"{lake.root} is not a lake and not empty: give a new or empty folder with --lake")
        with storage_errors(lake.root):
            write_atomic(lake.marker, canonical_json({"format": FORMAT, "schema_version": SCHEMA_VERSION}) + "\n")
            for folder in FOLDERS:
                (lake.root / folder).mkdir(exist_ok=True)
            sync_folder(lake.root)
        return lake

    def _check_version(self) -> None:
        try:
            marker = json.loads(self.marker.read_text(encoding="utf-8"))
            version = int(marker["schema_version"])
            if marker["format"] != FORMAT:
                raise ValueError("its format is unknown")
        except (ValueError, KeyError, TypeError) as error:
            text = canonical_json({"format": FORMAT, "schema_version": SCHEMA_VERSION})
            raise UserError(f"{self.marker} is damaged ({error}): a lake of this saelake holds {text} there") from error
        if version != SCHEMA_VERSION:
            raise UserError(
                f"the lake {self.root} has schema version {version}, this saelake reads version {SCHEMA_VERSION}: "
                f"{'upgrade saelake' if version > SCHEMA_VERSION else 'ingest into a new lake'}"
            )

    @property
    def marker(self) -> Path:
        return self.root / "saelake.json"

    @property
    def catalog(self) -> Path:
        return self.root / "catalog.duckdb"

    @property
    def stale(self) -> Path:
        """There while runs or pointers change: a catalog that a killed process left behind is then built again."""
        return self.root / "locks" / "catalog.stale"

    @property
    def data(self) -> Path:
        return self.root / "data"

    def data_folders(self, run_id: str) -> list[Path]:
        """The folders that hold, or held, published files of a run: `data/run_id`, or `data/run_id-2` after it was dropped."""
        return [p for p in sorted(self.data.glob(f"{run_id}*")) if re.fullmatch(rf"{re.escape(run_id)}(-\d+)?", p.name)]

    def record_path(self, run_id: str) -> Path:
        return self.root / "runs" / f"{run_id}.json"

    def pointer(self, recipe: str, stage: str) -> Path:
        return self.root / "current" / recipe / stage

    def landing(self, run_id: str) -> Path:
        return self.root / "landing" / run_id

    def lock(self, name: str) -> Path:
        return self.root / "locks" / f"{name}.lock"

    def record_paths(self) -> list[Path]:
        """The files of all run records, sound or not."""
        return sorted(p for p in (self.root / "runs").glob("*.json") if not p.name.startswith("."))

    def records(self) -> list[RunRecord]:
        """Every published run, oldest first; raises UserError for a damaged record."""
        records = [self._read(p) for p in self.record_paths()]
        return sorted((r for r in records if r), key=lambda r: (r.finished, r.run_id))

    def record(self, run_id: str) -> RunRecord | None:
        """One published run, or None."""
        return self._read(self.record_path(run_id))

    def _read(self, path: Path) -> RunRecord | None:
        try:
            record = RunRecord.from_json(path.read_text(encoding="utf-8"))
            if path.stem != record.run_id:
                raise ValueError(f"it is the record of {record.run_id}")
            return record
        except FileNotFoundError:  # dropped by another process since it was listed
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"the run record {path} is damaged ({error}): `saelake drop {path.stem}`, then compute it again"
            ) from error

    def parents(self, record_path: Path) -> tuple[str, ...]:
        """What a run is computed from, as far as its record, which may be damaged, still tells."""
        try:
            return tuple(json.loads(record_path.read_text(encoding="utf-8"))["parents"])
        except (OSError, ValueError, TypeError, KeyError):
            return ()

    def current(self) -> dict[tuple[str, str], str]:
        """Which run is current for each (recipe, stage)."""
        found = {}
        for path in sorted((self.root / "current").glob("*/*")):
            if not path.name.startswith("."):
                with suppress(FileNotFoundError):  # dropped by another process since it was listed
                    found[path.parent.name, path.name] = path.read_text(encoding="utf-8", errors="replace").strip()
        return found
