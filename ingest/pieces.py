"""The pieces in which an ingest is computed, each of one prompt set."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from saelake.ingest.runs import SetRuns
from saelake.ingest.study import Study

PROMPTS_SHARD, SAE_SHARD = "prompts", "sae"


class Piece(NamedTuple):
    """What is computed at once, as it is asked of a worker: rows for shards of some runs of one prompt set."""

    set: str
    shard: str
    saes: tuple[int, ...]
    """Numbers of the SAEs; none for the prompts themselves."""


def pieces(study: Study, sets: Sequence[SetRuns], missing: Mapping[str, Sequence[str]]) -> Iterator[tuple[Piece, list[str]]]:
    """What is to be computed for the missing shards of runs (run_id -> shards), with the runs that each piece is for.

    Activations first: their shards show whether the SAEs are the right ones.
    """
    slices = [(one, shard) for one in sets for shard in one.shards(study.recipe.capture.shard_prompts)]
    for one, shard in [*slices, *((one, SAE_SHARD) for one in sets)]:
        saes = tuple(number for number, spec in one.activations.items() if shard in missing.get(spec.run_id, ()))
        if saes:
            yield Piece(one.name, shard, saes), [one.activations[number].run_id for number in saes]
    for one in sets:
        if one.prompts.run_id in missing:
            yield Piece(one.name, PROMPTS_SHARD, ()), [one.prompts.run_id]
