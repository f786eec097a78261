"""Token rows of another tool as prompts of the lake, with what fires on them, and the SAEs that they are about.

A run of them holds its SAEs and their features too, as every ingest of a prompt set does, so that what plain table names show of
a feature covers the new prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from saelake.analysis.meaning.explanations import KnownSae
from saelake.formats.joined import Joined
from saelake.formats.prompts import prompt_rows
from saelake.formats.spelling import Spelling
from saelake.warehouse.errors import UserError
from saelake.warehouse.landing import repeated
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import ACTIVATIONS, FEATURES, SAES, TOKENS

LONGEST = 2**15 - 1
"""Tokens of a row: positions are 16 bits."""


@dataclass(frozen=True)
class Firings:
    """What fires, one entry a non-zero."""

    row: np.ndarray
    pos: np.ndarray
    feature_id: np.ndarray
    activation: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def joined(cls, parts: Sequence["Firings"]) -> "Firings":
        """One of several, one behind another."""
        return cls(*(np.concatenate([getattr(one, field.name) for one in parts]) for field in fields(cls)))


def check_firings(firings: Firings, tokens: np.ndarray, sae: KnownSae, where: str) -> None:
    """Raises UserError unless all of it lies within the token rows and the SAE, is above 0, and comes once."""
    if not len(firings):
        raise UserError(f"{where}: it holds no activations")
    for name, values, limit in (
        ("row", firings.row, tokens.shape[0]),
        ("position", firings.pos, tokens.shape[1]),
        ("feature", firings.feature_id, sae.width),
    ):
        if values.min() < 0 or values.max() >= limit:
            wrong = int(values.max() if values.max() >= limit else values.min())
            raise UserError(
                f"{where}: there is no {name} {wrong}: {sae.sae_id} has {sae.width} features, the tokens {tokens.shape}"
            )
    if not np.isfinite(firings.activation).all():
        raise UserError(f"{where}: it has activations that are not finite numbers")
    if firings.activation.min() <= 0:
        raise UserError(f"{where}: it has activations that are not above 0, which the tables of a lake do not hold")
    place = (firings.row.astype(np.int64) * tokens.shape[1] + firings.pos) * sae.width + firings.feature_id
    place.sort()
    if (np.diff(place) == 0).any():
        raise UserError(f"{where}: an activation comes twice")


def check_tokens(tokens: np.ndarray, where: str) -> np.ndarray:
    """(rows, positions) int64 token ids; raises UserError for anything else."""
    if tokens.ndim != 2 or not tokens.size or tokens.dtype.kind not in "iu":
        raise UserError(f"{where}: its tokens are not rows of token ids")
    if tokens.shape[1] > LONGEST:
        raise UserError(f"{where}: its rows have {tokens.shape[1]:,} tokens, of which a lake holds {LONGEST:,}")
    found = tokens.astype(np.int64)
    if found.min() < 0 or found.max() >= 2**31:
        raise UserError(f"{where}: its tokens are not token ids")
    return found


def context_rows(
    first_id: int, tokens: np.ndarray, fired: Mapping[KnownSae, Firings], joined: Joined, set_name: str, spelling: Spelling
) -> list[Rows]:
    """Rows of a whole run: prompts, their tokens, the SAEs with their features, and what fires."""
    n, length = tokens.shape
    ids, inverse = np.unique(tokens, return_inverse=True)
    spelt = [spelling.text.get(int(one), f"<{one}>") for one in ids]
    named = pa.DictionaryArray.from_arrays(inverse.ravel().astype(np.int32), pa.array(spelt))
    pieces = pa.array([spelling.piece.get(int(one)) for one in ids], pa.string()).take(pa.array(inverse.ravel()))
    is_bos = np.isin(tokens, list(spelling.bos)) & (np.arange(length) == 0)
    texts = [
        "".join(spelt[i] for i, bos in zip(row, first, strict=True) if not bos)
        for row, first in zip(inverse.reshape(n, length), is_bos, strict=True)
    ]
    token_rows = {
        "prompt_id": first_id + np.repeat(np.arange(n), length),
        "pos": np.tile(np.arange(length), n),
        "token_id": tokens.ravel(),
        "token": named.cast(pa.string()),
        "piece": pieces,
        "role": np.where(is_bos.ravel(), "bos", "user"),
    }
    return [
        prompt_rows(first_id + np.arange(n), texts, set_name, labels=["other"] * n, roles=["other"] * n, n_tokens=length),
        Rows.of(TOKENS, token_rows),
        *(part for sae in fired for part in _sae_rows(joined, sae)),
        *(_activation_rows(first_id, firings, sae) for sae, firings in fired.items()),
    ]


def _activation_rows(first_id: int, firings: Firings, sae: KnownSae) -> Rows:
    columns = {
        "sae_id": repeated(sae.sae_id, len(firings)).cast(pa.string()),
        "layer": np.full(len(firings), sae.layer),
        "feature_id": firings.feature_id,
        "prompt_id": first_id + firings.row.astype(np.int64),
        "pos": firings.pos,
        "activation": firings.activation,
    }
    return Rows.of(ACTIVATIONS, columns, sae.layer)


def _sae_rows(joined: Joined, sae: KnownSae) -> list[Rows]:
    """The SAE and its features, as the study describes them."""
    con = joined.tables
    columns = "sae_id, name, layer, width, hook, hook_out, norm, declared_l0"
    one = con.sql(f"select {columns} from saes where sae_id = $1", params=[sae.sae_id]).to_arrow_table()
    columns = "sae_id, layer, feature_id, decoder_norm, threshold"
    features = con.sql(
        f"select {columns} from features where sae_id = $1 order by feature_id", params=[sae.sae_id]
    ).to_arrow_table()
    return [Rows.of(SAES, one), Rows.of(FEATURES, features, sae.layer)]
