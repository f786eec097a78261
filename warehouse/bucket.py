"""A lake's published runs in a bucket of object storage, S3 or what speaks its protocol: `--lake s3://bucket/prefix`.

Credentials, region and endpoint are found as other S3 clients find them (access.py).
"""

import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb

from saelake.extras import require
from saelake.warehouse.access import Access
from saelake.warehouse.durable import aside, living, make_private
from saelake.warehouse.errors import UserError, one_line
from saelake.warehouse.literals import literal
from saelake.warehouse.storage import Entry

URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>[^?*\[\]]*?))?/?")


class Bucket:
    """Everything below a prefix of a bucket. An object is there whole or not at all; nothing is ever renamed.

    Args:
        url: s3://bucket/prefix
        work: a local folder for what is about to be uploaded, or read.
    """

    grace_seconds = 24 * 60 * 60.0
    """Longer than an upload from another machine, whose locks are not seen here."""

    def __init__(self, url: str, work: Path) -> None:
        parts = URL.fullmatch(url)
        if not parts:
            raise UserError(f"{url!r} is not the address of a lake on S3: write s3://bucket/prefix")
        self._bucket, self._prefix = parts["bucket"], parts["prefix"] or ""
        self._work = work

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    @cached_property
    def _objects(self) -> Any:
        require("s3", "a lake on S3")
        from obstore.store import S3Store

        access = self._access
        settings: dict[str, Any] = {"region": access.region}
        if access.endpoint:
            settings |= {"endpoint": access.endpoint}
        if access.is_anonymous:
            settings |= {"skip_signature": True}
        else:
            settings |= {"credential_provider": access.for_obstore}
        return S3Store(
            self._bucket,
            prefix=self._prefix or None,
            client_options={"allow_http": True},
            retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=30)},
            **settings,
        )

    @cached_property
    def _access(self) -> Access:
        return Access.found(self.url)

    @contextmanager
    def _opened(self, what: str) -> Iterator[Any]:
        """The bucket; what it refuses becomes a UserError."""
        objects = self._objects
        from obstore.exceptions import AlreadyExistsError, BaseError

        try:
            yield objects
        except AlreadyExistsError:
            raise
        except (BaseError, PermissionError) as error:
            reason = one_line(error)
            raise UserError(
                f"cannot {what} {self.url}: {reason}; check AWS_ENDPOINT_URL, AWS_REGION, the credentials and that the bucket "
                f"exists, and run the same command again"
            ) from error

    def read(self, key: str) -> str:
        import obstore

        with self._opened("read") as objects:
            return bytes(obstore.get(objects, key).bytes()).decode(errors="replace")

    def exists(self, key: str) -> bool:
        import obstore

        with self._opened("read") as objects:
            try:
                obstore.head(objects, key)
            except FileNotFoundError:
                return False
            return True

    def create(self, key: str, text: str) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._opened("write to") as objects:
            try:
                obstore.put(objects, key, text.encode(), mode="create")  # If-None-Match: *
            except AlreadyExistsError:
                return False
            return True

    def write(self, key: str, text: str) -> None:
        import obstore

        with self._opened("write to") as objects:
            obstore.put(objects, key, text.encode())

    def names(self, folder: str) -> list[str]:
        import obstore

        with self._opened("read") as objects:
            found = obstore.list_with_delimiter(objects, folder)
        keys = [*found["common_prefixes"], *(o["path"] for o in found["objects"])]
        return sorted(key.rsplit("/", 1)[-1] for key in keys)

    def entries(self, folder: str) -> list[Entry]:
        import obstore

        with self._opened("read") as objects:
            found = [o for page in obstore.list(objects, folder) for o in page]
            if not found and folder:
                with suppress(FileNotFoundError):
                    found = [obstore.head(objects, folder)]
        return sorted(Entry(o["path"], o["size"], o["last_modified"].timestamp()) for o in found)

    def sizes(self, keys: Sequence[str]) -> dict[str, int]:
        wanted = set(keys)
        return {e.key: e.n_bytes for e in self.entries("data") if e.key in wanted} if wanted else {}

    def unused(self, folder: str) -> str:
        return f"{folder}-{uuid.uuid4().hex[:8]}"  # two machines may publish the same run at once: each into its own folder

    @contextmanager
    def new_folder(self, key: str) -> Iterator[Path]:
        import obstore

        draft = aside(self._work / key)
        draft.mkdir(parents=True)
        try:
            yield draft
            for path in sorted(p for p in draft.rglob("*") if p.is_file()):
                with self._opened("write to") as objects:
                    obstore.put(objects, f"{key}/{path.relative_to(draft).as_posix()}", path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    @contextmanager
    def local(self, key: str) -> Iterator[Path]:
        import obstore

        copy = aside(self._work / Path(key).name)
        self._work.mkdir(parents=True, exist_ok=True)
        try:
            make_private(copy)
            with living(copy):  # gc leaves it alone
                with self._opened("read") as objects, copy.open("wb") as file:
                    for piece in obstore.get(objects, key):
                        file.write(piece)
                yield copy
        finally:
            copy.unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        import obstore

        keys = [e.key for e in self.entries(key)] or [key]
        with self._opened("delete from") as objects:
            obstore.delete(objects, keys)

    def prepare(self, con: duckdb.DuckDBPyConnection) -> None:
        con.execute(f"load {literal(str(_httpfs()))}")
        self._let_in(con)
        con.execute("set global enable_http_metadata_cache = true")  # published files never change

    def renew(self, con: duckdb.DuckDBPyConnection) -> None:
        if self._access.is_new(con):
            self._let_in(con)

    def _let_in(self, con: duckdb.DuckDBPyConnection) -> None:
        access = self._access
        settings = {"type": "s3", "scope": literal(f"s3://{self._bucket}"), "region": literal(access.region)}
        if access.endpoint:
            scheme, _, host = access.endpoint.rstrip("/").rpartition("://")
            settings |= {"endpoint": literal(host), "url_style": "'path'", "use_ssl": str(scheme != "http").lower()}
        settings |= {name: literal(value) for name, value in access.for_duckdb(con).items()}
        listed = ", ".join(f"{name} {value}" for name, value in settings.items())
        con.execute(f"create or replace temporary secret saelake ({listed})")


def _httpfs() -> Path:
    """DuckDB's extension that reads S3, as its wheel brings it: nothing is downloaded."""
    require("s3", "a lake on S3")
    spec = find_spec("duckdb_extension_httpfs")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "extensions" / f"v{duckdb.__version__}" / "httpfs.duckdb_extension"
    if not path.is_file():
        raise UserError(f"duckdb-extension-httpfs is not for DuckDB {duckdb.__version__}: install the version of that number")
    return path
