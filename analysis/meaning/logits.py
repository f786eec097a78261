"""Which tokens each feature's decoder row promotes and suppresses, read through the model's own final norm and unembedding.

A row is handed to what follows the last block, as if the residual stream were that row alone. What of the logits comes without
any row (biases of the norm or the unembedding) is taken off. The norm sets the row's length, so that only its direction counts:
logits of one feature are to be compared with one another, not with those of a pass.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from saelake.analysis.engine.prefix import resumed
from saelake.analysis.search.alignments import to_residual
from saelake.analysis.stage import Stage, Work
from saelake.analysis.study_context import StudyContext
from saelake.ingest.saes.sae import Sae
from saelake.ingest.subject import Subject
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import FEATURE_LOGITS, LOGIT_MOMENTS

N_TOKENS = 10
"""Kept of the most promoted, and as many of the most suppressed."""
AT_ONCE = 1 << 24
"""Logits that exist at a time: 64 MB."""


def logits_of(subject: Subject, rows_nd: Tensor) -> Tensor:
    """(n, v) float32: the logits of residual streams that are these rows alone, less those of none."""
    some_token = subject.target_token_ids[0]
    states_bd = torch.cat([rows_nd, rows_nd.new_zeros(1, rows_nd.shape[1])]).to(subject.device, subject.dtype)
    with resumed(subject, subject.n_layers - 1, states_bd[:, None]):
        logits_bv = subject.forward(subject.batch([[some_token]] * len(states_bd)))
    return logits_bv[:-1] - logits_bv[-1]


def moments(logits_nv: Tensor) -> dict[str, np.ndarray]:
    """Mean, standard deviation, skewness and excess kurtosis (n,) of each row, as of a whole population."""
    mean_n1 = logits_nv.mean(dim=1, keepdim=True)
    sd_n1 = logits_nv.std(dim=1, keepdim=True, correction=0)
    z_nv = (logits_nv - mean_n1) / sd_n1
    found = {"mean": mean_n1[:, 0], "sd": sd_n1[:, 0], "skewness": z_nv.pow(3).mean(1), "kurtosis": z_nv.pow(4).mean(1) - 3}
    return {name: column_n.numpy() for name, column_n in found.items()}


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context = work.context
    known = np.unique(np.fromiter(context.subject.tokenizer.get_vocab().values(), dtype=np.int64))
    step = max(1, AT_ONCE // context.subject.n_vocab)
    for name in missing:
        sae = context.saes[context.study.sae_shards[name]]
        yield name, [rows for start in range(0, sae.width, step) for rows in _rows(context, sae, known, start, start + step)]


def _rows(context: StudyContext, sae: Sae, known: np.ndarray, start: int, stop: int) -> list[Rows]:
    """Of some features of an SAE; a decoder row of zeros has no direction, and no row here."""
    rows_nd, projection = sae.W_dec[start:stop].float(), to_residual(context, sae)
    rows_nd = rows_nd if projection is None else rows_nd.to(projection.device) @ projection
    ids = torch.arange(start, start + len(rows_nd))[rows_nd.any(dim=1).cpu()]
    logits_nv = logits_of(context.subject, rows_nd[ids - start])[:, torch.from_numpy(known)].cpu()
    promoted, suppressed = (logits_nv.topk(min(N_TOKENS, len(known)), largest=largest) for largest in (True, False))
    values = torch.stack([promoted.values, suppressed.values], dim=1)
    token_ids = known[torch.stack([promoted.indices, suppressed.indices], dim=1).numpy()]
    n, _, k = token_ids.shape
    named = {
        "sae_id": np.repeat(sae.ref.sae_id, n),
        "layer": np.full(n, sae.layer),
        "feature_id": ids.numpy(),
    }
    spelling, flat = context.subject.spelling, token_ids.ravel().tolist()
    text_of = dict(zip(set(flat), spelling.texts(list(set(flat))), strict=True))
    by_token = {column: np.repeat(cells, 2 * k) for column, cells in named.items()} | {
        "promotes": np.tile(np.repeat([True, False], k), n),
        "rank": np.tile(np.arange(1, k + 1), 2 * n),
        "token_id": token_ids.ravel(),
        "token": [text_of[token_id] for token_id in flat],
        "logit": values.ravel().numpy(),
    }
    return [Rows.of(FEATURE_LOGITS, by_token), Rows.of(LOGIT_MOMENTS, named | moments(logits_nv))]


STAGE = Stage(
    name="logits",
    parents=(),
    sections=(),
    tables=("feature_logits", "logit_moments"),
    shards=lambda study: list(study.sae_shards),
    compute=_compute,
    unit="SAEs",
    identity=lambda study: {"saes": sorted(ref.sae_id for ref in study.numbered_saes.values())},
)
