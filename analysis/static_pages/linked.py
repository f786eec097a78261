"""A shared set as a lake of links, for questions that are asked of what is shared, and of nothing else."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from saelake.warehouse.keys import data_key
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunRecord
from saelake.warehouse.schema import TABLES
from saelake.warehouse.sharing.names import STUDIES, lake_names


@contextmanager
def as_lake(folder: Path, records: Sequence[RunRecord], study: str) -> Iterator[Lake]:
    """The runs of a set that was just written, as the one study of a lake.

    A table that was left out has no rows in it, instead of failing: `absent` says which.
    """
    with tempfile.TemporaryDirectory(prefix="saelake-site-") as name:
        lake = Lake.create(Path(name) / "lake")
        pointers: dict[str, list[str]] = {}
        for record in sorted(records, key=lambda r: (r.finished, r.run_id)):
            names = lake_names(record)
            files = [replace(file, path=f"{data_key(record.run_id)}/{names[file.path]}") for file in record.files]
            for shared, linked in zip(record.files, files, strict=True):
                link = lake.root / linked.path
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to((folder / shared.path).resolve())
            lake.publish(replace(record, files=tuple(files), withheld=()))
            if study in record.about.get(STUDIES, ()):
                pointers.setdefault(record.stage, []).append(record.run_id)
        for stage, run_ids in pointers.items():
            lake.point(study, stage, run_ids)
        yield lake


def absent(records: Sequence[RunRecord]) -> list[str]:
    """The tables of the protocol of which a set holds nothing: left out, or never made."""
    held = {file.table for record in records for file in record.files}
    return [name for name in TABLES if name not in held]
