"""The planted network to search and to pass changes through, and its passes with a hook at every layer."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saelake.analysis.audit.search import Found, Row, Searched
from saelake.analysis.engine.requests import FeatureSet
from saelake.analysis.engine.slices import SliceCache
from saelake.ingest.recipe import load_recipe
from saelake.ingest.recipe.audit import Audit
from saelake.ingest.saes.refs import list_saes
from saelake.ingest.saes.sae import Sae, load_sae
from saelake.ingest.subject import Subject
from tests.planted import Planted, write_planted

BUDGETS = (0.01, 0.04)
"""The constant in one dimension makes the planted residual stream long: the primary is 0.034 of it."""
N_CHANGED = 5


class Bench(NamedTuple):
    planted: Planted
    subject: Subject
    saes: dict[int, Sae]
    tokens: list[list[int]]

    def set(self, *features: tuple[int, int]) -> FeatureSet:
        return FeatureSet.of([layer for layer, _ in features], [feature_id for _, feature_id in features])

    @property
    def slices(self) -> dict[int, SliceCache]:
        return {n: SliceCache(sae, self.subject.device) for n, sae in self.saes.items()}

    def search(self, held: FeatureSet, layer: int, budgets: tuple[float, ...] = BUDGETS) -> dict[tuple[str, float], Found]:
        rows = [Row(tokens, held, (0, n)) for n, tokens in enumerate(self.tokens)]
        settings = Audit(budgets=budgets)
        found = Searched(self.subject, self.saes, self.slices, self.saes[layer], rows, N_CHANGED, settings).found()
        return {(one.kind, one.budget): one for one in found}


def audit_bench(folder: Path) -> Bench:
    """Of four harmful prompts, with the network and its SAEs as they are shipped."""
    planted = write_planted(folder)
    recipe = load_recipe(planted.recipe)
    subject = Subject.load(recipe.model, recipe.compute)
    tokens = [subject.encode(row["instruction"]).token_ids for row in planted.prompts("harmful")[:4]]
    return Bench(planted, subject, {ref.layer: load_sae(ref) for ref in list_saes(recipe)}, tokens)


def hooked(bench: Bench, tokens: list[int], hook: Callable[[int, Tensor], Tensor]) -> Tensor:
    """(v,) logits after a prompt, with a hook at every layer's resid_post."""
    with ExitStack() as stack:
        for at in range(bench.subject.n_layers):
            stack.enter_context(bench.subject.resid_post(at, partial(hook, at)))
        logits_v: Tensor = bench.subject.model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
    return logits_v
