"""How the token ids of a source read, and whether they are of the study's tokenizer.

The lake's own tokens say how an id reads; of those that it has never seen, a tokenizer that is named, or the source itself. Where
both know an id they must agree: else the ids are of another tokenizer, and every text of theirs would be another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from saelake import queries
from saelake.formats.joined import Joined
from saelake.formats.models import known_shape
from saelake.warehouse.errors import UserError


@dataclass(frozen=True)
class Spelling:
    """How token ids read."""

    text: Mapping[int, str]
    piece: Mapping[int, str | None]
    bos: frozenset[int]


def spelling_of(
    joined: Joined, tokenizer: str | None, tokens: np.ndarray, owner: str, told: Mapping[int, str] | None = None
) -> Spelling:
    """How the token ids of a source read.

    Args:
        tokenizer: a folder or an id of the hub, which a person names.
        told: token id -> piece, where the source says so itself.
    Raises UserError for ids of another tokenizer than the study's, as far as what is known of it shows.
    """
    rows = joined.ask(queries.step("spelt_tokens"))
    known = Spelling({row[0]: row[1] for row in rows}, {row[0]: row[2] for row in rows}, frozenset(r[0] for r in rows if r[3]))
    used, shape = np.unique(tokens), known_shape(joined)
    if shape and used[-1] >= shape.d_vocab:
        raise UserError(
            f"{owner}: it has the token {used[-1]}, and the model of {joined.name} knows {shape.d_vocab}: "
            f"it is of another tokenizer"
        )
    if told is not None:
        _check(known, told, f"{owner}: its tokenizer", joined)
        known = _with(known, {i: piece for i, piece in told.items() if i not in known.text}, {})
    if tokenizer is None:
        return known
    return _by_tokenizer(known, tokenizer, [int(one) for one in used], owner, joined)


def _by_tokenizer(known: Spelling, tokenizer: str, used: Sequence[int], owner: str, joined: Joined) -> Spelling:
    from saelake.extras import require

    require("compute", "--tokenizer", "transformers")
    from saelake.ingest.loading import load_tokenizer
    from saelake.ingest.recipe import ModelSpec
    from saelake.ingest.spelling import Spelling as Vocabulary

    place = Path(tokenizer)
    found = load_tokenizer(ModelSpec(path=place) if place.is_dir() else ModelSpec(id=tokenizer))
    n = len(found)
    if used[-1] >= n:
        raise UserError(f"{owner}: it has the token {used[-1]}, and the tokenizer {tokenizer} knows {n}: it is of another one")
    ids = sorted({*used, *(i for i in known.text if i < n)})
    pieces = dict(zip(ids, found.convert_ids_to_tokens(ids), strict=True))
    if beyond := [i for i in known.text if i >= n]:
        raise UserError(f"--tokenizer {tokenizer} knows {n} tokens, and {joined.name} has the token {beyond[0]}: it is another's")
    _check(known, pieces, f"--tokenizer {tokenizer}", joined)
    new = [i for i in used if i not in known.text]
    return _with(known, {i: pieces[i] for i in new}, dict(zip(new, Vocabulary(found).texts(new), strict=True)))


def _check(known: Spelling, pieces: Mapping[int, str], what: str, joined: Joined) -> None:
    """Raises UserError where an id reads otherwise in the study."""
    for i, piece in pieces.items():
        ours = known.piece.get(i)
        if ours is not None and ours != piece:
            raise UserError(
                f"{what} spells token {i} as {piece[:40]!r}, and that of {joined.name} as {ours[:40]!r}: it is another"
            )


def _with(known: Spelling, pieces: Mapping[int, str], texts: Mapping[int, str]) -> Spelling:
    """The same with further ids; what has no text of its own reads as its piece."""
    return replace(known, text={**pieces, **texts, **known.text}, piece={**pieces, **known.piece})
