"""Edits as a person lists them: which feature of which SAE is held at which value, and at which positions.

A list, a select, or a file of rows with the columns sae (an sae_id or a layer), feature, value and positions.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from saelake.analysis.engine.asked import ANSWER, Clamp, Positions, interventions, resolved
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.ingest.loading import load_tokenizer
from saelake.ingest.rows import read_rows, rows_suffix
from saelake.ingest.saes.refs import SaeRef, layer_of
from saelake.ingest.study import Study
from saelake.ingest.template import ChatTemplate
from saelake.ingest.tokenized import Tokenized
from saelake.queries import QueryError
from saelake.queries.features import LISTED, as_select, resolve
from saelake.queries.parameters import Parameter
from saelake.queries.statements import check_reads, check_reads_tables
from saelake.warehouse import arguments
from saelake.warehouse.durable import sha256_text
from saelake.warehouse.errors import UserError
from saelake.warehouse.literals import as_id, as_integer, is_unicode

ASKED = Parameter("features", "features", False, None, "which features")
Features = str | Sequence[tuple[int, int]]
"""How a person lists features: `layer:feature_id,...` (or `sae_id:feature_id`), pairs of both, a select, or the name of a table
or of a file of rows. Tables, selects and files have the columns sae (or sae_id, or layer) and feature (or feature_id), and may
have value and positions."""
ROLES = ("bos", "template", "system", "user", "assistant", ANSWER)
GIVEN = "given_edits"
Row = Mapping[str, Any]


class NoFeature(UserError):
    """What is listed names no feature."""


@dataclass(frozen=True, eq=False)
class EditSet:
    """Features held at values, each at positions of its own."""

    features: FeatureSet
    positions: tuple[str | None, ...] = ()
    """Of each row of `features`: positions and roles, joined by commas; None: everywhere. Empty: everywhere all of them."""

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, float, str | None]]) -> "EditSet":
        """From rows of number of the SAE, feature_id, value and positions.

        Raises UserError for a feature that is to be held in two ways.
        """
        rows = sorted(set(rows), key=lambda row: row[:2])
        if twice := next((b[:2] for a, b in pairwise(rows) if a[:2] == b[:2]), None):
            sae = f"layer {layer_of(twice[0])}"
            raise UserError(f"edits: feature {twice[1]} of {sae} is named with two values or positions: give it one of each")
        held = FeatureSet.of([n for n, *_ in rows], [i for _, i, *_ in rows], [value for *_, value, _ in rows])
        places = tuple(place for *_, place in rows)
        return cls(held, places if any(place is not None for place in places) else ())

    def __len__(self) -> int:
        return len(self.features)

    @property
    def rows(self) -> np.ndarray:
        """As of a FeatureSet."""
        return self.features.rows

    @property
    def places(self) -> list[str | None]:
        """The positions of each row."""
        return list(self.positions) or [None] * len(self)

    @cached_property
    def content(self) -> str:
        """A hash of all that it says."""
        rows = self.rows.tolist()
        return sha256_text(
            str([(*row, place) for row, place in zip(rows, self.positions, strict=True)] if self.positions else rows)
        )

    @property
    def key(self) -> int:
        """63 bits that stand for the content, as of a FeatureSet."""
        return int(self.content[:16], 16) >> 1 if self.positions else self.features.key

    def request(self, number: int, encoded: Callable[[int], Tokenized]) -> Request:
        """The request of prompt `number`; raises UserError for a position or role that it does not have."""
        if not self.positions:
            return Request(number, self.features)
        edits = []
        for place in dict.fromkeys(self.positions):
            chosen = self.rows[[one == place for one in self.positions]]
            edits.append((Clamp(0, [], 0.0, read_positions(place)), FeatureSet(chosen)))
        return Request(number, then=interventions(edits, encoded(number), number))


def listed_edits(
    con: duckdb.DuckDBPyConnection,
    saes: Mapping[int, SaeRef],
    features: Features,
    value: float = 0.0,
    positions: str | None = None,
) -> EditSet:
    """What is listed, of SAEs by their numbers, which the connection shows.

    Args:
        value, positions: of features whose rows do not say their own.
    Raises UserError if there are none, and for values and positions that are none, QueryError for what is no feature.
    """
    _check_value(value, "value")
    if positions is not None:
        read_positions(positions)
    rows = _rows(con, features)
    if not rows:
        raise NoFeature("features names no feature at all, so nothing would be ablated: give LAYER:ID,... or rows that name some")
    number = {ref.sae_id: n for n, ref in saes.items()}
    alone = {ref.layer: n for n, ref in saes.items()}  # of a layer with several, `resolve` has asked for the sae_id
    found = []
    for place, row in enumerate(rows, start=1):
        held = value if row.get("value") in (None, "") else _check_value(row["value"], f"row {place}: value")
        where = positions if row.get("positions") in (None, "") else _positions_text(row["positions"])
        sae = row["sae"]
        found.append((alone[int(sae)] if _is_layer(sae) else number[sae], int(row["feature"]), held, where))
    return EditSet.of(found)


def is_select(features: Features) -> bool:
    """Whether the lake's tables name them: not by a list, and not by a file."""
    return isinstance(features, str) and not LISTED.fullmatch(features) and rows_suffix(features.strip()) is None


def read_positions(text: str | None) -> Positions:
    """Positions as edits take them, from text: numbers from either end and roles, joined by commas; None: everywhere."""
    if text is None:
        return None
    found: list[int | str] = []
    for part in text.split(","):
        word = part.strip()
        if (number := as_integer(word)) is not None:
            found.append(number)
        elif word in ROLES:
            found.append(word)
        else:
            raise UserError(f"positions: {word[:40]!r} is neither a position, as 0 or -1, nor one of {', '.join(ROLES)}")
    return found


def check_positions(places: Iterable[str | None], study: Study, prompts: Sequence[int]) -> None:
    """Raises UserError where one of the prompts lacks a position or role; nothing is loaded but the tokenizer."""
    wanted = [place for place in dict.fromkeys(places) if place is not None]
    if not wanted:
        return
    template = ChatTemplate.of(load_tokenizer(study.recipe.model), study.recipe.model)
    for number, prompt in zip(prompts, template.encode_all([study.prompts[p].asked for p in prompts]), strict=True):
        for place in wanted:
            resolved(read_positions(place), None, prompt, number)


MAY_HAVE = ("value", "positions")
"""Columns of an edit that need not be there, so that nobody would miss one whose name has a slip."""


def _rows(con: duckdb.DuckDBPyConnection, features: Features) -> list[Row]:
    """Rows with the keys sae and feature, checked to be features of the study's SAEs, and maybe value and positions."""
    if not isinstance(features, str) or LISTED.fullmatch(features):
        named = resolve(con, ASKED, features)
        _check_once(features, named)
        return [{"sae": sae_id, "feature": i} for (_, sae_id), ids in named.items() for i in ids]
    if rows_suffix(features.strip()) is not None:
        rows = _resolved(con, [_named(row) for row in read_rows(Path(features.strip()), "edits")])
        first: dict[str, int] = {}
        for place, row in enumerate(rows, start=1):
            if (before := first.setdefault(str(row), place)) < place:
                raise UserError(f"edits: row {place} is row {before} once more, feature {row['feature']}")
        return rows
    select = _with_names(con, features.strip().rstrip(";"))
    resolve(con, ASKED, select)
    source = con.sql(f"from ({as_select(select)}\n)")
    return [_named(dict(zip(source.columns, row, strict=True))) for row in source.fetchall()]


def _check_once(features: Features, named: Mapping[tuple[int, str], Sequence[int]]) -> None:
    """Raises UserError where a list names a feature twice; a select names a set, whose rows may repeat."""
    parts = features.split(",") if isinstance(features, str) else [f"{of}:{i}" for of, i in features]
    given = [part.strip() for part in parts if part.strip()]
    if len(given) > sum(map(len, named.values())):
        twice = next((one for one in given if given.count(one) > 1), None)
        raise UserError(f"features names {twice} twice" if twice else "features names a feature twice, in two ways")


def _with_names(con: duckdb.DuckDBPyConnection, given: str) -> str:
    """A select, or the name of a table, with the columns sae and feature by their names in tables."""
    select = as_select(given)
    try:
        check_reads(select)
        check_reads_tables(con, select)
        columns = con.sql(f"from ({select}\n) limit 0")
    except (QueryError, duckdb.Error):
        return given  # which `resolve` refuses, with what it is about
    kinds = dict(zip(columns.columns, map(str, columns.types), strict=True))
    renamed = {"feature": "feature_id", "sae": "layer" if "INT" in kinds.get("sae", "") else "sae_id"}
    new = [f'"{name}" as {to}' for name, to in renamed.items() if name in kinds and to not in kinds]
    kept = [f'"{name}"' for name in kinds if name not in renamed]
    return f"select {', '.join([*new, *kept])} from ({select}\n)" if new else given


def _named(row: Row) -> Row:
    """The row with the keys sae and feature; raises UserError for a column that is nearly `value` or `positions`."""
    for name in row:
        if name not in MAY_HAVE and (meant := get_close_matches(name, MAY_HAVE, n=1, cutoff=0.75)) and meant[0] not in row:
            raise UserError(f"edits: {name!r} is not a column that is read (did you mean {meant[0]!r}?)")
    sae = next((row[name] for name in ("sae", "sae_id", "layer") if row.get(name) not in (None, "")), None)
    feature = next((row[name] for name in ("feature", "feature_id") if row.get(name) not in (None, "")), None)
    if sae is None or feature is None:
        raise UserError(f"edits: a row needs the columns sae and feature, and has {', '.join(row)}")
    return {"sae": sae, "feature": feature, "value": row.get("value"), "positions": row.get("positions")}


def _resolved(con: duckdb.DuckDBPyConnection, rows: list[Row]) -> list[Row]:
    """The rows of a file, checked as those of a select are."""
    ids = [_feature(row["feature"]) for row in rows]
    if halved := [row["sae"] for row in rows if not is_unicode(str(row["sae"]))]:
        raise UserError(f"edits: the SAE {halved[0]!r} is half of a character")
    for key, kind in (("layer", pa.int64()), ("sae_id", pa.string())):
        mine = [i for i, row in enumerate(rows) if _is_layer(row["sae"]) == (key == "layer")]
        saes = [int(rows[i]["sae"]) if key == "layer" else str(rows[i]["sae"]) for i in mine]
        if mine:
            table = pa.table({key: pa.array(saes, kind), "feature_id": pa.array([ids[i] for i in mine], pa.int64())})
            con.register(GIVEN, table)
            resolve(con, ASKED, GIVEN)
            con.unregister(GIVEN)
    return [{**row, "feature": i} for row, i in zip(rows, ids, strict=True)]


def _feature(given: Any) -> int:
    """The number of a feature, or one that no feature has, such as -1."""
    text = str(given).strip()
    if (found := as_integer(text)) is None:
        raise UserError(f"edits: feature is a whole number, not {text[:40]!r}")
    return found


def _is_layer(sae: Any) -> bool:
    return as_id(str(sae).strip()) is not None


def _check_value(value: Any, what: str) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not abs(found) <= arguments.LARGEST:
        raise UserError(f"edits: {what} is a finite number, not {str(value)[:40]!r}")
    return found


def _positions_text(given: Any) -> str:
    """Positions as text, from a number, a text or a list of both; raises UserError for what is none."""
    parts = given if isinstance(given, list | tuple) else [given]
    text = ",".join(str(part).replace(" ", "") for part in parts)
    read_positions(text)
    return text
