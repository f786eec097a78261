"""Side effects on ordinary text (R16): cross-entropy with the direction projected out, and with critical sets ablated."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from saelake import queries
from saelake.analysis.engine.interventions import Interventions
from saelake.analysis.engine.requests import Request
from saelake.analysis.engine.slices import SliceCache
from saelake.analysis.search.answers import Columns
from saelake.analysis.search.directions import chosen_everywhere
from saelake.analysis.stage import Stage, Work, searched_split
from saelake.ingest.capture import length_batches
from saelake.ingest.loading import load_tokenizer
from saelake.ingest.sources import is_here
from saelake.ingest.study import Study
from saelake.ingest.subject import Subject
from saelake.ingest.template import ChatTemplate
from saelake.ingest.texts import Text, read_texts, source_hash
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import LOSSES

LOGITS = 1 << 26
"""Numbers of logits that exist at a time: a quarter of a GiB in float32, and four times as much again for logarithms and the
unmodified model's."""


@dataclass(frozen=True)
class Condition:
    """What the texts are read under, as rows of `losses` name it; `request` is what acts, whatever prompt it names."""

    method: str
    request: Request
    donor: int | None = None
    """prompt_id of the prompt whose set it is"""


class Measured(NamedTuple):
    """What an intervention does to some texts, a mean over each one's counted tokens, in nats."""

    loss: np.ndarray
    """(n,) float32: negative log-likelihood of the token that is there."""
    kl: np.ndarray
    """(n,) float32: divergence of all that may follow from what the unmodified model expects. It sees a change where the token
    that is there is no less likely than before, and over all tokens where the first one alone tells nothing, as in reasoning."""


@torch.inference_mode()
def losses(
    subject: Subject, slices: Mapping[int, SliceCache], texts: Sequence[Text], requests: Sequence[Request]
) -> list[Measured]:
    """Of each text's counted tokens, under the interventions of each request."""
    found = [Measured(*np.empty((2, len(texts)), dtype=np.float32)) for _ in requests]
    for rows in length_batches([len(t.token_ids) for t in texts], max(1, LOGITS // subject.n_vocab)):
        batch = subject.batch([texts[i].token_ids for i in rows])
        width = batch.input_ids_bt.shape[1]
        clean_btv = subject.forward(batch, logits_to_keep=0)[:, :-1].log_softmax(-1)
        counted_b = torch.tensor([texts[i].n_counted for i in rows], device=subject.device)
        # Padding is on the left, so the counted tokens are the last ones.
        counts_bt = torch.arange(width - 1, 0, -1, device=subject.device) <= counted_b[:, None]
        for request, measured in zip(requests, found, strict=True):
            with Interventions(subject, slices, [request] * len(rows), width).at_work(batch):
                logits_btv = subject.forward(batch, logits_to_keep=0)
            kl_bt = (clean_btv.exp() * (clean_btv - logits_btv[:, :-1].log_softmax(-1))).sum(-1)
            # What is said at t is about the token at t + 1.
            nll_bt = torch.nn.functional.cross_entropy(
                logits_btv[:, :-1].flatten(0, 1), batch.input_ids_bt[:, 1:].flatten(), reduction="none"
            ).view(len(rows), width - 1)
            measured.loss[rows] = ((nll_bt * counts_bt).sum(1) / counted_b).cpu().numpy()
            measured.kl[rows] = ((kl_bt * counts_bt).sum(1) / counted_b).clamp_min(0).cpu().numpy()
    return found


def conditions(work: Work) -> list[Condition]:
    """The unmodified model, the direction projected out of every layer, and a recorded draw of critical sets."""
    context = work.context
    with work.sql("inert", "direction") as con:
        direction = chosen_everywhere(context, con)
        rows = con.execute(queries.step("loss_donors"), {"seed": work.spec.seed, "n": context.recipe.losses.sets}).fetchnumpy()
    found = [Condition("none", Request(0)), Condition("direction", Request(0, direction=direction))]
    for donor in np.unique(rows["prompt_id"]):
        mine = rows["prompt_id"] == donor
        features = context.feature_set(rows, mine)
        found.append(Condition("minimal", Request(0, features), int(donor)))
    return found


def check(study: Study) -> None:
    """Raises UserError for texts that cannot be read, as far as they can be without the network."""
    here = [spec for spec in study.recipe.losses.texts if is_here(spec)]
    template = ChatTemplate.of(load_tokenizer(study.recipe.model), study.recipe.model) if here else None
    for spec in here:
        assert template is not None, "made for them"
        read_texts(spec, template)


def _shards(study: Study) -> Sequence[str]:
    return [f"texts-{i:02d}" for i in range(len(study.recipe.losses.texts))] or ["no-texts"]


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context = work.context
    if missing == ["no-texts"]:
        yield "no-texts", []
        return
    slices = {number: SliceCache(sae, context.subject.device) for number, sae in context.saes.items()}
    asked = conditions(work)
    for name in missing:
        spec = context.recipe.losses.texts[int(name.removeprefix("texts-"))]
        texts = read_texts(spec, context.subject)
        distinct = {one.request.state: one.request for one in asked}  # different prompts may give the same set
        measured = dict(zip(distinct, losses(context.subject, slices, texts, list(distinct.values())), strict=True))
        n, repeated = len(texts), len(asked)
        columns: Columns = {
            "texts": [spec.set] * n * repeated,
            "text_number": [t.number for t in texts] * repeated,
            "text_hash": [t.text_hash for t in texts] * repeated,
            "method": [one.method for one in asked for _ in texts],
            "donor": [one.donor for one in asked for _ in texts],
            "n_features": [len(one.request.features) for one in asked for _ in texts],
            "n_context": [t.n_context for t in texts] * repeated,
            "n_tokens": [t.n_counted for t in texts] * repeated,
            "is_cut": [t.is_cut for t in texts] * repeated,
            "loss": np.concatenate([measured[one.request.state].loss for one in asked]),
            "kl": np.concatenate([measured[one.request.state].kl for one in asked]),
        }
        yield name, [Rows.of(LOSSES, columns)]


def _identity(study: Study) -> Mapping[str, object]:
    """The texts, and that those without a prompt are read without BOS, where they are."""
    texts = study.recipe.losses.texts
    without_bos = study.recipe.model.without_bos and any(spec.prompt is None for spec in texts)
    return {"texts": [source_hash(spec) for spec in texts]} | ({"without_bos": True} if without_bos else {})


STAGE = Stage(
    name="losses",
    parents=("inert", "direction", "prompts"),
    splits=searched_split,
    sections=("losses",),
    tables=("losses",),
    shards=_shards,
    compute=_compute,
    unit="sets of texts",
    code_version=2,
    identity=_identity,
)
