"""Do critical features cause the behaviour, or do they only write it out? Their direct effect on the target tokens.

A feature reaches the answer's first token on two ways. Directly: what it adds at the last token stands in the residual stream
up to the final norm and the unembedding. And through the blocks above it. So each critical feature, and each critical set, is
ablated twice: as everywhere else, and with only what it adds at the last token taken out behind the last block, where nothing can
follow but norm and unembedding. Both are measured in log-odds of the target tokens (nats). What the direct path explains of a
flip is not a cause of it that was found: it is the answer itself, read off as it is written.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
import torch

from saelake import queries
from saelake.analysis.engine.requests import DirectionEdit, Feature, FeatureSet, Request
from saelake.analysis.search.alignments import residual_rows
from saelake.analysis.search.answers import Columns, feature_columns
from saelake.analysis.search.candidates import shards_of_split
from saelake.analysis.search.ranking import log_odds
from saelake.analysis.stage import Stage, Work, searched_split
from saelake.analysis.study_context import StudyContext
from saelake.ingest.sites import Site
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import READOUT_SETS, READOUTS

AT_ONCE = 1 << 24
"""Numbers of log-probabilities that exist at a time, on the CPU: 64 MB."""
Written = Mapping[Feature, np.ndarray]
"""feature -> what one unit of its activation adds to the residual stream, (d,)"""


def answered(context: StudyContext, requests: Sequence[Request]) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of the target tokens (n,) in nats, and whether the most probable token is none of them (n,)."""
    targets, of = torch.tensor(context.subject.target_token_ids), log_odds(context.subject)
    odds, flips = np.empty(len(requests)), np.empty(len(requests), dtype=bool)
    step = max(1, AT_ONCE // context.subject.n_vocab)
    for start in range(0, len(requests), step):
        log_p_nv = context.engine.log_probabilities(requests[start : start + step]).double()
        odds[start : start + step] = of(log_p_nv).numpy()
        flips[start : start + step] = ~torch.isin(log_p_nv.argmax(-1), targets).numpy()
    return odds, flips


def at_last(
    context: StudyContext, requests: Sequence[Request], features: Sequence[Sequence[Feature]]
) -> list[dict[Feature, float]]:
    """What some features' activations are at the last token, before they are taken out, in the pass of each request."""
    every = sorted(set(chain.from_iterable(features)))
    watched = {sae: np.array([f for one, f in every if one == sae]) for sae in dict.fromkeys(sae for sae, _ in every)}
    seen = context.engine.activations(requests, watched)
    last = np.array([len(context.token_ids[r.prompt]) - 1 for r in requests], dtype=np.int64)
    kept = seen.pos == last[seen.request]
    found: list[dict[Feature, float]] = [dict.fromkeys(some, 0.0) for some in features]
    columns = (column[kept].tolist() for column in (seen.request, seen.sae, seen.feature_id, seen.activation))
    for place, sae, feature_id, activation in zip(*columns, strict=True):
        if (sae, feature_id) in found[place]:
            found[place][sae, feature_id] = activation
    return found


def directly(context: StudyContext, prompt: int, activations: Mapping[Feature, float], written: Written) -> Request:
    """The pass in which all that features add at the last token is taken out behind the last block."""
    removed = np.sum([activation * written[feature] for feature, activation in activations.items()], axis=0)
    last = Site(context.subject.n_layers - 1)
    edit = DirectionEdit(-np.asarray(removed, dtype=np.float32), (last,), project_out=False, add=1.0)
    return Request(prompt, direction=edit, positions=(len(context.token_ids[prompt]) - 1,))


def written_by(context: StudyContext, features: Sequence[Feature]) -> dict[Feature, np.ndarray]:
    """The decoder rows, where they lie in the residual stream."""
    found: dict[Feature, np.ndarray] = {}
    for number in dict.fromkeys(sae for sae, _ in features):
        ids = np.unique([f for one, f in features if one == number])
        rows = residual_rows(context, context.saes[number], ids).numpy()
        found |= {(number, f): row for f, row in zip(ids.tolist(), rows, strict=True)}
    return found


def unembedding_cosines(context: StudyContext, written: Written) -> dict[Feature, float]:
    """The largest cosine of a decoder row with the unembedding's row of a target token."""
    unembedding = context.subject.model.get_output_embeddings().weight.detach()
    head = unembedding[list(context.subject.target_token_ids)].float().cpu().numpy()
    targets = head / np.linalg.norm(head, axis=1, keepdims=True)
    return {
        feature: float((targets @ row).max() / max(np.linalg.norm(row), np.finfo(np.float32).tiny))
        for feature, row in written.items()
    }


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context, shards = work.context, shards_of_split(work.context.study, "readouts")
    with work.sql() as con:
        for name in missing:
            prompts = context.prompt_ids[list(shards[name])].tolist()
            rows = con.execute(queries.step("prompts_critical"), {"prompts": prompts}).fetchall()
            sets: dict[tuple[int, str, int], list[Feature]] = {}
            for prompt_id, method, start, sae_id, feature_id in rows:
                sets.setdefault((context.number_of[prompt_id], method, start), []).append(
                    (context.sae_number[sae_id], feature_id)
                )
            yield name, _rows(context, sets) if sets else []


def _rows(context: StudyContext, sets: Mapping[tuple[int, str, int], list[Feature]]) -> list[Rows]:
    ones = list(dict.fromkeys((prompt, f) for (prompt, *_), found in sets.items() for f in found))
    written = written_by(context, [f for _, f in ones])
    cosines = unembedding_cosines(context, written)
    prompts = list(dict.fromkeys(prompt for prompt, *_ in sets))
    clean = dict(zip(prompts, answered(context, [Request(prompt) for prompt in prompts])[0].tolist(), strict=True))

    def effects(asked: Sequence[tuple[int, Sequence[Feature]]]) -> tuple[Columns, list[dict[Feature, float]]]:
        whole = [Request(p, FeatureSet.ablating(some)) for p, some in asked]
        activations = at_last(context, whole, [some for _, some in asked])
        direct = [directly(context, p, found, written) for (p, _), found in zip(asked, activations, strict=True)]
        (ablated, flips), (left, direct_flips) = answered(context, whole), answered(context, direct)
        before = np.array([clean[p] for p, _ in asked])
        columns = {"clean": before, "ablated": ablated, "direct": left, "flips": flips, "direct_flips": direct_flips}
        return columns | {"prompt_id": context.prompt_ids[[p for p, _ in asked]]}, activations

    of_ones, activations = effects([(prompt, [f]) for prompt, f in ones])
    of_sets, _ = effects([(prompt, found) for (prompt, *_), found in sets.items()])
    features: Columns = {
        **feature_columns(context, [f for _, f in ones]),
        "cosine": [cosines[f] for _, f in ones],
        "activation": [found[f] for (_, f), found in zip(ones, activations, strict=True)],
    }
    named: Columns = {"method": [method for _, method, _ in sets], "start": [start for *_, start in sets]}
    return [Rows.of(READOUTS, {**features, **of_ones}), Rows.of(READOUT_SETS, {**named, **of_sets})]


STAGE = Stage(
    name="readouts",
    parents=("inert", "prompts"),
    splits=searched_split,
    sections=("candidates", "capture"),
    tables=("readouts", "readout_sets"),
    shards=lambda study: list(shards_of_split(study, "readouts")),
    compute=_compute,
)
