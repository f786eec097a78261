"""Where a shared set comes from: a folder, or a place that a fetcher copies into one first.

    with fetched("hf://datasets/org/name@main") as folder:
        add(lake, folder)

FETCHERS lists the schemes.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from saelake.warehouse.errors import UserError, one_line

PATTERNS = ["runs/*.json", "data/*/*.parquet"]
"""What of a set is needed to add it."""
KEY = re.compile(r"runs/[\w.-]+\.json|data/[\w.-]+/[\w.-]+\.parquet")
"""The same of a bucket's keys."""
HUB = re.compile(r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?/?")


@contextmanager
def fetched(source: str) -> Iterator[Path]:
    """A local folder with the set's files, regular ones; raises UserError for a source that is unknown or out of reach."""
    scheme, is_remote, _ = source.partition("://")
    if not is_remote:
        yield Path(source)
        return
    if scheme not in FETCHERS:
        raise UserError(f"{source}: sets are read from a folder or from {', '.join(f'{name}://' for name in FETCHERS)}")
    with tempfile.TemporaryDirectory(prefix="saelake-set-") as folder:
        FETCHERS[scheme](source, Path(folder))
        yield Path(folder)


def fetch_hub(source: str, folder: Path) -> None:
    """Fills `folder` from the hub's cache, which huggingface_hub brings up to date where the hub answers."""
    found = HUB.fullmatch(source)
    if found is None:
        raise UserError(f"{source} is not a data set of the hub: give hf://datasets/ORGANISATION/NAME, or ...NAME@REVISION")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, revision = found["repo"], found["revision"]
    try:
        snapshot = Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{source} cannot be reached ({one_line(error)}): check the name, or log in with `hf auth login`"
        ) from error
    for path in (p for pattern in PATTERNS for p in snapshot.glob(pattern)):
        blob = path.resolve()  # the cache links to its blobs
        if snapshot.parent.parent.resolve() not in blob.parents:
            raise UserError(f"{source}: {path.name} leads out of the hub's cache")
        target = folder / path.relative_to(snapshot)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(blob, target)
        except OSError:  # another file system
            shutil.copyfile(blob, target)


def fetch_bucket(source: str, folder: Path) -> None:
    """Fills `folder` from below a prefix of a bucket, with the credentials of the environment (see bucket.py)."""
    from saelake.warehouse.bucket import Bucket

    bucket = Bucket(source.rstrip("/"), folder)
    wanted = [entry for entry in bucket.entries("") if KEY.fullmatch(entry.key)]
    n_bytes, free = sum(entry.n_bytes for entry in wanted), shutil.disk_usage(folder).free
    if n_bytes > free:
        raise UserError(f"{source} has {n_bytes:,} bytes and the disk of {folder.parent} has room for {free:,}: free space")
    for entry in wanted:
        target = folder / entry.key
        target.parent.mkdir(parents=True, exist_ok=True)
        with bucket.local(entry.key) as copy:
            copy.rename(target)


FETCHERS: dict[str, Callable[[str, Path], None]] = {"hf": fetch_hub, "s3": fetch_bucket}
"""scheme -> what fills an empty folder with a set's files, from an address of that scheme."""
