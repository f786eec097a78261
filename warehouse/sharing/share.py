"""Writes chosen runs of a lake as a Parquet data set that any reader loads, and that `add` can verify.

    share(lake, Path("refusal-set"), recipe="organism")

Files are copied as they are, after their hash is compared; only those that lose something, or whose row groups the hub's viewer
would refuse, are written anew. The folder appears complete or not at all.
"""

import difflib
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from saelake.warehouse.catalog import connect, current_records
from saelake.warehouse.commit import content_hash
from saelake.warehouse.content import ContentHash
from saelake.warehouse.durable import clear_drafts, folder_atomic, locked, sha256_file
from saelake.warehouse.errors import UserError
from saelake.warehouse.files import DataFile
from saelake.warehouse.lake import Lake
from saelake.warehouse.layout import BATCH_ROWS, PRIVATE, rechunk, write_table
from saelake.warehouse.progress import Quiet
from saelake.warehouse.records import RunRecord, TableContent, with_ancestors
from saelake.warehouse.schema import TABLES
from saelake.warehouse.sharing.card import write_card
from saelake.warehouse.sharing.croissant import write_croissant
from saelake.warehouse.sharing.names import CARD, CROISSANT, SET_NAMES, STUDIES, SUMS, data_name, record_name
from saelake.warehouse.sharing.withheld import Withheld, find_withheld

RANGED = {"tokens": 4_096, "feature_logits": 4_096}
"""Rows of a row group where a set is read by ranges."""
LARGEST_GROUP = 100 << 20
"""Bytes of a row group in memory; the hub's viewer wants at most 300 MB, and refuses more than 286 MB of some."""


@dataclass(frozen=True)
class Choice:
    """What of a lake is shared; by default every current run, with what it is computed from."""

    recipe: str | None = None
    runs: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    restricted: tuple[str, ...] = ()
    """Prompt sets whose text is left out, beside those that their recipe marks."""
    with_completions: bool = False
    """Keep the completions to all prompts, not only to those of the control label."""
    by_ranges: bool = False
    """Of tables in which little is looked up at once, row groups are small: over HTTP few bytes are read then."""


def share(
    lake: Lake,
    target: Path,
    choice: Choice = Choice(),
    progress: Quiet | None = None,
    then: Callable[[Path, Sequence[RunRecord]], None] | None = None,
) -> list[RunRecord]:
    """Writes the set into a new or empty folder; returns its run records, as the set holds them.

    Args:
        then: writes more into the folder, of which it and the records are given; the sums hold that too.
    Raises UserError for an unknown recipe, run, table or prompt set, where nothing is left to share, for a folder that holds
    something, and for a file of the lake that is damaged.
    """
    progress = progress or Quiet()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is not empty: give a new or empty folder")
    chosen = _chosen(lake, choice)
    with ExitStack() as held:
        for record in sorted(chosen, key=lambda r: r.run_id):
            held.enter_context(locked(lake.lock(record.run_id)))  # gc leaves alone what a process works on
        with connect(lake) as con:
            published = {record.run_id: record for record in lake.records()}
            if not any(f.table == "prompts" for r in published.values() for f in r.files):  # a set that left them out was added
                con.execute(
                    "create or replace view all_runs.prompts as "
                    "select 0 as prompt_id, '' as run_id, '' as set, '' as label_role where false"
                )
            known = [name for (name,) in con.execute('select distinct "set" from all_runs.prompts').fetchall()]
            _require_sets(known, choice.restricted)
            withheld = find_withheld(con, chosen, published, choice.restricted, choice.with_completions)
        with _folder(target) as draft:
            progress.start("sharing", sum(len(r.files) for r in chosen), "files")
            studies = _studies(lake, choice.recipe)
            named = [
                _in_studies(record, studies.get(record.run_id, [record.recipe] if choice.runs else []), choice.recipe)
                for record in chosen
            ]
            shared = [_share_run(lake, record, choice, withheld, draft, progress) for record in named]
            shared = [record for record in shared if record.tables]
            if not any(record.files for record in shared):
                raise UserError(f"none of the chosen runs has rows{' in ' if choice.tables else ''}{', '.join(choice.tables)}")
            for record in shared:
                path = draft / record_name(record.run_id)
                path.parent.mkdir(exist_ok=True)
                path.write_text(record.to_json(), encoding="utf-8")
            write_card(draft / CARD, shared, withheld)
            write_croissant(draft / CROISSANT, shared)
            if then is not None:
                then(draft, shared)
            _write_sums(draft)
    return shared


@contextmanager
def _folder(target: Path) -> Iterator[Path]:
    try:
        clear_drafts(target, SET_NAMES)  # of killed processes
        if target.is_dir():
            target.rmdir()  # a rename would keep an empty folder that is there already
        with folder_atomic(target, is_same=False) as draft:
            yield draft
    except OSError as error:
        raise UserError(f"cannot write to {target}: {error.strerror or error}") from error


def _chosen(lake: Lake, choice: Choice) -> list[RunRecord]:
    for name in choice.tables:
        if name not in TABLES:
            close = difflib.get_close_matches(name, TABLES, n=1)
            raise UserError(
                f"there is no table {name}: {f'did you mean {close[0]}?' if close else 'the tables are ' + ', '.join(TABLES)}"
            )
    known = {r.run_id: r for r in lake.records()}
    if choice.runs:
        unknown = [run_id for run_id in choice.runs if run_id not in known]
        if unknown:
            raise UserError(f"the lake {lake} has no run {', '.join(unknown)}: `saelake runs` lists them")
        wanted = set(choice.runs)
    else:
        wanted = set(with_ancestors((r.run_id for r in current_records(lake, choice.recipe)), known.get))
    if not wanted:
        raise UserError(f"the lake {lake} has no runs to share")
    return [r for r in known.values() if r.run_id in wanted]


def _studies(lake: Lake, recipe: str | None) -> dict[str, list[str]]:
    """run_id -> the studies that show the run, of those that are shared."""
    found: dict[str, list[str]] = {}
    for (study, _), run_ids in sorted(lake.current().items()):
        for run_id in run_ids if recipe in (None, study) else ():
            found.setdefault(run_id, []).append(study)
    return found


def _in_studies(record: RunRecord, studies: list[str], recipe: str | None) -> RunRecord:
    """The record with the studies that show it, which `add` makes of it again; of one study that is shared, it is that one's.

    The study that a run was first computed for may be another, of which nothing else is shared.
    """
    return replace(record, recipe=recipe or record.recipe, about={**record.about, STUDIES: studies})


def _require_sets(known: Sequence[str], asked: Sequence[str]) -> None:
    for name in asked:
        if name not in known:
            raise UserError(f"there is no prompt set {name!r}; the lake has {', '.join(sorted(known)) or 'none'}")


def _share_run(lake: Lake, record: RunRecord, choice: Choice, withheld: Withheld, folder: Path, progress: Quiet) -> RunRecord:
    """Writes the files of one run; returns its record for the set."""
    contents, files, left_out = list[TableContent](), list[DataFile](), set(record.withheld)
    for table in record.tables:
        if choice.tables and table.name not in choice.tables:
            left_out.add(table.name)
            continue
        content = ContentHash(TABLES[table.name].schema_at(record.schema_version))
        for file in (f for f in record.files if f.table == table.name):
            ranged = RANGED.get(file.table) if choice.by_ranges else None
            files.append(_share_file(lake, record, file, withheld, folder, content, ranged))
            progress.advance(1, file.n_rows)
        columns = withheld.columns(table.name)
        shared = replace(table, content_hash=content.hexdigest()) if columns else table
        left_out |= {f"{table.name}.{column}" for column in columns if shared != table}
        contents.append(shared)
    return replace(
        record,
        tables=tuple(contents),
        files=tuple(files),
        content_hash=content_hash(contents),
        about=withheld.about(record.about),
        withheld=tuple(sorted(left_out)),
    )


def _share_file(
    lake: Lake,
    record: RunRecord,
    file: DataFile,
    withheld: Withheld,
    folder: Path,
    content: ContentHash,
    group_rows: int | None,
) -> DataFile:
    name, loses = data_name(file, record.run_id), bool(withheld.columns(file.table))
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with lake.published.local(file.path) as source:
        if not source.is_file() or sha256_file(source) != file.sha256:
            raise UserError(f"{source} is missing or damaged: `saelake check` says what to do")
        with pq.ParquetFile(source, page_checksum_verification=True) as parquet:
            group_rows = group_rows or _group_rows(parquet.metadata)
            if not loses and group_rows is None:
                shutil.copyfile(source, target)
                return replace(file, path=name)
            rows = parquet.iter_batches(group_rows or BATCH_ROWS)
            cut = rechunk((withheld.apply(file.table, batch) if loses else batch for batch in rows), group_rows or BATCH_ROWS)
            private = withheld.with_completions and file.table in PRIVATE
            written = write_table(target, file.table, cut, content, group_rows, record.schema_version, private=private)
    return DataFile(file.table, name, *written)


def _group_rows(metadata: pq.FileMetaData) -> int | None:
    """Rows a row group so that none is larger than LARGEST_GROUP; None if none is."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    if all(group.total_byte_size <= LARGEST_GROUP for group in groups):
        return None
    bytes_a_row = max(group.total_byte_size / group.num_rows for group in groups)
    return max(1, math.floor(LARGEST_GROUP / bytes_a_row))


def _write_sums(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    lines = [f"{sha256_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
