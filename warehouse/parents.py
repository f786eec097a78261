"""Verifies what a run is computed from: a file that has changed since it was published must not become the input of a stage."""

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from saelake.warehouse.damage import file_damage
from saelake.warehouse.durable import sha256_file
from saelake.warehouse.errors import UserError
from saelake.warehouse.files import DataFile
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import with_ancestors
from saelake.warehouse.storage import Folder
from saelake.warehouse.threads import at_once


def require_sound(lake: Lake, run_ids: Iterable[str]) -> None:
    """Raises UserError unless the files of these runs, and of all that those are computed from, hold what was published.

    A file is read once a process, as long as it is not touched. In a bucket, whose store guards the bytes itself, sizes are
    compared.
    """
    listed = [(record, file) for record in with_ancestors(run_ids, lake.record).values() for file in record.files]
    if isinstance(lake.published, Folder):
        wrong = list(at_once(os.cpu_count() or 1, lambda one: _wrong(lake.root, one[1]), listed))
    else:
        damage = file_damage(lake, [file for _, file in listed])
        wrong = [damage.get(file.path, "") for _, file in listed]
    for (record, file), what in zip(listed, wrong, strict=True):
        if what:
            raise UserError(
                f"{file.path} of run {record.run_id}, which this stage is computed from, {what}: `saelake check` says what to do"
            )


def _wrong(root: Path, file: DataFile) -> str:
    path = root / file.path
    try:
        status = path.stat()
        if status.st_size != file.n_bytes or _sha256(path, status.st_ino, status.st_size, status.st_mtime_ns) != file.sha256:
            return "has changed since it was published"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""


@cache
def _sha256(path: Path, _inode: int, _n_bytes: int, _modified_ns: int) -> str:
    return sha256_file(path)
