"""Rows of prompts and of texts: from a local file, a URL pinned by its hash, a data set on the hub. No torch for files and URLs.

Every source gives rows as dictionaries in file order; the file formats give the same rows for the same table.
"""

import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from saelake.ingest.inputs import hash_input
from saelake.ingest.recipe.sources import RowSet, Source
from saelake.ingest.rows import Row, read_rows, rows_suffix
from saelake.warehouse.durable import sha256_file
from saelake.warehouse.errors import UserError, one_line

MAX_DOWNLOAD_BYTES = 512 * 2**20
HUB_DATA_FILES = [f"*.{kind}" for kind in ("md", "json", "jsonl", "csv", "tsv", "txt", "parquet", "arrow", "gz", "zst", "zip")]
"""Data files and what describes them: never scripts or pickles that a data repository may hold."""


def rows_of(spec: RowSet, wanted: Collection[str]) -> Iterator[Row]:
    """The rows of a set in file order; raises UserError when a source cannot be found, read or verified.

    Args:
        wanted: the columns to read; the others are there by name, and may hold None.
    """
    if spec.hub is not None:
        return _hub_rows(spec, wanted)
    return (row for source in spec.files for row in _source_rows(source, spec.owner, wanted))


def _source_rows(source: Source, owner: str, wanted: Collection[str]) -> Iterator[Row]:
    file = _downloaded(source, owner) if source.url is not None else source.file
    assert file is not None, "a source has a file or url"
    if source.url is None and source.sha256 is not None:
        _check_hash(source, hash_input(file, owner), owner)
    n_rows = 0
    for row in read_rows(file, owner, wanted):
        n_rows += 1
        yield row
    if source.count is not None and n_rows != source.count:
        raise UserError(f"{owner}: {source.url or file} has {n_rows} rows, but its count says {source.count}")


def cache_folder() -> Path:
    """Where downloaded files are kept: $SAELAKE_CACHE, or .cache/saelake in the home folder."""
    return Path(os.environ.get("SAELAKE_CACHE") or Path.home() / ".cache" / "saelake")


def cached_download(source: Source) -> Path:
    """Where the copy of a URL is, or will be, named by its hash."""
    assert source.url is not None, "no url"
    assert source.sha256 is not None, "no sha256"
    name = Path(urlsplit(source.url).path).name
    return cache_folder() / f"{source.sha256}{rows_suffix(name) or Path(name).suffix}"


def is_here(spec: RowSet) -> bool:
    """Whether all rows of a set can be read without the network."""
    return all(one.file is not None or cached_download(one).is_file() for one in spec.files) and spec.hub is None


def _downloaded(source: Source, owner: str) -> Path:
    """The verified local copy of a URL; a copy that was damaged since is fetched again."""
    file = cached_download(source)
    if file.is_file() and sha256_file(file) == source.sha256:
        return file
    assert source.url is not None, "no url"
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        arrived = Path(folder, file.name)
        _fetch(source.url, arrived, owner)
        _check_hash(source, sha256_file(arrived), owner)
        arrived.replace(file)
    return file


def _check_hash(source: Source, found: str, owner: str) -> None:
    if found != source.sha256:
        raise UserError(
            f"{owner}: {source.url or source.file} has sha256 {found}, but the recipe says {source.sha256}: "
            "the file has changed, so look at it before changing the hash"
        )


def _fetch(url: str, target: Path, owner: str) -> None:
    try:
        with urlopen(url, timeout=60) as response, target.open("wb") as stream:  # the recipe allows http and https only
            while piece := response.read(2**20):
                if stream.tell() + len(piece) > MAX_DOWNLOAD_BYTES:
                    raise UserError(f"{owner}: {url} is larger than {MAX_DOWNLOAD_BYTES:,} bytes, too large for a file of rows")
                stream.write(piece)
    except OSError as error:
        raise UserError(f"{owner}: {url} cannot be fetched ({error}): check the address, or try again later") from error


def _hub_rows(spec: RowSet, wanted: Collection[str]) -> Iterator[Row]:
    """The rows of a hub data set: downloaded into the hub cache, or streamed when only the first rows are taken.

    The repository's data files are fetched by huggingface_hub and read by datasets from that folder, because datasets alone
    does not find a hub cache while offline. No code of the repository runs.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from httpx import HTTPError
    from huggingface_hub import constants

    assert spec.hub is not None, "no hub id"
    split = spec.hub_split or "train"
    try:
        if spec.take is not None and not constants.HF_HUB_OFFLINE:
            rows = load_dataset(spec.hub, spec.config, split=split, revision=spec.revision, streaming=True)
        else:
            rows = load_dataset(_snapshot(spec.hub, spec.revision), spec.config, split=split, streaming=True)
        if set(wanted) <= set(rows.column_names or ()):
            rows = rows.select_columns(list(wanted))
        yield from rows
    except (OSError, ValueError, HTTPError, DatasetsError) as error:
        raise UserError(f"{spec.owner}: hub data set {spec.hub} cannot be read ({one_line(error)})") from error


def _snapshot(hub: str, revision: str | None) -> str:
    """The folder of a data set's files in the hub cache, brought up to date where the hub can be reached."""
    from httpx import TransportError
    from huggingface_hub import constants, snapshot_download

    def snapshot(offline: bool) -> str:
        folder = snapshot_download(
            hub, repo_type="dataset", revision=revision, allow_patterns=HUB_DATA_FILES, local_files_only=offline
        )
        return str(folder)

    if constants.HF_HUB_OFFLINE:
        return snapshot(offline=True)
    try:
        return snapshot(offline=False)
    except TransportError:  # snapshot_download itself falls back on the cache for a branch, but not for a commit
        return snapshot(offline=True)
