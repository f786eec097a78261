"""The last step of a run: its record is written, and from then on it is there for readers."""

import platform
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata

from saelake.warehouse.catalog import changing_catalog
from saelake.warehouse.durable import sha256_text, utc_now
from saelake.warehouse.errors import UserError
from saelake.warehouse.files import DataFile
from saelake.warehouse.keys import record_key
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunRecord, RunSpec, TableContent, run_tag
from saelake.warehouse.schema import SCHEMA_VERSION

RECORDED_PACKAGES = ("saelake", "torch", "transformers", "sae-lens", "duckdb", "pyarrow", "numpy", "scipy")


def record_of(
    spec: RunSpec, about: dict[str, object], started: str, contents: list[TableContent], files: list[DataFile]
) -> RunRecord:
    """The record of a run whose files are written."""
    return RunRecord(
        run_id=spec.run_id,
        stage=spec.stage,
        recipe=spec.recipe,
        parents=spec.parents,
        config=spec.config,
        code_version=_versions()["saelake"],
        schema_version=SCHEMA_VERSION,
        seed=spec.seed,
        hardware={
            "machine": platform.machine(),
            "system": platform.system(),
            "device": spec.config.get("device", "cpu"),
        },
        versions=dict(_versions()),
        started=started,
        finished=utc_now(),
        tables=tuple(contents),
        files=tuple(files),
        content_hash=content_hash(contents),
        about=about,
    )


def content_hash(contents: list[TableContent]) -> str:
    """The hash of a run's whole content, from those of its tables."""
    return sha256_text("".join(f"{c.name}:{c.content_hash};" for c in contents))


def whole_run(lake: Lake, run_id: str) -> RunRecord | None:
    """A published run with all that it computed; None if it came from a shared set that left something out."""
    record = lake.record(run_id)
    return None if record is None or record.withheld else record


def commit(lake: Lake, spec: RunSpec, record: RunRecord, is_alone: bool, more_follows: bool) -> RunRecord:
    """Makes a run visible, in one step: its record is there or not. Returns the record that counts.

    That is another one if another machine, whose locks are not seen here, has published the run meanwhile. One that is published
    with others becomes the current one together with them.
    """
    with changing_catalog(lake, more_follows):
        refuse_tag_collision(lake, spec.run_id)
        for parent in spec.parents:
            if not lake.published.exists(record_key(parent)):
                raise UserError(
                    f"run {parent}, which {spec.run_id} is computed from, is not in the lake (any more): "
                    f"run the same command again"
                )
        other = None
        if not lake.publish_new(record):
            other = whole_run(lake, spec.run_id)
            if other is None:  # what is there came from a shared set that left something out
                lake.publish(record)
        if is_alone:
            lake.point(spec.recipe, spec.stage, [record.run_id])
    return other or record


def refuse_tag_collision(lake: Lake, run_id: str) -> None:
    """Raises UserError if another run of the lake numbers its rows with the same 31 bits."""
    for other in lake.run_ids():
        if other != run_id and run_tag(other) == run_tag(run_id):
            raise UserError(
                f"the ids of run {run_id} would collide with those of {other}: change the recipe's seed, or drop the other run"
            )


@cache
def _versions() -> Mapping[str, str]:
    """Looked up once: it takes as long as publishing a small run does."""
    found = {}
    for name in RECORDED_PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # SQL and storage work without the GPU packages
            found[name] = metadata.version(name)
    return found | {"python": platform.python_version()}
