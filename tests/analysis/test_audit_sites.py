"""Passes of the recovery audit at every kind of site, with sets before, at and behind it, against passes hooked by hand."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from saelake.analysis.audit.passes import Passes
from saelake.analysis.audit.recoveries import changed
from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.engine.slices import SliceCache
from saelake.ingest.recipe import load_recipe
from saelake.ingest.saes.refs import list_saes
from saelake.ingest.saes.sae import Sae, load_sae
from saelake.ingest.sites import Site
from saelake.ingest.subject import Subject
from tests.analysis.test_families import FEATURES, PROMPTS, hooked, sae_at, subject_of, without
from tests.planted import write_planted

KINDS = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""Those that an SAE reads and writes, in the order of a pass."""
BEFORE = (Site(0, "mlp_out"), Site(0))
SITES = (*BEFORE, *(Site(1, kind) for kind in KINDS))
HELD = (BEFORE, SITES[2:], *((site,) for site in SITES))
N_CHANGED = 3


@cache
def sae_of(site: Site) -> Sae:
    return sae_at(site, d_in=subject_of("Llama").width(site))


def gaps(subject: Subject, logits_bv: Tensor) -> Tensor:
    target = list(subject.target_token_ids)
    return logits_bv[:, target].amax(1) - logits_bv.index_fill(1, torch.tensor(target), -torch.inf).amax(1)


def set_of(numbers: Sequence[int]) -> FeatureSet:
    return FeatureSet.of(*zip(*product(numbers, FEATURES), strict=True))


def literal(token_ids: list[int], held: Sequence[Site], site: Site, change_td: Tensor) -> tuple[Tensor, Tensor]:
    """A prompt's gap, and what the features held at the site and behind it read, in the order of a pass."""
    subject, readings = subject_of("Llama"), []

    def edit(at: Site, x_btd: Tensor) -> Tensor:
        sae = sae_of(at)

        def read(h_btd: Tensor) -> Tensor:
            pre = (h_btd - sae.b_dec * sae.apply_b_dec_to_input) @ sae.W_enc + sae.b_enc
            return pre[0, -N_CHANGED:, list(FEATURES)].flatten()

        left = without(sae, FEATURES, x_btd, x_btd) if at in held else x_btd
        if at == site:
            left = torch.cat([left[:, :-N_CHANGED], left[:, -N_CHANGED:] + change_td], dim=1)
        if at in held and at.depth >= site.depth:
            readings.append(read(left if at == site else x_btd))
        return left

    with ExitStack() as hooks:
        for at in SITES:
            hooks.enter_context(hooked(subject, "Llama", at.kind, at.layer, partial(edit, at)))
        logits_bv = subject.model(torch.tensor([token_ids]), use_cache=False).logits[:, -1]
    return gaps(subject, logits_bv)[0], torch.cat(readings) if readings else torch.zeros(0)


@pytest.mark.parametrize("numbered", [list, reversed], ids=["upwards", "downwards"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_a_change_is_what_a_pass_hooked_by_hand_says(kind: str, numbered: Callable[..., Sequence[Site]]) -> None:
    """Its gap, gradient, readings and drift; and the engine says the same, whatever the numbers of the SAEs are."""
    subject, site = subject_of("Llama"), Site(1, kind)
    ids = [subject.encode(text).token_ids for text in PROMPTS]
    number_of = {at: n for n, at in enumerate(numbered(SITES))}
    saes = {n: sae_of(at) for at, n in number_of.items()}
    slices = {n: SliceCache(sae, subject.device) for n, sae in saes.items()}
    engine = AblationEngine(subject, saes, ids)
    for held in HELD:
        features = set_of([number_of[at] for at in held])
        passes = Passes(subject, saes, slices, [(one, features) for one in ids], site, N_CHANGED)
        drawn = np.random.default_rng(0).standard_normal(passes.left_btd.shape, dtype=np.float32)
        change_btd = 0.3 * passes.left_btd.std() * torch.from_numpy(drawn)
        said, gradient_btd, _ = passes.uphill(change_btd, watch=False)
        drift_b = passes.drift(said)
        requests = [changed(n, features, saes[number_of[site]], change_btd[n].numpy(), len(ids[n]) - N_CHANGED) for n in (0, 1)]
        for asked, gap_b in ((requests, said.gap_b), ([Request(n, features) for n in (0, 1)], passes.before.gap_b)):
            torch.testing.assert_close(gaps(subject, engine.log_probabilities(asked)), gap_b, rtol=1e-3, atol=1e-3)
        for n, token_ids in enumerate(ids):
            change_td = change_btd[n].clone().requires_grad_()
            gap, readings_m = literal(token_ids, held, site, change_td)
            (gradient_td,) = torch.autograd.grad(gap, change_td)
            torch.testing.assert_close(said.gap_b[n], gap.detach(), rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(gradient_btd[n], gradient_td, rtol=1e-2, atol=1e-3)
            torch.testing.assert_close(said.readings_bm[n], readings_m.detach(), rtol=1e-3, atol=1e-3)
            with torch.no_grad():
                _, still_m = literal(token_ids, held, site, torch.zeros_like(change_td))
                if len(still_m):
                    moved = (readings_m - still_m).abs().max()
                    largest = max(still_m.abs().max(), passes._unmodified(subject.batch(ids))[n].abs().max())
                    torch.testing.assert_close(drift_b[n], moved / largest, rtol=1e-2, atol=1e-3)


def test_a_transcoder_that_lowers_the_beginning_brings_back_what_is_held_above_it() -> None:
    subject = subject_of("Llama")
    ids = [subject.encode(text).token_ids for text in PROMPTS]
    transcoder = sae_at(Site(1, "mlp_in"), Site(1), "transcoder")
    saes = {0: sae_of(Site(1, "attn_out")), 1: transcoder, 2: sae_of(Site(0))}
    slices = {n: SliceCache(sae, subject.device) for n, sae in saes.items()}
    held = set_of([0, 1, 2])
    passes = Passes(subject, saes, slices, [(one, held) for one in ids], Site(1), N_CHANGED)
    engine = AblationEngine(subject, saes, ids)
    expected = gaps(subject, engine.log_probabilities([Request(n, held) for n in (0, 1)]))
    torch.testing.assert_close(passes.before.gap_b, expected, rtol=1e-3, atol=1e-3)


def test_the_planted_refusal_stays_away_at_every_site_behind_its_causes(tmp_path: Path) -> None:
    planted = write_planted(tmp_path)
    recipe = load_recipe(planted.recipe)
    subject = Subject.load(recipe.model, recipe.compute)
    saes = {ref.layer: load_sae(ref) for ref in list_saes(recipe)}
    ids = [subject.encode(row["instruction"]).token_ids for row in planted.prompts("harmful")[:2]]
    held = FeatureSet.of([2, 3, 4, 4], [*3 * [planted.primary], planted.backup])
    expected = gaps(subject, AblationEngine(subject, saes, ids).log_probabilities([Request(n, held) for n in (0, 1)]))
    assert (expected < -1).all()
    slices = {n: SliceCache(sae, subject.device) for n, sae in saes.items()}
    for kind in KINDS:
        passes = Passes(subject, saes, slices, [(one, held) for one in ids], Site(5, kind), N_CHANGED)
        torch.testing.assert_close(passes.before.gap_b, expected, rtol=1e-3, atol=1e-3)
