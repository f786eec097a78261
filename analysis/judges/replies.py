"""What endpoints have replied, kept in the lake's working folder, so that nothing is asked and paid for twice."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from saelake.warehouse.durable import canonical_json, sha256_text

FOLDER = "replies"


class Reply(NamedTuple):
    """One reply, and what it cost."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class Replies:
    """The replies to one judge by the hash of what was asked; in memory alone where there is no folder. Its owner's file."""

    def __init__(self, working: Path | None, judge: str) -> None:
        self._file = None if working is None else working / FOLDER / f"{judge}.jsonl"
        self._lock = Lock()
        self._known = {key: reply for key, _, reply in _read(self._file)}

    def get(self, key: str) -> Reply | None:
        return self._known.get(key)

    def keep(self, key: str, run: str, reply: Reply) -> None:
        """Keeps a reply, and the run that paid for it: one line, written at once."""
        with self._lock:
            self._known[key] = reply
            if self._file is None:
                return
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            line = json.dumps({"key": key, "run": run, **reply._asdict()}) + "\n"
            fd = os.open(self._file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
            try:
                os.write(fd, line.encode())
            finally:
                os.close(fd)


def cost(working: Path, judges: "tuple[str, ...]", run: str) -> dict[str, dict[str, int]]:
    """Judge -> what its replies cost that this run paid for; judges that were asked nothing are left out."""
    found: dict[str, dict[str, int]] = {}
    for judge in judges:
        paid = [reply for _, by, reply in _read(working / FOLDER / f"{judge}.jsonl") if by == run]
        if paid:
            found[judge] = {
                "replies": len(paid),
                "prompt_tokens": sum(one.prompt_tokens for one in paid),
                "completion_tokens": sum(one.completion_tokens for one in paid),
            }
    return found


def key(*asked: object) -> str:
    """The hash by which a reply is known."""
    return sha256_text(canonical_json(list(asked)))


def _read(file: Path | None) -> Iterator[tuple[str, str, Reply]]:
    if file is None or not file.is_file():
        return
    for line in file.read_text("utf-8", errors="replace").splitlines():
        try:
            one = json.loads(line)
            yield one["key"], one["run"], Reply(str(one["text"]), int(one["prompt_tokens"]), int(one["completion_tokens"]))
        except (ValueError, KeyError, TypeError, RecursionError):  # cut off by a kill, in the middle of a line
            continue
