"""What a batch of requests does to a pass, made ready once and put to work on each of its passes.

At a site the interventions of a request act in their order, and within one the SAEs in the order of their numbers before the
direction: each sees what those before it left.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor

from saelake.analysis.engine.edits import Edit, FeatureEdit, ProjectionEdit, RowFeatures, Where, at_one_site, feature_edit
from saelake.analysis.engine.requests import Intervention, Request
from saelake.analysis.engine.slices import SliceCache
from saelake.ingest.sites import Site
from saelake.ingest.subject import Batch, Subject

NOTHING = Intervention()


class _Apart:
    """The edit of a transcoder, which reads at one site of a pass what it takes out at another."""

    def __init__(self, edit: FeatureEdit) -> None:
        self._edit = edit
        self._taken: list[Tensor] = []

    def read(self, where_bt: Where, read_btd: Tensor) -> None:
        self._taken[:] = [self._edit.taken(read_btd, where_bt)]

    def __call__(self, written_btd: Tensor, _where_bt: Where) -> Tensor:
        return self._edit.without(written_btd, self._taken.pop())


class Interventions:
    """The edits of a batch, at every site that one of its rows touches.

    Args:
        slices: number of an SAE -> its slices.
        n_tokens: tokens a row of the passes to come.
    """

    def __init__(self, subject: Subject, slices: Mapping[int, SliceCache], requests: Sequence[Request], n_tokens: int) -> None:
        self._subject = subject
        self._n_rows = len(requests)
        self._layered: list[list[Intervention]] = []
        self._edits: dict[Site, list[tuple[int, Edit]]] = {}
        self._apart: list[tuple[int, _Apart, Site]] = []
        for place in range(max(len(r.interventions) for r in requests)):
            here = [r.interventions[place] if place < len(r.interventions) else NOTHING for r in requests]
            self._layered.append(here)
            held = RowFeatures.of([one.features for one in here])
            for number in held.saes:
                sae, edit = slices[number].sae, feature_edit(slices[number], held.at(number), n_tokens)
                if sae.reads == sae.writes:
                    self._edits.setdefault(sae.reads, []).append((place, partial(at_one_site, edit)))
                else:
                    apart = _Apart(edit)
                    self._apart.append((place, apart, sae.reads))
                    self._edits.setdefault(sae.writes, []).append((place, apart))
            directions = [one.direction for one in here]
            for site in sorted({site for d in directions if d for site in d.sites}, key=lambda site: site.depth):
                along = [d if d is not None and site in d.sites else None for d in directions]
                edit_along = ProjectionEdit(along, subject.width(site), subject.device)
                self._edits.setdefault(site, []).append((place, edit_along))

    @contextmanager
    def at_work(self, batch: Batch, *, generated: bool = False) -> Iterator[None]:
        """While open, passes over `batch` are edited; where `generated`, its tokens are not the prompts'."""
        where = [_where(here, batch, generated) for here in self._layered]
        with ExitStack() as stack:

            def open_at(site: Site, fn: Callable[[Tensor], Tensor | None]) -> None:
                stack.enter_context(self._subject.at(site, fn, self._n_rows))

            # A transcoder's reading is hooked first: at a site that is edited too, hooks run in the order of opening.
            for place, apart, reads in self._apart:
                open_at(reads, partial(apart.read, where[place]))
            for site, edits in self._edits.items():
                open_at(site, partial(_edited, [(edit, where[place]) for place, edit in edits]))
            yield


def _where(here: Sequence[Intervention], batch: Batch, generated: bool) -> Where:
    if all(one.on_answers if generated else one.positions is None for one in here):
        return None
    positions_bt = batch.position_ids_bt
    where_bt = torch.ones_like(positions_bt, dtype=torch.bool)
    for row, one in enumerate(here):
        if generated:
            where_bt[row] = one.on_answers
        elif one.positions is not None:
            chosen = torch.tensor(one.positions, dtype=torch.int64, device=positions_bt.device)
            where_bt[row] = torch.isin(positions_bt[row], chosen)
    return where_bt


def _edited(edits: Sequence[tuple[Edit, Where]], x_btd: Tensor) -> Tensor:
    for edit, where_bt in edits:
        x_btd = edit(x_btd, where_bt)
    return x_btd
