"""What the recovery audit computes in a step, its passes, tangents and projections, against literal ones."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saelake.analysis.audit.passes import Passes
from saelake.analysis.audit.room import Room, Tangent, lengths, orthonormal, shortened, step
from saelake.analysis.engine.requests import NO_FEATURES
from saelake.ingest.recipe import Compute, ModelSpec
from saelake.ingest.sites import Site
from saelake.ingest.subject import Subject
from tests.analysis.audits import N_CHANGED, Bench, audit_bench, hooked
from tests.ingest.tiny import save_model


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return audit_bench(tmp_path_factory.mktemp("planted"))


def test_readings_that_hang_together_have_a_tangent_where_divide_and_conquer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """As MKL's did for 276 readings of a real audit; the first reading is there twice, the last one is nothing."""
    rng = np.random.default_rng(1)
    drawn = rng.standard_normal((2, 5, 3, 4), dtype=np.float32)
    drawn[:, 1], drawn[:, 4] = drawn[:, 0], 0
    jacobian_bmtd, change_btd = torch.from_numpy(drawn), torch.from_numpy(rng.standard_normal((2, 3, 4), dtype=np.float32))
    usual = Tangent.of(jacobian_bmtd, Room()).project(change_btd)

    def failing(*given: Any, **options: Any) -> Tensor:
        raise torch.linalg.LinAlgError("linalg.eigh: the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "pinv", failing)
    found = Tangent.of(jacobian_bmtd, Room()).project(change_btd)
    torch.testing.assert_close(found, usual)
    assert torch.einsum("bmtd,btd->bm", jacobian_bmtd, found).abs().max() < 1e-5


def test_a_step_is_the_literal_projected_step(bench: Bench) -> None:
    """One prompt, the full decode with its error, dense projectors: the gradient, the room, the readings' tangent, the length."""
    layer, tokens = 3, bench.tokens[0]
    held = bench.set((2, bench.planted.primary), (4, bench.planted.backup))
    asked = [(tokens, held) for tokens in bench.tokens]
    passes = Passes(bench.subject, bench.saes, bench.slices, asked, Site(layer), N_CHANGED)
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((len(asked), N_CHANGED, passes.left_btd.shape[-1]), dtype=np.float32)
    radius_b = 0.02 * lengths(passes.left_btd)
    rows_btnd = torch.from_numpy(rng.standard_normal((len(asked), N_CHANGED, 3, drawn.shape[-1]), dtype=np.float32))
    room = Room(orthonormal(rows_btnd))
    change_btd = shortened(room.project(torch.from_numpy(drawn)), radius_b / 4)
    _, gradient_btd, jacobian_bmtd = passes.uphill(change_btd, watch=True)
    assert jacobian_bmtd is not None
    stepped_td = step(change_btd, gradient_btd, room, radius_b, 0.25, Tangent.of(jacobian_bmtd, room))[0]

    change_td = change_btd[0].clone().requires_grad_()
    read: list[Tensor] = []

    def hook(at: int, x_btd: Tensor) -> Tensor:
        module, ids = bench.saes[at].module, held.at(at)["feature_id"].tolist()
        if at == 4:
            pre = (x_btd - module.b_dec * module.cfg.apply_b_dec_to_input) @ module.W_enc + module.b_enc
            read.append(pre[0, -N_CHANGED:, ids].flatten())
        acts = module.encode(x_btd)
        kept = acts * torch.tensor([float(i not in ids) for i in range(acts.shape[-1])])
        left = module.decode(kept) + x_btd - module.decode(acts)
        return torch.cat([left[:, :-N_CHANGED], left[:, -N_CHANGED:] + change_td], dim=1) if at == layer else left

    logits_v = hooked(bench, tokens, hook)
    target = list(bench.subject.target_token_ids)
    others = [i for i in range(len(logits_v)) if i not in target]
    gap = logits_v[target].max() - logits_v[others].max()
    (gradient_td,) = torch.autograd.grad(gap, change_td, retain_graph=True)
    jacobian = torch.stack([torch.autograd.grad(one, change_td, retain_graph=True)[0].flatten() for one in read[0]])
    outside = torch.eye(change_td.numel(), dtype=torch.float64)
    for t in range(N_CHANGED):
        d = change_td.shape[1]
        part = rows_btnd[0, t].double()
        outside[t * d : (t + 1) * d, t * d : (t + 1) * d] -= torch.linalg.pinv(part) @ part
    within = jacobian.double() @ outside
    tangent = torch.eye(change_td.numel(), dtype=torch.float64) - torch.linalg.pinv(within, rtol=1e-5) @ within
    uphill = tangent @ (outside @ gradient_td.flatten().double())
    literal = change_td.detach().flatten().double() + 0.25 * radius_b[0].double() * uphill / uphill.norm()
    literal = literal * min(1.0, float(radius_b[0] / literal.norm()))
    torch.testing.assert_close(stepped_td.flatten().double(), literal, rtol=1e-3, atol=1e-4 * float(radius_b[0]))


@pytest.mark.parametrize(("layer", "n_changed"), [(2, 5), (3, 1), (5, 2)])
def test_a_pass_is_of_the_changed_tokens_alone_and_says_what_the_whole_one_does(bench: Bench, layer: int, n_changed: int) -> None:
    """Prompts of several lengths, sets below, at and behind the site, against the full decode with its error."""
    held = bench.set((2, bench.planted.primary), (3, bench.planted.primary), (4, bench.planted.backup))
    prompts = [bench.tokens[0], bench.tokens[1][2:], bench.tokens[2][:7]]
    passes = Passes(bench.subject, bench.saes, bench.slices, [(one, held) for one in prompts], Site(layer), n_changed)
    rng = np.random.default_rng(0)
    change_btd = torch.from_numpy(rng.standard_normal(passes.left_btd.shape, dtype=np.float32))
    change_btd = change_btd * (0.02 * lengths(passes.left_btd) / lengths(change_btd))[:, None, None]
    seen: list[tuple[int, int]] = []
    with ExitStack() as stack:
        for at, block in enumerate(bench.subject.blocks):
            attention: Any = block.self_attn
            handle = attention.register_forward_hook(lambda _module, _args, out, at=at: seen.append((at, out[0].shape[1])))
            stack.callback(handle.remove)
        said = passes.said(change_btd)
    assert seen == [(at, n_changed) for at in range(layer + 1, bench.subject.n_layers)]
    for row, tokens in enumerate(prompts):

        def hook(at: int, x_btd: Tensor, row: int = row) -> Tensor:
            module, ids = bench.saes[at].module, held.at(at)["feature_id"].tolist()
            acts = module.encode(x_btd)
            kept = acts.clone()
            kept[..., ids] = 0
            left = module.decode(kept) + x_btd - module.decode(acts)
            if at == layer:
                torch.testing.assert_close(left[0, -n_changed:], passes.left_btd[row], rtol=1e-4, atol=1e-3)
                left = torch.cat([left[:, :-n_changed], left[:, -n_changed:] + change_btd[row]], dim=1)
            return left

        with torch.no_grad():
            logits_v = hooked(bench, tokens, hook)
        target = list(bench.subject.target_token_ids)
        others = [i for i in range(len(logits_v)) if i not in target]
        assert float(said.gap_b[row]) == pytest.approx(float(logits_v[target].max() - logits_v[others].max()), abs=2e-3)


def test_some_rows_say_what_they_do_by_themselves(bench: Bench) -> None:
    """Readings that none of them has are no longer there: each would be a backward pass."""
    small, large = bench.set((2, bench.planted.primary)), bench.set((2, bench.planted.primary), (4, bench.planted.backup), (5, 3))
    asked = [(bench.tokens[0], large), (bench.tokens[1][2:], small), (bench.tokens[2], large), (bench.tokens[3][1:], small)]
    passes = Passes(bench.subject, bench.saes, bench.slices, asked, Site(3), N_CHANGED)
    change_btd = 0.02 * torch.from_numpy(np.random.default_rng(0).standard_normal(passes.left_btd.shape, dtype=np.float32))
    for rows in ([0, 1], [1, 3], [2]):
        there = torch.tensor(rows)
        fresh = Passes(bench.subject, bench.saes, bench.slices, [asked[row] for row in rows], Site(3), N_CHANGED)
        some = passes.of(there)
        assert some.bends == fresh.bends == (rows != [1, 3])
        found, expected = (one.uphill(change_btd[there], one.bends) for one in (some, fresh))
        for got, wanted in zip((*found[0], *found[1:]), (*expected[0], *expected[1:]), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(some.drift(found[0]), fresh.drift(expected[0]), rtol=1e-3, atol=1e-5, equal_nan=True)
    assert torch.equal(passes.of(torch.arange(4)).before.gap_b, passes.before.gap_b)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
@pytest.mark.parametrize("site", [Site(0, "resid_pre"), Site(0, "attn_out"), Site(1, "mlp_out"), Site(2)], ids=str)
def test_what_is_kept_of_earlier_tokens_goes_by_a_sliding_window(tmp_path: Path, family: str, site: Site) -> None:
    subject = Subject.load(ModelSpec(path=save_model(family, tmp_path)), Compute(device="cpu", threads=1))
    window, rng = subject.model.config.get_text_config().sliding_window, np.random.default_rng(0)
    prompts = [rng.integers(5, 60, n).tolist() for n in (3 * window + 1, window + 3, window - 1)]
    passes = Passes(subject, {}, {}, [(one, NO_FEATURES) for one in prompts], site, 3)
    change_btd = torch.from_numpy(rng.standard_normal(passes.left_btd.shape, dtype=np.float32))

    def changed_btd(x_btd: Tensor) -> Tensor:
        return torch.cat([x_btd[:, :-3], x_btd[:, -3:] + change_btd], dim=1)

    with subject.at(site, changed_btd, len(prompts)):
        logits_bv = subject.forward(subject.batch(prompts))
    target = list(subject.target_token_ids)
    gap_b = logits_bv[:, target].amax(1) - logits_bv.index_fill(1, torch.tensor(target), -torch.inf).amax(1)
    torch.testing.assert_close(passes.said(change_btd).gap_b, gap_b, rtol=1e-4, atol=1e-4)
