"""What a run is: its identity, and the record that makes it published."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from saelake.warehouse.durable import canonical_json, sha256_text
from saelake.warehouse.errors import UserError
from saelake.warehouse.files import DataFile
from saelake.warehouse.schema import SCHEMA_VERSION

INDEX_MASK = (1 << 32) - 1
"""The bits of an id below its run's tag: the dense index."""


@dataclass(frozen=True)
class RunSpec:
    """What determines a run's content. The same spec is the same run."""

    stage: str
    recipe: str
    """The study's name; no part of the identity."""
    config: dict[str, Any]
    """The stage's part of the recipe, hashes of prompts, template, model and SAEs, device kind, dtype, code version."""
    parents: tuple[str, ...] = ()
    seed: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    """What is worth knowing, but determines nothing: licences, and where content was read from."""
    known_as: str | None = None
    """The run with this content that an older version of the schema published, if there is one (`runs.known`)."""

    @property
    def run_id(self) -> str:
        return self.known_as or self.identity

    @property
    def identity(self) -> str:
        """The id that this saelake gives it."""
        identity = {"stage": self.stage, "config": self.config, "parents": self.parents, "seed": self.seed}
        # Not the schema's version, which determines no content: the 1 is a constant, by which runs of version 1 keep their ids.
        digest = sha256_text(canonical_json(identity | {"schema": 1}))
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
    """A published run, as `runs/<run_id>.json` holds it; `schema.RUNS_STRUCTURE` gives the SQL types."""

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
        """The record that `to_json` wrote, at this version of the schema or an older one.

        Raises ValueError, TypeError or KeyError if anything in it has changed, UserError if a newer saelake wrote it.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.pop("checksum", None) != sha256_text(canonical_json(fields)):
            raise ValueError("its checksum does not fit its content")
        if any(not f["path"].startswith("data/") or ".." in f["path"].split("/") for f in fields["files"]):
            raise ValueError("it lists a file outside the lake's data folder")
        if fields["schema_version"] > SCHEMA_VERSION:
            raise UserError(newer(f"run {fields['run_id']}", fields["schema_version"]))
        fields["parents"] = tuple(fields["parents"])
        fields["withheld"] = tuple(fields.get("withheld", ()))
        fields["tables"] = tuple(TableContent(**t) for t in fields["tables"])
        fields["files"] = tuple(DataFile(**f) for f in fields["files"])
        return cls(**fields)

    @property
    def identity(self) -> str:
        """The id that this saelake would give the run."""
        return RunSpec(self.stage, self.recipe, self.config_now, self.parents, self.seed).identity

    @property
    def config_now(self) -> dict[str, Any]:
        """What determines its content, said as this version of the schema says it."""
        return self.config if self.schema_version > 1 else without_storage(self.config)

    def n_rows(self, table: str) -> int:
        return sum(t.n_rows for t in self.tables if t.name == table)


def with_ancestors(run_ids: Iterable[str], record_of: Callable[[str], RunRecord | None]) -> dict[str, RunRecord]:
    """These runs and all that they are computed from, by their ids; those that have no record are left out."""
    found: dict[str, RunRecord] = {}
    waiting = list(run_ids)
    while waiting:
        run_id = waiting.pop()
        if run_id not in found and (record := record_of(run_id)) is not None:
            found[run_id] = record
            waiting += record.parents
    return found


def without_storage(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of version 1 without what determines no content: sizes of shards and batches, and the prompt-major copy."""
    kept = {name: value for name, value in config.get("capture", {}).items() if name == "round"}
    return config | {"capture": kept} if "capture" in config else config


def newer(what: str, version: int) -> str:
    """What to say of something that a newer saelake wrote."""
    return f"{what} has schema version {version}, but this saelake reads versions up to {SCHEMA_VERSION}: upgrade saelake"
