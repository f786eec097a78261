"""Takes a source of another tool into a lake as a run, and writes what a lake holds as files of another tool."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from saelake.formats.answers import CLEAN
from saelake.formats.joined import Joined, join
from saelake.formats.registry import STAGE_PREFIX, Asked, Format, check_options, load
from saelake.ingest.inputs import hash_input
from saelake.lake import open as open_lake
from saelake.warehouse.catalog import several_studies
from saelake.warehouse.durable import canonical_json, folder_atomic, sha256_text
from saelake.warehouse.errors import UserError, one_line
from saelake.warehouse.keys import check_study_name
from saelake.warehouse.lake import Lake
from saelake.warehouse.progress import Quiet
from saelake.warehouse.records import RunRecord, RunSpec
from saelake.warehouse.rules import broken_values
from saelake.warehouse.runs import Plan, Rows, ensure_run
from saelake.warehouse.schema import TABLES

CODE_VERSION = 2
MOST_FILES = 100_000
MOST_TOLD = 2**18
"""Characters of one thing that a run's record says of its source: a set whose records are too large is not read."""


def bring_in(lake: str | Path, name: str, source: str, asked: Asked, progress: Quiet | None = None) -> RunRecord:
    """Publishes what a source holds as a run of a study; the same source, read in the same way, is the same run.

    Raises UserError, with the lake as it was, for what is damaged, of another kind, or about another model, tokenizer or SAE.
    """
    known, owner = load(name), f"import {name}"
    if known.read is None:
        raise UserError(f"{name} is written only: `saelake export {name}`")
    check_options(name, known.reads, asked)
    if asked.recipe is not None:
        check_study_name(asked.recipe)
    files = source_files(known, Path(source), owner)
    sha256 = _hash(files, Path(source), owner)
    with join(Lake.at(lake), asked.recipe, needs_study=known.needs_study) as joined:
        found = known.read(files, joined, asked)
        stage = _stage(joined, f"{STAGE_PREFIX}{name.replace('-', '_')}_{sha256[:8]}", asked)
        config = {"code": CODE_VERSION, "format": name.replace("-", "_"), "sha256": sha256, **asked.given, **found.config}
        told = {key: _told(value) for key, value in found.about.items()}
        about = {"source": Path(source).name, "format": name, "n_files": len(files), **told}
        spec = RunSpec(stage, joined.name, config, found.parents, about=about)
        try:
            rows = [one for one in found.rows(spec.tag << 32) if one.rows.num_rows]
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            raise UserError(f"{owner}: {Path(source).name} holds what no column of a lake does ({one_line(error)})") from error
    if not rows:
        raise UserError(f"{owner}: {Path(source).name} holds nothing that a lake keeps")
    for one in rows:
        _check(one, owner)
    tables = list(dict.fromkeys(one.table for one in rows))
    return ensure_run(Lake.create(lake), spec, Plan.of(rows, tables, found.summary), progress=progress)


def _stage(joined: Joined, plain: str, asked: Asked) -> str:
    """The stage of an import: one of its own for each thing that a source is said to be about, so that none hides another.

    The same source, read in another way about the same thing, takes the earlier reading's place.
    """
    if not joined.is_there:
        return plain
    wanted, taken = _subject(joined, asked.given), set[str]()
    for (study, stage), run_ids in sorted(joined.lake.current().items()):
        if study == joined.name and (stage == plain or stage.startswith(f"{plain}_")):
            records = [joined.lake.record(run_id) for run_id in run_ids]
            if any(record is not None and _subject(joined, record.config) == wanted for record in records):
                return stage
            taken.add(stage)
    return f"{plain}_{sha256_text(canonical_json(wanted))[:8]}" if plain in taken else plain


def _subject(joined: Joined, said: Mapping[str, Any]) -> dict[str, Any]:
    """What a source is about, of what a person said: an SAE, however it was named, a layer, a condition."""
    sae = said.get("sae")
    with suppress(UserError):  # of an SAE that the study has not any more
        sae = joined.sae(sae, "it").sae_id
    return {"sae": sae, "layer": said.get("layer"), "condition": said.get("condition") or CLEAN}


def write_out(lake: str | Path, name: str, folder: Path, asked: Asked) -> Mapping[str, int]:
    """Fills a new or empty folder with what a lake holds, in a format; gives the files' names and their rows.

    Raises UserError for a folder that holds something or lies in the lake, where there is nothing to write, and where it is not
    said which of several studies is meant. It appears whole or not at all.
    """
    known = load(name)
    if known.write is None:
        raise UserError(f"{name} is read only: `saelake import {name}`")
    check_options(name, known.writes, asked)
    folder = Path(os.path.realpath(folder))  # what a link leads to is filled, and need not be there
    with open_lake(lake, asked.recipe) as opened:
        if not opened.studies:
            raise UserError(f"the lake {opened.lake} holds no study, so that there is nothing to write")
        if len(opened.studies) > 1 and not known.takes_studies:
            raise several_studies(opened.lake, opened.studies)
        if opened.lake.remote is None and folder.is_relative_to(os.path.realpath(opened.lake.root)):
            raise UserError(f"{folder} lies in the lake {opened.lake}: give a folder outside it")
        above = next(place for place in folder.parents if place.exists())
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is not empty: give a new or empty folder")
        if not above.is_dir():
            raise UserError(f"{above} is a file, so that there can be no folder {folder}")
        if folder.is_dir():
            folder.rmdir()
        with folder_atomic(folder, is_same=False) as draft:
            written = known.write(opened, draft, asked)
            if not any(written.values()):
                raise UserError(f"the lake {opened.lake} holds nothing that {name} takes")
    return written


def source_files(known: Format, source: Path, owner: str) -> list[Path]:
    """The files of a source, which is one or, where the format has several, a folder of them."""
    if not source.is_dir():
        return [source]
    if not known.files:
        raise UserError(f"{owner}: {source} is a folder: give the file in it")
    found = sorted({path for pattern in known.files for path in source.glob(pattern)})
    if not found:
        raise UserError(f"{owner}: the folder {source} has no {' or '.join(known.files)}")
    if len(found) > MOST_FILES:
        raise UserError(f"{owner}: the folder {source} has more than {MOST_FILES:,} files: give a part of it")
    return found


def _hash(files: Sequence[Path], source: Path, owner: str) -> str:
    if files == [source]:
        return hash_input(source, owner)
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(source).as_posix()}\0{hash_input(file, owner)}\n".encode())
    return total.hexdigest()


def _told(value: Any) -> Any:
    """What is said of a source, as JSON that a record can hold: half letters and numbers without end are a stranger's."""
    text = json.dumps(value, ensure_ascii=False)
    if len(text) > MOST_TOLD:
        return f"{len(text):,} characters, left out"
    return json.loads(text.encode("utf-8", "replace"), parse_constant=str)


def _check(part: Rows, owner: str) -> None:
    """Raises UserError for values that the protocol does not allow."""
    table = TABLES[part.table]
    for column in (c for c in table.columns if c.name in part.rows.column_names and c.name != table.owns):
        values = part.rows[column.name].combine_chunks()
        if column.table == table.name and column.name.endswith("prompt_id"):
            continue  # numbered here
        for what, n in broken_values(table, column, values):
            if n:
                raise UserError(f"{owner}: {table.name}.{column.name} {what} in {n} of {part.rows.num_rows} rows")
