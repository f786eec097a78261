"""What a batch of requests does to the residual stream, made ready once and put to work on each of its passes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor

from saelake.analysis.engine.edits import Edit, Held, ProjectionEdit, feature_edit
from saelake.analysis.engine.requests import Request
from saelake.analysis.engine.slices import Slices
from saelake.ingest.subject import Batch, Subject


class Interventions:
    """The edits of a batch, at every layer that one of its rows touches.

    Args:
        slices: layer -> slices of its SAE.
        n_tokens: tokens a row of the passes to come.
    """

    def __init__(self, subject: Subject, slices: Mapping[int, Slices], requests: Sequence[Request], n_tokens: int) -> None:
        self._subject = subject
        self._requests = requests
        held = Held.of([r.features for r in requests])
        self._edits: dict[int, list[Edit]] = {}
        for layer in held.layers:
            self._edits[layer] = [feature_edit(slices[layer], held.at(layer), n_tokens)]
        directions = [r.direction for r in requests]
        for layer in sorted({layer for d in directions if d for layer in d.layers}):
            here = [d if d is not None and layer in d.layers else None for d in directions]
            self._edits.setdefault(layer, []).append(ProjectionEdit(here, subject.d_model, subject.device))

    @contextmanager
    def at_work(self, batch: Batch, *, generated: bool = False) -> Iterator[None]:
        """While open, passes over `batch` are edited; where `generated`, its tokens are not the prompts'."""
        where_bt = self._where(batch, generated)
        with ExitStack() as stack:
            for layer, edits in self._edits.items():
                stack.enter_context(self._subject.resid_post(layer, partial(_edited, edits, where_bt)))
            yield

    def _where(self, batch: Batch, generated: bool) -> Tensor | None:
        if all(r.positions is None for r in self._requests):
            return None
        positions_bt = batch.position_ids_bt
        where_bt = torch.ones_like(positions_bt, dtype=torch.bool)
        for row, request in enumerate(self._requests):
            if request.positions is not None:
                chosen = torch.tensor(() if generated else request.positions, dtype=torch.int64, device=positions_bt.device)
                where_bt[row] = torch.isin(positions_bt[row], chosen)
        return where_bt


def _edited(edits: Sequence[Edit], where_bt: Tensor | None, resid_btd: Tensor) -> Tensor:
    for edit in edits:
        resid_btd = edit(resid_btd, where_bt)
    return resid_btd
