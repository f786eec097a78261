"""A bucket as one listing shows it: what opens a lake does not ask for each record, pointer and size.

Small texts are read many at once, and kept in the working folder with the tag that S3 gives each content: what has not changed is
not read again.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from saelake.warehouse.bucket import Bucket
from saelake.warehouse.durable import write_atomic
from saelake.warehouse.storage import Entry
from saelake.warehouse.threads import at_once

AT_ONCE = 64
"""Requests that wait side by side."""
TEXTS = ("runs/", "current/")
KEPT = "texts.json"


class BucketSnapshot(Bucket):
    """A bucket at one moment; a text that was deleted since is absent."""

    @cached_property
    def _listing(self) -> dict[str, dict[str, Any]]:
        import obstore

        with self._opened("read") as objects:
            return {o["path"]: o for page in obstore.list(objects) for o in page}

    @cached_property
    def _texts(self) -> dict[str, str]:
        """Records and pointers."""
        file = self._work / KEPT
        kept: dict[str, list[str]] = {}
        with suppress(OSError, ValueError, RecursionError):  # none yet, or not whole
            kept = json.loads(file.read_text("utf-8"))
        tags = {key: o["e_tag"] for key, o in self._listing.items() if key.startswith(TEXTS)}
        texts = {key: kept[key][1] for key, tag in tags.items() if tag and key in kept and kept[key][0] == tag}
        new = [key for key in tags if key not in texts]
        if new:
            self._objects  # noqa: B018 - opened once, not by each thread
            read = at_once(min(AT_ONCE, len(new)), self._read_now, new)
            texts |= {key: text for key, text in zip(new, read, strict=True) if text is not None}
            with suppress(OSError):  # what cannot be kept is read again
                write_atomic(file, json.dumps({key: [tags[key], text] for key, text in texts.items()}), private=True)
        return texts

    def _read_now(self, key: str) -> str | None:
        try:
            return super().read(key)
        except FileNotFoundError:
            return None

    def read(self, key: str) -> str:
        if not key.startswith(TEXTS):
            return super().read(key)
        if key not in self._texts:
            raise FileNotFoundError(key)
        return self._texts[key]

    def exists(self, key: str) -> bool:
        return key in self._listing

    def names(self, folder: str) -> list[str]:
        below = f"{folder}/" if folder else ""
        return sorted({key.removeprefix(below).partition("/")[0] for key in self._listing if key.startswith(below)})

    def entries(self, folder: str) -> list[Entry]:
        found = (o for key, o in self._listing.items() if key == folder or not folder or key.startswith(f"{folder}/"))
        return sorted(Entry(o["path"], o["size"], o["last_modified"].timestamp()) for o in found)

    def sizes(self, keys: Sequence[str]) -> dict[str, int]:
        """Of a run that was published meanwhile, the listing may hold the record but not the files: they are asked for."""
        found = {key: self._listing[key]["size"] for key in keys if key in self._listing}
        absent = set(keys) - found.keys()
        return found | ({e.key: e.n_bytes for e in super().entries("data") if e.key in absent} if absent else {})
