"""SAEs that do not lie on the device: only the rows in use are read, and the answers are those of the whole SAEs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import saelake
from saelake.analysis import verbs
from saelake.analysis.engine import slices as slicing
from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.engine.slices import SliceCache
from saelake.analysis.search.alignments import cosines
from saelake.ingest import loaded as loading
from saelake.ingest.recipe import load_recipe
from saelake.ingest.saes import loader as loading_saes
from saelake.ingest.saes.description import SaeDescription
from saelake.ingest.saes.loader import SaeLoader
from saelake.ingest.saes.refs import SaeRef
from saelake.ingest.saes.sae import Sae, Weights
from saelake.warehouse.lake import Lake
from tests.analysis.engines import TEXTS, WIDTH, Bench, some_request, tiny
from tests.ingest.tiny import D_MODEL
from tests.planted import write_planted


class Watched(torch.Tensor):
    """A matrix of which rows may be read, counted, and nothing else."""

    counted: list[int]
    whole: Tensor

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "index_select":
            of, dim, ids = args
            of.counted.append(len(ids))
            return of.whole.index_select(dim, ids)
        if func in (torch.Tensor.device.__get__, torch.Tensor.shape.__get__):  # type: ignore[attr-defined]
            return super().__torch_function__(func, types, args, kwargs or {})
        raise AssertionError(f"{func} reads the whole SAE")


def watched(whole: Tensor, counted: list[int]) -> Tensor:
    made = whole.detach().as_subclass(Watched)
    made.whole, made.counted = whole, counted
    return made


def off_device(sae: Sae, counted: list[int]) -> Sae:
    weights = sae.load()
    kept = {name: watched(getattr(weights, name), counted) for name in ("W_enc", "W_dec")}
    opened: dict[str, Any] = {**kept, "module": None}
    return Sae(sae.description, lambda: weights._replace(**opened), off_device=True)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
def test_ablation_reads_the_rows_in_use_and_answers_as_with_whole_saes(architecture: str) -> None:
    bench, rng, counted = tiny("llama", architecture), np.random.default_rng(3), list[int]()
    away = {n: off_device(sae, counted) for n, sae in bench.saes.items()}
    requests = [some_request(rng) for _ in range(20)]
    requests.append(Request(0, FeatureSet.of([1] * WIDTH, range(WIDTH))))
    engine = AblationEngine(bench.subject, away, bench.prompts)
    torch.testing.assert_close(engine.log_probabilities(requests), bench.engine().log_probabilities(requests))
    few = [Request(i % len(TEXTS), FeatureSet.of([0, 2], [i, 7])) for i in range(4)]
    counted.clear()
    fresh = AblationEngine(bench.subject, away, bench.prompts, batch_tokens=1000)
    assert fresh.answer(few, 3).token_ids == bench.engine().answer(few, 3).token_ids
    assert sum(counted) <= 2 * 2 * (4 + 1) * 4, "encoder and decoder, of what each batch and its answers hold"
    seen, expected = (one.activations(few, {2: np.array([3, 9]), 1: None}) for one in (fresh, bench.engine()))
    assert list(map(tuple, zip(*seen[:4], strict=True))) == list(map(tuple, zip(*expected[:4], strict=True)))
    np.testing.assert_allclose(seen.activation, expected.activation, atol=1e-5)


def test_all_features_are_read_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, counted = tiny("llama"), list[int]()
    monkeypatch.setattr(slicing, "PART_BYTES", 8 * D_MODEL * 7)
    engine = AblationEngine(bench.subject, {1: off_device(bench.saes[1], counted)}, bench.prompts)
    requests = [Request(i) for i in range(len(TEXTS))]
    seen = engine.activations(requests, {1: None})
    expected = AblationEngine(bench.subject, {1: bench.saes[1]}, bench.prompts).activations(requests, {1: None})
    assert max(counted) <= 7
    assert list(map(tuple, zip(*seen[:4], strict=True))) == list(map(tuple, zip(*expected[:4], strict=True)))
    np.testing.assert_allclose(seen.activation, expected.activation, atol=1e-5)


def test_slices_of_what_is_off_the_device_are_given_up_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    slices = SliceCache(off_device(tiny("llama").saes[0], []), torch.device("cpu"))
    monkeypatch.setattr(slicing, "KEPT_BYTES", 8 * D_MODEL * 5)
    first = slices.of(np.array([1, 2, 3]))
    assert slices.of(np.array([4])) is not None
    assert slices.of(np.array([1, 2, 3])) is first
    slices.of(np.arange(30))
    assert slices.of(np.array([1, 2, 3])) is not first


def loader_of(bench: Bench, monkeypatch: pytest.MonkeyPatch, kept_share: float) -> tuple[SaeLoader, list[str]]:
    """The bench's SAEs on a device that holds two of them, and which were loaded."""
    by_id, loads = {sae.sae_id: sae for sae in bench.saes.values()}, []

    def load(ref: SaeRef, _device: object) -> Sae:
        loads.append(ref.sae_id)
        return by_id[ref.sae_id]

    monkeypatch.setattr(loading_saes, "load_sae", load)
    monkeypatch.setattr(loading_saes, "SMALL", 0)
    monkeypatch.setattr(loading_saes, "KEPT_SHARE", kept_share)
    monkeypatch.setattr(
        loading_saes, "free_bytes", lambda _device: 2.5 * bench.saes[0].description.n_bytes / loading_saes.WORKING_SHARE
    )
    return SaeLoader({n: sae.description for n, sae in bench.saes.items()}, torch.device("cpu")), loads


@pytest.mark.parametrize("architecture", ["jumprelu", "gated", "topk"])
@pytest.mark.parametrize("kept_share", [0.5, 0.0], ids=["memory", "files"])
def test_a_loader_that_does_not_fit_the_device_gives_the_same(
    architecture: str, kept_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, rng = tiny("llama", architecture), np.random.default_rng(4)
    loader, loads = loader_of(bench, monkeypatch, kept_share)
    assert not loader.all_fit
    assert [loader[n].writes for n in loader] == [sae.writes for sae in bench.saes.values()]
    assert loads == [], "what it says about itself needs no weights"
    requests = [some_request(rng) for _ in range(12)]
    engine = AblationEngine(bench.subject, loader, bench.prompts)
    torch.testing.assert_close(engine.log_probabilities(requests), bench.engine().log_probabilities(requests))
    assert len(loads) == len(set(loads)), "an SAE was loaded twice"
    resid_nd, direction = torch.randn(9, D_MODEL), np.eye(D_MODEL, dtype=np.float32)[0]
    for n, sae in bench.saes.items():
        assert loader[n].off_device
        torch.testing.assert_close(loader.whole(n).encode(resid_nd), sae.encode(resid_nd))
        torch.testing.assert_close(loader[n].W_dec, sae.W_dec)
        assert loader._whole is None, "a whole SAE stays on the device while rows are read"
        np.testing.assert_allclose(cosines(loader[n], direction), cosines(sae, direction), rtol=1e-6)


def test_thirteen_saes_of_131k_work_beside_llama_on_24_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights that have shapes and nothing else: what the engine holds of them on the device is counted."""
    d, f, meta = 4096, 131_072, torch.device("meta")
    recipe = load_recipe("llama-3.1-8b")
    refs = {layer: SaeRef(f"s{layer}", f"s{layer}", layer, "0" * 64, None, None, "r", "i") for layer in recipe.saes.layers}
    descriptions = {n: SaeDescription(ref, "jumprelu", d, f, None, "none") for n, ref in refs.items()}

    def load(ref: SaeRef, _device: object) -> Sae:
        W_enc, W_dec, b, b_dec = (torch.empty(*shape, device=meta) for shape in ((d, f), (f, d), (f,), (d,)))
        return Sae.of(descriptions[ref.layer], Weights(W_enc, b, W_dec, b_dec, b, True, torch.nn.Module()))

    monkeypatch.setattr(loading_saes, "load_sae", load)
    monkeypatch.setattr(loading_saes, "host_bytes", lambda: 128 << 30)
    monkeypatch.setattr(loading_saes, "free_bytes", lambda _device: int(24e9 - 2 * 8_030_261_248))
    loader = SaeLoader(descriptions, torch.device("cpu"))
    assert (len(loader), loader.all_fit) == (13, False)
    held = 0
    rng = np.random.default_rng(0)
    for n in loader:
        slices = SliceCache(loader[n], meta)
        for _ in range(6):  # the batches of a search
            slices.of(np.unique(rng.integers(0, f, 10 * recipe.candidates.cap)))
        kept = (cut for cut in slices._kept.values() if isinstance(cut, tuple))
        held += sum(one.nbytes for cut in kept for one in cut if isinstance(one, Tensor))
    assert held < 1.5e9
    assert held + 2 * 8_030_261_248 < 24e9


def test_a_process_loads_subject_and_saes_once_and_of_saes_only_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = write_planted(tmp_path / "study")
    recipe, loads = load_recipe(planted.recipe), []
    load_sae, load_subject = loading_saes.load_sae, loading.Subject.load
    monkeypatch.setattr(loading_saes, "load_sae", lambda ref, device: loads.append(ref.layer) or load_sae(ref, device))
    monkeypatch.setattr(loading.Subject, "load", lambda *given: loads.append("model") or load_subject(*given))
    lake = Lake.create(tmp_path / "lake")
    verbs.ablate(recipe, lake, "first", f"4:{planted.primary}")
    assert sorted(map(str, loads)) == ["0", "1", "2", "3", "4", "5", "model"]
    loads.clear()
    verbs.ablate(recipe, lake, "second", f"3:{planted.primary}")
    assert loads == ["model", 3]


def test_a_study_whose_saes_do_not_fit_answers_as_one_whose_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = write_planted(tmp_path / "study")
    recipe = load_recipe(planted.recipe)
    listed = f"select layer, feature_id from features where layer >= 2 and feature_id in ({planted.primary}, {planted.backup}, 7)"
    found = []
    for place in ("device", "memory"):
        if place == "memory":
            monkeypatch.setattr(loading_saes, "WORKING_SHARE", 0.0)
            monkeypatch.setattr(loading_saes.SaeLoader, "__init__", _roomless(loading_saes.SaeLoader.__init__))
        lake = Lake.create(tmp_path / place)
        verbs.ablate(recipe, lake, "mine", listed)
        with saelake.open(lake.root) as opened:
            found.append(
                opened.sql(
                    "select text, round(p_refusal_token, 4), first_token, completion, flipped from ablations join prompts using "
                    "(prompt_id) join verdicts using (ablation_id) order by all"
                ).fetchall()
            )
            found.append(
                opened.sql(
                    "select layer, count(*), round(sum(activation), 1) from activations group by all order by all"
                ).fetchall()
            )
    assert found[0] == found[2]
    assert found[1] == found[3]


def _roomless(made: Callable[..., None]) -> Callable[..., None]:
    """A loader on a device that holds one SAE and no more."""

    def init(self: SaeLoader, descriptions: dict[int, SaeDescription], device: torch.device) -> None:
        largest = max(one.n_bytes for one in descriptions.values())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loading_saes, "WORKING_SHARE", 1.0)
            patch.setattr(loading_saes, "free_bytes", lambda _device: 1.5 * largest)
            made(self, descriptions, device)
        assert not self.all_fit

    return init
