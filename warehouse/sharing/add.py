"""Takes the runs of a shared set into a lake, beside what is there: copied aside, verified like one's own, then published.

    with fetched("hf://datasets/org/name") as folder:
        add(lake, folder)

Everything is judged on copies, whose files are written anew from the rows. Records are written when all copies are sound, parents
first; before that nobody sees any of them, and what a killed process leaves behind is a draft that `gc` deletes. A set is only as
good as who made it: its hashes say that it is whole, and the rules that its rows fit together, not that its numbers are true.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from saelake.warehouse.catalog import changing_catalog
from saelake.warehouse.check import check_records
from saelake.warehouse.commit import refuse_tag_collision
from saelake.warehouse.content import ContentHash
from saelake.warehouse.durable import locked, make_private
from saelake.warehouse.errors import UserError, one_line, storage_errors
from saelake.warehouse.files import DataFile
from saelake.warehouse.keys import check_study_name, data_key
from saelake.warehouse.lake import Lake
from saelake.warehouse.layout import rechunk, stored_batches, write_table
from saelake.warehouse.order import RowOrder
from saelake.warehouse.progress import Quiet
from saelake.warehouse.records import RunRecord, run_tag
from saelake.warehouse.schema import TABLES
from saelake.warehouse.sharing.names import STUDIES, lake_names
from saelake.warehouse.sharing.pages import check_pages
from saelake.warehouse.sharing.read import check_footer, open_file, read_records
from saelake.warehouse.storage import Folder

COPY_BYTES = 1 << 20
MOST_BROKEN = 1_000
"""Rows that come twice or in the wrong place, until a file is given up."""
SPARE_BYTES = 64 << 20
"""What must stay free on the disk."""


@dataclass(frozen=True)
class Added:
    """What became of a set's runs."""

    published: tuple[RunRecord, ...]
    known: tuple[RunRecord, ...]
    """Runs that the lake had already, with the same content."""
    studies: tuple[str, ...]
    """The names under which plain table names show them."""


def add(lake: Lake, folder: Path, *, name: str | None = None, progress: Quiet | None = None) -> Added:
    """Verifies the shared set in `folder` and publishes its runs.

    Args:
        name: what the set's study is called in this lake, if not by its recipe's name.
    Raises UserError, with the lake as it was, for a set that is damaged, hostile or of another schema; where the lake has a
    study of that name with other runs, or one of the runs with other content; and for what the disk refuses.
    """
    progress = progress or Quiet()
    if not isinstance(lake.published, Folder):
        raise UserError(f"{lake} is in a bucket: add the set to a lake on this machine, then copy that folder there, data/ first")
    records = read_records(folder)
    pointers = _pointers(records, name)
    _refuse_collisions(records)
    with storage_errors(lake), ExitStack() as held:
        for record in sorted(records, key=lambda r: r.run_id):
            held.enter_context(locked(lake.lock(record.run_id)))  # gc leaves alone what a process works on
        new = [record for record in records if not _is_known(lake, record)]
        _refuse_other_study(lake, pointers)
        _require_space(lake, new)
        with ExitStack() as copies:
            published = _copy(lake, folder, new, copies, progress)
            _verify(lake, [draft for draft, _ in published], progress)
        _publish(lake, [record for _, record in published], pointers)
    known = tuple(r for r in records if r.run_id not in {n.run_id for n in new})
    return Added(tuple(record for _, record in published), known, tuple(sorted({recipe for recipe, _ in pointers})))


def _pointers(records: Sequence[RunRecord], name: str | None) -> dict[tuple[str, str], tuple[str, ...]]:
    """(study, stage) -> run_ids: what plain table names are to show."""
    latest = sorted(records, key=lambda r: (r.finished, r.run_id))
    found: dict[tuple[str, str], list[str]] = {}
    for record in latest:
        for study in record.about.get(STUDIES, ()):
            found.setdefault((study, record.stage), []).append(record.run_id)
    # Sets of older versions do not say which studies show a run: of each stage there was one, the latest.
    older = {(r.recipe, r.stage): [r.run_id] for r in latest if STUDIES not in r.about}
    studies = sorted({study for study, _ in (*found, *older)})
    if name is not None:
        check_study_name(name)
        if len(studies) > 1:
            raise UserError(f"the set has several studies ({', '.join(studies)}): they keep their names")
    return {(name or study, stage): tuple(run_ids) for (study, stage), run_ids in (older | found).items()}


def _refuse_collisions(records: Sequence[RunRecord]) -> None:
    tags: dict[int, str] = {}
    for record in records:
        other = tags.setdefault(run_tag(record.run_id), record.run_id)
        if other != record.run_id:
            raise UserError(f"the ids of runs {other} and {record.run_id} of the set collide: it cannot be added")


def _is_known(lake: Lake, record: RunRecord) -> bool:
    """Whether the lake has a run with at least this content; False for one that the set's can replace, as it lacks nothing of it.

    Raises UserError if the lake has the run with other content, or each has something that the other lacks.
    """
    mine = lake.record(record.run_id)
    if mine is None:
        refuse_tag_collision(lake, record.run_id)
        return False
    changed = {name.partition(".")[0] for name in (*mine.withheld, *record.withheld)}
    theirs = {t.name: t.content_hash for t in record.tables}
    ours = {t.name: t.content_hash for t in mine.tables}
    for table in sorted(theirs.keys() & ours.keys()):
        if theirs[table] != ours[table] and table not in changed:
            raise UserError(
                f"the lake has run {record.run_id} with other content in {table}: `saelake drop {record.run_id}` first, "
                f"if the set is right"
            )
    ours_lacks, theirs_lacks = _lacking(mine, record), _lacking(record, mine)
    if ours_lacks and theirs_lacks:
        raise UserError(
            f"run {record.run_id} of the set comes without {', '.join(theirs_lacks)}, which the lake has, and the lake has it "
            f"without {', '.join(ours_lacks)}: add a set with all of this, or `saelake drop {record.run_id}` first, to have "
            f"the set's instead"
        )
    return not ours_lacks


def _lacking(one: RunRecord, other: RunRecord) -> list[str]:
    """Tables and columns that were left out of one record of a run and are in the other."""
    absent = set(other.withheld)
    return [name for name in one.withheld if not absent & {name, name.partition(".")[0]}]


def _refuse_other_study(lake: Lake, pointers: Mapping[tuple[str, str], Sequence[str]]) -> None:
    current = lake.current()
    mine = {recipe for recipe, _ in current}
    for (recipe, stage), run_ids in pointers.items():
        # A stage that the lake's study lacks is not another run: a killed `add` leaves such a study behind.
        if recipe in mine and {*current.get((recipe, stage), run_ids)} != {*run_ids}:
            raise UserError(
                f"the lake has a study {recipe} of its own, whose {stage} is another run: give the set's study another name "
                f"with --as NAME"
            )


def _require_space(lake: Lake, records: Sequence[RunRecord]) -> None:
    wanted = sum(f.n_bytes for r in records for f in r.files)
    free = shutil.disk_usage(lake.root).free - SPARE_BYTES
    if wanted > free:
        raise UserError(f"the set has {wanted:,} bytes and the disk of {lake.root} has room for {max(free, 0):,}: free space")


def _copy(
    lake: Lake, folder: Path, records: Sequence[RunRecord], copies: ExitStack, progress: Quiet
) -> list[tuple[RunRecord, RunRecord]]:
    """Copies every run into a draft folder, which becomes its own when `copies` closes without an error.

    Returns each record twice: with the paths of the draft, and with those to publish.
    """
    progress.start("adding", sum(len(r.files) for r in records), "files")
    found = []
    for record in records:
        for leftover in (lake.root / "data").glob(f".{record.run_id}*"):
            shutil.rmtree(leftover)  # of a killed process
        data = lake.published.unused(data_key(record.run_id))
        draft = copies.enter_context(lake.published.new_folder(data))
        names = lake_names(record)
        files = []
        for file in record.files:
            files.append(_take_file(folder, file, draft, names[file.path], record.schema_version))
            progress.advance(1, file.n_rows)
        found.append((_below(record, draft.relative_to(lake.root).as_posix(), files), _below(record, data, files)))
    return found


def _below(record: RunRecord, folder: str, files: Sequence[DataFile]) -> RunRecord:
    """The record with files that lie below the key `folder`."""
    return replace(record, files=tuple(file.below(folder) for file in files))


def _take_file(folder: Path, file: DataFile, draft: Path, name: str, version: int) -> DataFile:
    """One file of the set, of a version of the schema, as a file of this lake, below `draft`.

    Its rows are written anew: nothing else in it, such as statistics by which readers skip rows, is believed.
    """
    target = draft / name
    target.parent.mkdir(parents=True, exist_ok=True)
    incoming = target.with_name(f".{target.name}")
    try:
        _copy_file(folder, file, incoming)
        check_footer(incoming, file, version)
        check_pages(incoming, file.table, version)
        rows = rechunk(_in_order(incoming, file.table, version))
        content = ContentHash(TABLES[file.table].schema_at(version))
        n_rows, n_bytes, sha256 = write_table(target, file.table, rows, content, version=version)
    except UserError:
        raise
    except (ValueError, KeyError, OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's, not the file's
            raise
        raise UserError(f"{folder / file.path} is refused: {one_line(error)}") from error
    finally:
        incoming.unlink(missing_ok=True)
    return DataFile(file.table, name, n_rows, n_bytes, sha256)


def _in_order(path: Path, table: str, version: int) -> Iterator[pa.RecordBatch]:
    """The rows of a file; raises ValueError when many come twice or in the wrong place: the others need not be read.

    Few of them may be the fault of something else, which `_verify` names.
    """
    names = [name for name in TABLES[table].unique_at(version) if name != "run_id"]
    order = RowOrder(names)
    for batch in stored_batches(path, table, version):
        order.update(batch)
        if order.n_repeated > MOST_BROKEN:
            raise ValueError(f"({', '.join(names)}) repeats")
        if order.n_misplaced > MOST_BROKEN:
            raise ValueError(f"order by {', '.join(names)} is broken")
        yield batch


def _copy_file(folder: Path, file: DataFile, target: Path) -> None:
    """Copies one file; raises ValueError unless it is a regular one of the size and hash that its record gives."""
    try:
        source = open_file(folder, file.path)
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror or error}): a shared set has regular files only") from error
    digest, n_bytes = hashlib.sha256(), 0
    make_private(target)
    with source, target.open("wb") as copy:
        while piece := source.read(min(COPY_BYTES, file.n_bytes - n_bytes + 1)):
            n_bytes += len(piece)
            if n_bytes > file.n_bytes:
                raise ValueError(f"it has more than the {file.n_bytes:,} bytes that its record gives")
            digest.update(piece)
            copy.write(piece)
    if n_bytes != file.n_bytes or digest.hexdigest() != file.sha256:
        raise ValueError("its bytes are not those that its record gives: copy the set again")


def _verify(lake: Lake, drafts: Sequence[RunRecord], progress: Quiet) -> None:
    """Raises UserError unless the copied rows obey every rule that `saelake check` knows."""
    known = {r.run_id: r for r in lake.records()} | {r.run_id: r for r in drafts}
    progress.start("verifying", sum(len(r.files) for r in drafts), "files")
    for record in drafts:
        damage = next((f for f in check_records(lake, [record], known, progress) if not f.note), None)
        if damage:
            where = damage.path.partition("/")[2].partition("/")[2] or damage.path  # without the draft folder's name
            raise UserError(f"run {record.run_id} of the set is refused: {where}: {damage.what}")


def _publish(lake: Lake, records: Sequence[RunRecord], pointers: Mapping[tuple[str, str], Sequence[str]]) -> None:
    with changing_catalog(lake):
        _refuse_other_study(lake, pointers)
        for record in records:
            lake.publish(replace(record, about={name: value for name, value in record.about.items() if name != STUDIES}))
        for (study, stage), run_ids in pointers.items():
            lake.point(study, stage, run_ids)
