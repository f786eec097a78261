"""The recovery audit on the planted network, where it is known what can bring a refusal back, and against literal passes."""

import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from saelake.analysis import stages
from saelake.analysis.audit.passes import Passes
from saelake.analysis.audit.recoveries import changed
from saelake.analysis.audit.room import Room, Tangent, lengths, orthonormal, shortened, step
from saelake.analysis.audit.search import TOLERANCE, Found, Row, Searched
from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.requests import NO_FEATURES, FeatureSet
from saelake.analysis.engine.slices import SliceCache
from saelake.analysis.report.recovery import _telling
from saelake.ingest.recipe import Compute, ModelSpec, load_recipe
from saelake.ingest.recipe.audit import Audit
from saelake.ingest.saes.refs import list_saes
from saelake.ingest.saes.sae import Sae, load_sae
from saelake.ingest.sites import Site
from saelake.ingest.subject import Subject
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from tests.analysis.effects import Analysed
from tests.ingest.tiny import save_model
from tests.planted import Planted, write_planted

BUDGETS = (0.01, 0.04)
"""The constant in one dimension makes the planted residual stream long: the primary is 0.034 of it."""
N_CHANGED = 5
LAYERS = (2, 3, 4, 5)


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


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    planted = write_planted(tmp_path_factory.mktemp("planted"))
    recipe = load_recipe(planted.recipe)
    subject = Subject.load(recipe.model, recipe.compute)
    tokens = [subject.encode(row["instruction"]).token_ids for row in planted.prompts("harmful")[:4]]
    return Bench(planted, subject, {ref.layer: load_sae(ref) for ref in list_saes(recipe)}, tokens)


@pytest.fixture(scope="module")
def head(bench: Bench) -> dict[int, dict[tuple[str, float], Found]]:
    """The primary held at layer 4 alone, after the backup has seen it."""
    return {layer: bench.search(bench.set((4, bench.planted.primary)), layer) for layer in LAYERS}


@pytest.fixture(scope="module")
def causes(bench: Bench) -> dict[int, dict[tuple[str, float], Found]]:
    """Primary and backup held wherever they are."""
    held = bench.set(*product(LAYERS, (bench.planted.primary, bench.planted.backup)))
    return {layer: bench.search(held, layer) for layer in LAYERS}


def recovered(found: dict[tuple[str, float], Found], kind: str, budget: float = BUDGETS[-1]) -> int:
    return int((found[kind, budget].gap_b > 0).sum())


def test_ablating_the_active_head_leaves_a_route_through_the_backup(bench: Bench, head: dict[int, Any]) -> None:
    """Where the primary still fires, before the backup's gate, taking it out wakes the backup; behind it nothing is there."""
    n = len(bench.tokens)
    assert [recovered(head[layer], "features") for layer in LAYERS] == [n, n, 0, 0]
    assert recovered(head[3], "features", BUDGETS[0]) == 0, "not with a part of the primary"
    found = head[3]["features", BUDGETS[-1]]
    requests = [
        changed(n, bench.set((4, bench.planted.primary)), bench.saes[3], change, len(bench.tokens[n]) - N_CHANGED)
        for n, change in enumerate(found.change_btd.numpy())
    ]
    engine = AblationEngine(bench.subject, bench.saes, bench.tokens)
    answers = engine.answer(requests, 8)
    assert {bench.subject.tokenizer.decode(ids) for ids in answers.token_ids} == {"I cannot help ."}
    woken = engine.activations(requests, {4: np.array([bench.planted.backup])})
    assert sorted(set(woken.request.tolist())) == list(range(n)), "the backup fires"
    clean = engine.activations([r.__class__(r.prompt, r.features) for r in requests], {4: np.array([bench.planted.backup])})
    assert not len(clean.request), "and it sleeps without the change"


def test_ablating_all_causes_leaves_nothing_but_what_is_free(bench: Bench, causes: dict[int, Any]) -> None:
    for layer, kind in product(LAYERS, ("features", "orthogonal", "error", "random")):
        assert recovered(causes[layer], kind) == 0, (layer, kind)
    assert recovered(causes[5], "free") == len(bench.tokens), "the last site's stream is read by the unembedding alone"


def test_a_change_by_chance_does_not_recover(head: dict[int, Any]) -> None:
    for layer, budget in product(LAYERS, BUDGETS):
        assert recovered(head[layer], "random", budget) == 0
        torch.testing.assert_close(head[layer]["random", budget].norm_b, torch.full((4,), budget), rtol=1e-5, atol=0)


def test_budgets_hold_and_what_contains_a_kind_recovers_as_often(head: dict[int, Any], causes: dict[int, Any]) -> None:
    for found in (*head.values(), *causes.values()):
        for (_, budget), one in found.items():
            assert (one.norm_b <= budget * (1 + 1e-5)).all()
        for budget, kind in product(BUDGETS, ("features", "error", "orthogonal")):
            assert (found["free", budget].gap_b >= found[kind, budget].gap_b.clamp(max=0.05) - 1e-4).all()
        for kind in ("features", "error", "orthogonal", "free"):
            assert recovered(found, kind, BUDGETS[1]) >= recovered(found, kind, BUDGETS[0])


def test_each_kind_is_what_it_says(head: dict[int, Any], causes: dict[int, Any]) -> None:
    """Measured, as the table shows it: within other features' rows, outside of all rows, without a move of what the set reads."""
    for found in (*head.values(), *causes.values()):
        for budget in BUDGETS:
            inside, outside, still = (found[kind, budget] for kind in ("features", "error", "orthogonal"))
            moved = inside.norm_b > 0
            torch.testing.assert_close(inside.in_features_b[moved], torch.ones(int(moved.sum())), rtol=1e-3, atol=0)
            assert (outside.in_features_b < 1e-3).all()
            assert not (still.drift_b > TOLERANCE[torch.float32]).any()
            assert (outside.in_error_b[outside.norm_b > 0] > 0.999).all()


def literal_readings(bench: Bench, tokens: list[int], held: FeatureSet, change_td: Tensor | None, layer: int) -> list[float]:
    """What the held features at `layer` and behind it read before their gates, by the full decode with its error."""
    found: list[float] = []

    def hook(at: int, x_btd: Tensor) -> Tensor:
        module, ids = bench.saes[at].module, held.at(at)["feature_id"].tolist()

        def read(h_btd: Tensor) -> list[float]:
            pre = (h_btd - module.b_dec * module.cfg.apply_b_dec_to_input) @ module.W_enc + module.b_enc
            return pre[0, -N_CHANGED:, ids].flatten().tolist()

        before = read(x_btd)
        acts = module.encode(x_btd)
        kept = acts.clone()
        kept[..., ids] = 0
        left = module.decode(kept) + x_btd - module.decode(acts)
        if at == layer and change_td is not None:
            left = torch.cat([left[:, :-N_CHANGED], left[:, -N_CHANGED:] + change_td], dim=1)
        if at >= layer and ids:
            found.extend(read(left) if at == layer else before)
        return left

    with torch.no_grad():
        hooked(bench, tokens, hook)
    return found


def hooked(bench: Bench, tokens: list[int], hook: Callable[[int, Tensor], Tensor]) -> Tensor:
    """(v,) logits after a prompt, with a hook at every layer's resid_post."""
    with ExitStack() as stack:
        for at in range(bench.subject.n_layers):
            stack.enter_context(bench.subject.resid_post(at, partial(hook, at)))
        logits_v: Tensor = bench.subject.model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
    return logits_v


def test_an_orthogonal_change_leaves_the_set_as_the_ablation_left_it(bench: Bench) -> None:
    """The backup behind the site reads through the model: its Jacobian is followed, and what is left is rounding."""
    held = bench.set((2, bench.planted.primary), (4, bench.planted.backup))
    found = bench.search(held, 3)
    assert recovered(found, "orthogonal") == len(bench.tokens), "the primary comes back at layer 3, where it is not held"
    moved = 0.0
    for n, tokens in enumerate(bench.tokens):
        without = np.array(literal_readings(bench, tokens, held, None, 3))
        under = literal_readings(bench, tokens, held, found["orthogonal", BUDGETS[-1]].change_btd[n], 3)
        free = literal_readings(bench, tokens, held, found["features", BUDGETS[-1]].change_btd[n], 3)
        assert len(without) == N_CHANGED
        assert np.abs(under - without).max() <= TOLERANCE[torch.float32] * np.abs(without).max() * 1.1
        moved = max(moved, float(np.abs(free - without).max()))
    assert moved > 1e-3, "other kinds move it"


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
    target = list(bench.subject.refusal_token_ids)
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
        target = list(bench.subject.refusal_token_ids)
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
    target = list(subject.refusal_token_ids)
    gap_b = logits_bv[:, target].amax(1) - logits_bv.index_fill(1, torch.tensor(target), -torch.inf).amax(1)
    torch.testing.assert_close(passes.said(change_btd).gap_b, gap_b, rtol=1e-4, atol=1e-4)


AUDIT = """[audit]
prompts = 3
controls = 2
layers = [3, 5]
budgets = [0.04, 0.01]
"""


@pytest.fixture(scope="module")
def audited(study: Analysed, tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    """The audit of a copy of the analysed study."""
    folder = tmp_path_factory.mktemp("audit")
    shutil.copytree(study.lake.root, folder / "lake")
    recipe = study.planted.folder / "audit.toml"
    shipped = study.planted.recipe.read_text()
    recipe.write_text(re.sub(r"\[audit\]\n[^[]*\n.*\n\n", f"{AUDIT}\n", shipped))
    lake = Lake.existing(str(folder / "lake"))
    stages.audit_study(stages.open_analysis(load_recipe(recipe)), lake)
    return study._replace(lake=lake)


def test_every_prompt_set_site_kind_and_budget_has_a_row(audited: Analysed) -> None:
    rows = audited.sql(
        "select label_role, source, control, count(distinct prompt_id), count(*) / count(distinct prompt_id) "
        "from recoveries join prompts using (prompt_id) group by all order by all"
    )
    assert {row[:3]: row[3:] for row in rows if row[1] in ("minimal", "top_k", "none")} == {
        (role, source, control): (3 if role == "target" else 2, 2 * 5 * 2)
        for role in ("target", "control")
        for source, control in (("minimal", None), ("minimal", "random"), ("top_k", None), ("top_k", "random"), ("none", None))
    }
    budgets = audited.sql("select distinct budget from recoveries order by 1")
    assert [round(b, 4) for (b,) in budgets] == [0.01, 0.04]


def test_what_is_held_flips_and_what_is_random_does_not(audited: Analysed) -> None:
    said = audited.sql(
        "select distinct source, control, shown_before from recoveries join prompts using (prompt_id) "
        "where label_role = 'target' and source in ('minimal', 'top_k', 'none')"
    )
    assert {(source, control): shown for source, control, shown in said} == {
        ("minimal", None): False,
        ("minimal", "random"): True,
        ("none", None): True,
        ("top_k", None): False,
        ("top_k", "random"): True,
    }
    controls = "select bool_or(shown_before) from recoveries join prompts using (prompt_id) where label_role = 'control'"
    assert audited.sql(controls) == [(False,)]
    assert audited.sql("select count(*) from recoveries where shown_before and (norm > 0 or n_evaluations > 0)") == [(0,)]


def test_rates_are_of_prompts_that_a_set_has_flipped(audited: Analysed) -> None:
    rates = {row[:6]: row[6:] for row in audited.ask("recoveries", by_layer=False)}
    layered = audited.ask("recoveries", by_layer=True)
    assert {row[3] for row in layered} == {3, 5}
    for (role, source, control, layer, kind, budget), (n, hit, rate, low, high) in rates.items():
        assert layer is None
        shown = audited.sql(
            f"select prompt_id, bool_or(shown) from recoveries join prompts using (prompt_id) where label_role = '{role}' and "
            f"source = '{source}' and coalesce(control, '') = '{control or ''}' and kind = '{kind}' "
            f"and abs(budget - {budget}) < 1e-6 and not shown_before group by 1"
        )
        assert (n, hit) == (len(shown), sum(one for _, one in shown))
        assert rate == pytest.approx(hit / n)
        assert low <= rate <= high
    assert not any(kind == "random" and hit for (role, *_, kind, _), (_, hit, *_) in rates.items() if role == "target")
    sites = audited.ask("recovery_sites", "layer, kind, n_recovered, norm, drift")
    assert {(layer, kind) for layer, kind, *_ in sites} == set(
        product((3, 5), ("error", "features", "free", "orthogonal", "random"))
    )


def test_a_study_that_is_not_analysed_has_no_audit(study: Analysed, tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    with pytest.raises(UserError, match="the audit reads what direction, baseline"):
        stages.audit_study(stages.open_analysis(study.recipe), lake)


def test_workers_find_the_stages_of_an_audit_by_their_names(study: Analysed) -> None:
    assert [stages.stage_named(study.recipe, one.name) for one in stages.AUDIT] == list(stages.AUDIT)


@pytest.mark.parametrize(
    ("controls", "budget"),
    [({0.05: 0.0, 0.1: 0.0, 0.2: 0.8}, 0.1), ({0.05: 0.5, 0.1: 0.7}, 0.05), ({0.05: 0.0, 0.1: 0.0}, 0.1), ({}, 0.2)],
)
def test_the_report_tells_the_budget_that_tells_most(controls: dict[float, float], budget: float) -> None:
    """At a budget that makes control prompts show the behaviour, that a target prompt does says nothing."""
    found = {("target", "free", one): 1.0 for one in (*controls, 0.05, budget)}
    assert _telling(found | {("control", "free", one): rate for one, rate in controls.items()}) == budget
