"""Every family of models at every site, against passes that are hooked by hand: one prompt at a time, decode plus error."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.requests import DirectionEdit, FeatureSet, Request
from saelake.ingest.saes.refs import SaeRef
from saelake.ingest.saes.sae import Sae, check_fits, load_sae
from saelake.ingest.sites import KINDS, Site
from saelake.ingest.subject import Subject
from saelake.warehouse.errors import UserError
from tests.ingest.families import D_MODEL, FAMILIES, make_family
from tests.ingest.tiny import save_sae, word_tokenizer

PROMPTS = [
    "How do I pick a lock?",
    "Write a poem about the user, the model and the assistant. Sure, here is a story about a house.",
]
WIDTH = 24
EDITED = [kind for kind in KINDS if kind != "mlp_in_unit"]
N_NEW = 4
FEATURES = range(0, WIDTH, 2)


@cache
def subject_of(family: str) -> Subject:
    return Subject(make_family(family), word_tokenizer())


def sae_at(reads: Site, writes: Site | None = None, architecture: str = "jumprelu", d_in: int = D_MODEL) -> Sae:
    """A random SAE that says of itself which site it reads (and writes)."""
    hooks = {"hook_name": reads.hook} | ({} if writes is None else {"hook_name_out": writes.hook})
    more: dict[str, Any] = {} if writes is None else {"d_out": D_MODEL, "apply_b_dec_to_input": False}
    with TemporaryDirectory() as folder:
        path = save_sae(Path(folder, "sae"), architecture, reads.layer, d_in, WIDTH, hooks, seed=reads.layer, **more)
        return load_sae(SaeRef(reads.hook, reads.hook, reads.layer, "0" * 64, None, path, None, None))


def without(sae: Sae, ids: Sequence[int], read: Tensor, written: Tensor) -> Tensor:
    """The full form: decode without the features, plus the error."""
    acts = sae.module.encode(read)
    kept = acts.clone()
    kept[..., list(ids)] = 0
    return sae.module.decode(kept) + (written - sae.module.decode(acts))


@contextmanager
def hooked(subject: Subject, family: str, kind: str, layer: int, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, what is at a site is edited, by the module names that tests/ingest/families.py writes down."""
    known = FAMILIES[family]
    block = subject.model.get_submodule(f"{known.blocks}.{layer}")
    before: list[Tensor] = []

    def mid(attn: Tensor) -> Tensor:
        return attn + edit(before[-1] + attn) - (before[-1] + attn)

    def on_output(part: nn.Module, fn: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def hook(_module: Any, _args: Any, out: Any) -> Any:
            return fn(out) if isinstance(out, Tensor) else (fn(out[0]), *out[1:])

        return part.register_forward_hook(hook).remove

    def on_input(part: nn.Module, fn: Callable[[Tensor], Tensor | None]) -> Callable[[], None]:
        def hook(_module: Any, args: Any, kwargs: Any) -> Any:
            if args:
                found = fn(args[0])
                return None if found is None else ((found, *args[1:]), kwargs)
            found = fn(kwargs["hidden_states"])
            return None if found is None else (args, kwargs | {"hidden_states": found})

        return part.register_forward_pre_hook(hook, with_kwargs=True).remove

    with ExitStack() as hooks:
        if kind == "resid_mid":
            hooks.callback(on_input(block, before.append))
            hooks.callback(on_output(block.get_submodule(known.attn_out), mid))
        elif kind in ("resid_pre", "z", "mlp_in"):
            part = {"resid_pre": block, "z": block.get_submodule(known.z), "mlp_in": block.get_submodule(known.mlp)}[kind]
            hooks.callback(on_input(part, edit))
        else:
            where = {"resid_post": "", "attn_out": known.attn_out, "mlp_out": known.mlp_out}[kind]
            hooks.callback(on_output(block.get_submodule(where), edit))
        yield


def literal(subject: Subject, token_ids: list[int]) -> Tensor:
    with torch.no_grad():
        return subject.model(torch.tensor([token_ids]), use_cache=False).logits[0, -1].float().log_softmax(-1)


def literal_answer(subject: Subject, token_ids: list[int], end: int) -> list[int]:
    found = list(token_ids)
    for _ in range(N_NEW):
        token = int(literal(subject, found).argmax())
        if token == end:
            break
        found.append(token)
    return found[len(token_ids) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_of_every_family_is_edited_as_by_hand(family: str) -> None:
    subject, known = subject_of(family), FAMILIES[family]
    ids = [subject.encode(text).token_ids for text in PROMPTS]
    clean = torch.stack([literal(subject, one) for one in ids])
    for kind in EDITED:
        layer = 1 if kind in ("resid_mid", "resid_post") else 0
        site = Site(layer, kind)
        if kind in known.refused:
            with pytest.raises(UserError, match=f"{kind} of layer {layer} cannot be used in this model"):
                check_fits(sae_at(site), subject)
            continue
        sae = sae_at(site, d_in=subject.width(site))
        check_fits(sae, subject)
        engine = AblationEngine(subject, {3: sae}, ids)
        requests = [Request(i, FeatureSet.of([3] * len(FEATURES), FEATURES)) for i in range(len(ids))]
        with hooked(subject, family, kind, layer, lambda x, sae=sae: without(sae, FEATURES, x, x)):  # type: ignore[misc]
            expected = torch.stack([literal(subject, one) for one in ids])
            answers = [literal_answer(subject, one, subject.tokenizer.eos_token_id) for one in ids]
        assert not torch.allclose(expected, clean, atol=1e-3), f"{kind}: the edit does nothing"
        torch.testing.assert_close(engine.log_probabilities(requests), expected, atol=2e-4, rtol=2e-4)
        assert engine.answer(requests, N_NEW).token_ids == answers, kind
    torch.testing.assert_close(torch.stack([literal(subject, one) for one in ids]), clean, msg="the model is as it was")


@pytest.mark.parametrize("family", ["Llama", "Gemma 2", "OPT", "BLOOM", "GPT-2", "Mixtral", "Falcon"])
@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"])
def test_a_transcoder_reads_at_one_site_and_writes_at_another(family: str, architecture: str) -> None:
    subject, layer = subject_of(family), 1
    sae = sae_at(Site(layer, "mlp_in"), Site(layer, "mlp_out"), architecture)
    check_fits(sae, subject)
    ids = [subject.encode(text).token_ids for text in PROMPTS]
    features, read = list(range(0, WIDTH, 2)), []
    with (
        hooked(subject, family, "mlp_in", layer, lambda x: read.append(x) or x),
        hooked(subject, family, "mlp_out", layer, lambda y: without(sae, features, read[-1], y)),
    ):
        expected = torch.stack([literal(subject, one) for one in ids])
    engine = AblationEngine(subject, {0: sae}, ids)
    requests = [Request(i, FeatureSet.of([0] * len(features), features)) for i in range(len(ids))]
    torch.testing.assert_close(engine.log_probabilities(requests), expected, atol=2e-4, rtol=2e-4)
    seen = engine.activations(requests[:1], {0: None})
    with hooked(subject, family, "mlp_in", layer, lambda x: read.append(x) or x):
        literal(subject, ids[0])
    acts_tf = sae.module.encode(read[-1]).view(len(ids[0]), WIDTH)
    np.testing.assert_allclose(seen.activation, acts_tf[seen.pos, seen.feature_id], atol=1e-4)
    assert len(seen.pos) == int((acts_tf != 0).sum())


def test_a_transcoder_may_write_in_a_later_layer_than_it_reads() -> None:
    """With another SAE held between the two, which must not hide from the pass what is read below it."""
    subject = subject_of("Llama")
    saes = {0: sae_at(Site(0, "mlp_in"), Site(2, "mlp_out"), "transcoder"), 1: sae_at(Site(1))}
    for sae in saes.values():
        check_fits(sae, subject)
    ids, read = [subject.encode(text).token_ids for text in PROMPTS], list[Tensor]()
    with (
        hooked(subject, "Llama", "mlp_in", 0, lambda x: read.append(x) or x),
        hooked(subject, "Llama", "resid_post", 1, lambda x: without(saes[1], FEATURES, x, x)),
        hooked(subject, "Llama", "mlp_out", 2, lambda y: without(saes[0], FEATURES, read[-1], y)),
    ):
        expected = torch.stack([literal(subject, one) for one in ids])
        answers = [literal_answer(subject, one, subject.tokenizer.eos_token_id) for one in ids]
    features = FeatureSet.of(*zip(*product(range(2), FEATURES), strict=True))
    requests, engine = [Request(i, features) for i in range(len(ids))], AblationEngine(subject, saes, ids)
    torch.testing.assert_close(engine.log_probabilities(requests), expected, atol=2e-4, rtol=2e-4)
    assert engine.answer(requests, N_NEW).token_ids == answers


@pytest.mark.parametrize("family", ["Phi", "Cohere", "Falcon", "GPT-NeoX", "Llama"])
def test_all_sites_of_a_block_are_read_in_whichever_order_it_comes_to_them(family: str) -> None:
    """Where attention and MLP lie side by side, their shared norm is called before the attention."""
    subject = subject_of(family)
    ids, sites = subject.encode(PROMPTS[0]).token_ids, [Site(1, kind) for kind in ("z", "attn_out", "mlp_in_unit")]
    batch = subject.batch([ids])
    read = subject.read(batch, sites)
    whole = subject.read(batch, [*sites, Site(2)])
    assert read.keys() == set(sites)
    assert all(torch.equal(read[site], whole[site]) for site in sites)
    saes = dict(enumerate(sae_at(site, d_in=subject.width(site)) for site in sites[:2]))
    saes[2] = sae_at(sites[2], Site(1, "mlp_out"), "transcoder")
    found = AblationEngine(subject, saes, [ids]).activations([Request(0)], dict.fromkeys(saes))
    expected = [int((sae.encode(read[sae.reads][0].float()) != 0).sum()) for sae in saes.values()]
    assert np.bincount(found.sae, minlength=3).tolist() == expected
    assert min(expected) > 0


@pytest.mark.parametrize("family", ["Llama", "Gemma 2", "OPT", "BLOOM", "GPT-2"])
@pytest.mark.parametrize("numbers", [(0, 1, 2), (2, 1, 0)], ids=str)
def test_resid_mid_is_the_sum_of_what_other_saes_leave_whatever_their_numbers(family: str, numbers: Sequence[int]) -> None:
    subject, layer = subject_of(family), 1
    kinds = ("resid_pre", "attn_out", "resid_mid")
    saes = {n: sae_at(Site(layer, kind)) for n, kind in zip(numbers, kinds, strict=True)}
    ids = [subject.encode(text).token_ids for text in PROMPTS]
    with ExitStack() as hooks:
        for n, kind in zip(numbers, kinds, strict=True):
            edit = partial(lambda sae, x: without(sae, FEATURES, x, x), saes[n])
            hooks.enter_context(hooked(subject, family, kind, layer, edit))
        expected = torch.stack([literal(subject, one) for one in ids])
    features = FeatureSet.of(*zip(*product(range(3), FEATURES), strict=True))
    found = AblationEngine(subject, saes, ids).log_probabilities([Request(i, features) for i in range(len(ids))])
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("transcoder_first", [False, True])
def test_saes_that_write_at_one_site_act_in_the_order_of_their_numbers(transcoder_first: bool) -> None:
    """What the other SAE reads there is what the transcoder has left, or the other way round."""
    subject, layer = subject_of("Llama"), 1
    transcoder = sae_at(Site(layer, "mlp_in"), Site(layer, "mlp_out"), "transcoder")
    other, ids = sae_at(Site(layer, "mlp_out")), subject.encode(PROMPTS[1]).token_ids
    read: list[Tensor] = []

    def one(y: Tensor) -> Tensor:
        return without(transcoder, FEATURES, read[-1], y)

    def two(y: Tensor) -> Tensor:
        return without(other, FEATURES, y, y)

    def literal_of(first: Callable[[Tensor], Tensor], then: Callable[[Tensor], Tensor]) -> Tensor:
        with (
            hooked(subject, "Llama", "mlp_in", layer, lambda x: read.append(x) or x),
            hooked(subject, "Llama", "mlp_out", layer, lambda y: then(first(y))),
        ):
            return literal(subject, ids)

    expected, reverse = (
        (literal_of(one, two), literal_of(two, one)) if transcoder_first else (literal_of(two, one), literal_of(one, two))
    )
    assert not torch.allclose(expected, reverse, atol=1e-3), "the order does nothing"
    engine = AblationEngine(subject, dict(enumerate([transcoder, other] if transcoder_first else [other, transcoder])), [ids])
    held = FeatureSet.of([0] * len(FEATURES) + [1] * len(FEATURES), [*FEATURES, *FEATURES])
    torch.testing.assert_close(engine.log_probabilities([Request(0, held)])[0], expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("family", [name for name, known in FAMILIES.items() if "mlp_in_unit" not in known.refused])
def test_the_inside_of_a_norm_is_what_it_gives_without_its_gain(family: str) -> None:
    subject, unit = subject_of(family), Site(1, "mlp_in_unit")
    norm = subject.sites.places[unit].module
    weight, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
    gain = 1 if weight is None else weight + 1 if "Gemma" in family else weight
    read = subject.read(subject.batch([subject.encode(PROMPTS[0]).token_ids]), [unit, Site(1, "mlp_in")])
    given = read[unit] * gain + (0 if bias is None else bias)
    torch.testing.assert_close(given, read[Site(1, "mlp_in")].view(given.shape), atol=1e-4, rtol=1e-4)


def test_the_inside_of_a_norm_that_is_not_known_is_refused() -> None:
    model = make_family("Llama")

    class Squashing(type(model.model.layers[1].post_attention_layernorm)):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor) -> Tensor:
            given: Tensor = super().forward(hidden_states).tanh()
            return given

    model.model.layers[1].post_attention_layernorm.__class__ = Squashing
    subject = Subject(model, word_tokenizer())
    check_fits(sae_at(Site(0, "mlp_in_unit"), Site(0, "mlp_out"), "transcoder"), subject)
    with pytest.raises(UserError, match=r"mlp_in_unit of layer 1 cannot be used .*: how a Squashing normalises is not known"):
        check_fits(sae_at(Site(1, "mlp_in_unit"), Site(1, "mlp_out"), "transcoder"), subject)


def test_directions_act_at_any_site() -> None:
    subject = subject_of("Llama")
    ids, rng = subject.encode(PROMPTS[0]).token_ids, np.random.default_rng(0)
    vector = rng.standard_normal(D_MODEL).astype(np.float32)
    vector /= np.linalg.norm(vector)
    edit = DirectionEdit(vector, (Site(0, "attn_out"), Site(2, "mlp_out")))
    r = torch.from_numpy(vector)

    def out(x: Tensor) -> Tensor:
        return x - (x @ r)[..., None] * r

    with hooked(subject, "Llama", "attn_out", 0, out), hooked(subject, "Llama", "mlp_out", 2, out):
        expected = literal(subject, ids)
    engine = AblationEngine(subject, {}, [ids])
    torch.testing.assert_close(engine.log_probabilities([Request(0, direction=edit)])[0], expected, atol=1e-4, rtol=1e-4)


def test_a_pad_token_that_is_the_eos_token_changes_nothing() -> None:
    plain, shared = word_tokenizer(), word_tokenizer()
    shared.pad_token = shared.eos_token
    found = []
    for tokenizer in (plain, shared):
        subject = Subject(make_family("Llama"), tokenizer)
        ids = [subject.encode(text).token_ids for text in PROMPTS]
        found.append(AblationEngine(subject, {}, ids).log_probabilities([Request(0), Request(1)]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_activations_do_not_hide_which_output_is_added(dtype: torch.dtype) -> None:
    model = make_family("Gemma 2").to(dtype)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 3] = 3000  # as the first token's are in real models
    sites = Subject(model, word_tokenizer()).sites
    block = model.model.layers[1]
    assert sites.places[Site(1, "attn_out")].module is block.post_attention_layernorm
    assert sites.places[Site(1, "mlp_out")].module is block.post_feedforward_layernorm
