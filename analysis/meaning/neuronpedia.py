"""Neuronpedia's explanations over HTTP: one feature from its API, or all of a source from its bulk files (R20).

    GET {base}/api/feature/{model}/{source}/{index}                    404: no such feature
    GET {bulk}/?list-type=2&prefix=v1/{model}/{source}/explanations/   an S3 listing of batch-N.jsonl.gz

Polite: a few requests a second, and after an error longer and longer pauses. What comes back is checked against what was asked.
"""

import gzip
import html
import io
import json
import re
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from saelake.ingest.saes.labels import Directory, Place
from saelake.warehouse.errors import UserError
from saelake.warehouse.literals import as_id

ATTEMPTS = 6
FIRST_PAUSE = 1.0
"""Seconds after the first failure; each further pause is twice as long."""
LONGEST_PAUSE = 120.0
TIMEOUT = 30.0
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
MAX_BYTES = 512 * 2**20
"""Of one answer, unpacked: what is larger is not a list of explanations."""
MAX_ROWS, MAX_ROW = 2**20, 2**22
"""Of one bulk file, and bytes of one of its rows."""
INCOMPLETE = (OSError, EOFError, HTTPException, zlib.error, ValueError, RecursionError)
"""What a cut or garbled answer raises; a ValueError is JSON's or Unicode's, a RecursionError JSON's."""


class Explanation(NamedTuple):
    """One public explanation of a feature."""

    feature_id: int
    description: str
    method: str | None
    explainer: str | None


@dataclass
class Client:
    """Asks one server, no faster than it is allowed to; `sleep` and `clock` are given by tests."""

    per_second: float
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    timeout: float = TIMEOUT
    _next: float = field(default=float("-inf"), init=False)

    def get(self, url: str, read: Callable[[bytes], Any] = json.loads) -> Any:
        """What `read` makes of the answer's body; None where the server says that there is no such thing (404).

        Whatever may pass by itself is tried again. Raises UserError when it does not pass, and for a final refusal.
        """
        pause = FIRST_PAUSE
        for attempt in range(1, ATTEMPTS + 1):
            self._wait_for_turn()
            try:
                return read(self._body(url))
            except HTTPError as error:
                error.close()
                if error.code == 404:
                    return None
                problem = f"it answers {error.code}"
                if error.code not in TRANSIENT:
                    raise UserError(f"{url} cannot be read: {problem}") from error
                asked = error.headers.get("Retry-After", "")
                pause = max(pause, float(asked)) if asked.isascii() and asked.isdecimal() else pause
            except URLError as error:
                problem = str(error.reason)
            except INCOMPLETE as error:
                problem = f"its answer is not a complete one: {error}" if str(error) else type(error).__name__
            if attempt < ATTEMPTS:
                self.sleep(min(pause, LONGEST_PAUSE))
                pause *= 2
        raise UserError(
            f"{url} cannot be read: {problem}, {ATTEMPTS} times; what came so far is kept, the same command continues"
        )

    def _wait_for_turn(self) -> None:
        if (early := self._next - self.clock()) > 0:
            self.sleep(early)
        self._next = max(self.clock(), self._next) + 1 / self.per_second

    def _body(self, url: str) -> bytes:
        with urlopen(Request(url, headers={"User-Agent": "saelake"}), timeout=self.timeout) as response:
            body: bytes = response.read(MAX_BYTES + 1)
            n_missing = int(response.headers.get("Content-Length") or len(body)) - len(body)
        if n_missing:
            raise ValueError(f"{n_missing} bytes are missing")
        return body


def of_feature(
    client: Client, base_url: str, source: str, feature_id: int, sae: Place | None, known: Directory
) -> list[Explanation]:
    """The explanations of one feature; none if Neuronpedia has none, or does not have the feature.

    Raises UserError if the answer is about another feature, or says that it is of another SAE than `sae`.
    """
    model, layer = source.split("/", 1)
    url = f"{base_url}/api/feature/{quote(model)}/{quote(layer)}/{feature_id}"
    answer = client.get(url)
    if answer is None:
        return []
    if not isinstance(answer, dict):
        raise UserError(f"{url} answers with something else than a feature: check explanations.base_url")
    _check_is(answer, url, model, layer, feature_id)
    described = answer.get("source") if isinstance(answer.get("source"), dict) else {}
    assert isinstance(described, dict)
    place = Place(str(described.get("hfRepoId")), str(described.get("hfFolderId")))
    if sae is not None and place != sae and place in known.places.values():
        raise UserError(
            f"{url} is of {place.repository}/{place.folder}, not of {sae.repository}/{sae.folder}: its labels would be wrong"
        )
    found = answer.get("explanations") or []
    return [one for row in found if isinstance(row, dict) and (one := explanation_of(row, feature_id)) is not None]


def batches(client: Client, bulk_url: str, source: str) -> list[str]:
    """The bulk files of a source, by key; raises UserError if there are none."""
    model, layer = source.split("/", 1)
    prefix = quote(f"v1/{model}/{layer}/explanations/", safe="")
    keys: list[str] = []
    token = ""
    while True:
        more = f"&continuation-token={quote(token, safe='')}" if token else ""
        page = client.get(f"{bulk_url}/?list-type=2&prefix={prefix}{more}", _listing) or ""
        keys += [html.unescape(key) for key in re.findall(r"<Key>([^<]*)</Key>", page)]
        following = re.search(r"<NextContinuationToken>([^<]*)</NextContinuationToken>", page)
        if following is None:
            break
        token = html.unescape(following[1])
    files = [key for key in keys if key.endswith(".jsonl.gz")]
    if not files:
        raise UserError(f"{bulk_url} has no explanations of {source}: ask its API instead (--source neuronpedia)")
    return sorted(files, key=lambda key: (len(key), key))  # batch-2 before batch-10


def of_batch(client: Client, bulk_url: str, source: str, key: str) -> list[Explanation]:
    """The explanations in one bulk file; raises UserError for a row about another source."""
    model, layer = source.split("/", 1)
    url = f"{bulk_url}/{quote(key)}"
    rows = client.get(url, lambda body: list(rows_of_batch(body)))
    if rows is None:
        raise UserError(f"{url} is listed but not there: try again later")
    found = []
    for number, row in enumerate(rows, start=1):
        feature_id = feature_of(row, f"{url}, row {number}")
        _check_is(row, f"{url}, row {number},", model, layer, feature_id)
        if (one := explanation_of(row, feature_id)) is not None:
            found.append(one)
    return found


def feature_of(row: Any, where: str) -> int:
    """The feature that a row of a bulk file is about; raises UserError if it names none."""
    found = as_id(str(row.get("index"))) if isinstance(row, dict) else None
    if found is None:
        raise UserError(f"{where}: it names no feature")
    return found


def _listing(body: bytes) -> str:
    page = body.decode()
    if "</ListBucketResult>" not in page:
        raise ValueError("it is not a listing")
    return page


def rows_of_batch(body: bytes) -> Iterator[Any]:
    """The rows of a .jsonl.gz file; raises what INCOMPLETE lists for a cut or garbled one."""
    n_bytes = n_rows = 0
    with gzip.GzipFile(fileobj=io.BytesIO(body)) as unpacked:
        while line := unpacked.readline(MAX_ROW):
            n_bytes, n_rows = n_bytes + len(line), n_rows + 1
            if n_bytes > MAX_BYTES or n_rows > MAX_ROWS or len(line) == MAX_ROW:
                raise ValueError(f"it unpacks to more than {MAX_BYTES:,} bytes, {MAX_ROWS:,} rows, or {MAX_ROW:,} bytes a row")
            if line.strip():
                yield json.loads(line)


def _check_is(row: dict[str, Any], where: str, model: str, layer: str, feature_id: int) -> None:
    """Raises UserError unless a row is about the feature that was asked for; its index may be a number or its text."""
    named = (str(row.get("modelId")), str(row.get("layer")), str(row.get("index")))
    if named != (model, layer, str(feature_id)):
        raise UserError(f"{where} is about {'/'.join(named)}, not about {model}/{layer}/{feature_id}: its labels would be wrong")


def explanation_of(row: dict[str, Any], feature_id: int) -> Explanation | None:
    """A row's explanation; None if it is blank."""
    description = _text(row.get("description"))
    if description is None:
        return None
    return Explanation(feature_id, description, _text(row.get("typeName")), _text(row.get("explanationModelName")))


def _text(value: object) -> str | None:
    """A text with something in it, without halves of characters (JSON can spell those)."""
    if not isinstance(value, str) or not value.strip():
        return None
    return value.strip().encode("utf-8", "replace").decode()
