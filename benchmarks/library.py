"""make bench-library: an edited pass of the library at every kind of site, its ten lines, and its peers on the same edits.

    python -m benchmarks.library

Contenders alternate in one process; `ratio` lines carry the claims. The section "library" of docs/benchmarks.md is replaced.
A random Llama of SmolLM2-135M's width with the organism's tokenizer is edited, so that nothing is downloaded.
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig
from transformers.utils import logging

import saelake
from benchmarks.harness import Clock, Report, alternated, clock_of
from benchmarks.published import bridge_hooks, ids_of, saelens_bridge
from benchmarks.subjects import random_model, random_sae
from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.interventions import Interventions
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.engine.slices import SliceCache
from saelake.ingest.saes.description import SaeDescription
from saelake.ingest.saes.sae import Sae
from saelake.ingest.sites import HOOKS, Site
from saelake.ingest.subject import Subject

ORGANISM = Path(saelake.__file__).parent / "ingest/organism/model"
LLAMA: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
LAYERS = range(2, 10)
WIDTH, PER_LAYER = 8192, 50
N_PROMPTS, N_NEW = 16, 16
READ_ONLY = ("mlp_in_unit",)
SAME = 1e-3
"""Difference of logits up to which two libraries have done the same."""
WORDS = ("steal", "a", "violin", "and", "then", "bake", "cake", "for", "the", "old", "school", "by", "quiet", "lake", "friend")
PACKAGES = ("torch", "transformers", "sae-lens", "transformer-lens")


class Setting:
    """The model, its prompts, and SAEs of each kind of site, made when they are asked for."""

    def __init__(self, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(ORGANISM)
        config = LlamaConfig(**LLAMA, vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=None)
        model = random_model(config, torch.device("cpu"), torch.float32)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        self.folder = folder
        self.subject = saelake.Subject(model, tokenizer, target_tokens=["I"])
        rng = np.random.default_rng(0)
        self.texts = [" ".join(rng.choice(WORDS, 24).tolist()) for _ in range(N_PROMPTS)]
        self.prompts = [self.subject.encode(text).token_ids for text in self.texts]
        self.batch = self.subject.batch(self.prompts)

    def saes(self, kind: str) -> dict[int, Sae]:
        """layer -> a random SAE that reads and writes there."""
        sites = [Site(layer, kind) for layer in LAYERS]
        read = self.subject.read(self.batch, sites)
        kept, generator = self.batch.attention_mask_bt.bool(), torch.Generator().manual_seed(0)
        made = {}
        for site in sites:
            sae = random_sae(read[site][kept].float(), site.layer, WIDTH, generator)
            description = SaeDescription(sae.ref, "jumprelu", sae.d_in, WIDTH, site.hook, "none")
            made[site.layer] = Sae(description, sae.load)
        return made

    def features(self, seed: int = 0) -> FeatureSet:
        """Some features of every layer."""
        rng = np.random.default_rng(seed)
        ids = np.concatenate([np.sort(rng.choice(WIDTH, PER_LAYER, replace=False)) for _ in LAYERS])
        return FeatureSet.of(np.repeat(LAYERS, PER_LAYER), ids)


def edited(subject: Subject, saes: dict[int, Sae], setting: Setting) -> Callable[[], Tensor]:
    """A pass of the whole network with the features ablated."""
    slices, features = {n: SliceCache(sae) for n, sae in saes.items()}, setting.features()

    def run() -> Tensor:
        requests = [Request(row, features) for row in range(N_PROMPTS)]
        width = setting.batch.input_ids_bt.shape[1]
        with torch.inference_mode(), Interventions(subject, slices, requests, width).at_work(setting.batch):
            return subject.forward(setting.batch)

    return run


def by_site(report: Report, setting: Setting, rounds: int, clock: Clock) -> None:
    """One pass of the whole network: bare, and with 50 features ablated on each of 8 layers, at every kind of site."""
    subject, writable = setting.subject, [kind for kind in HOOKS if kind not in READ_ONLY]
    contenders: dict[str, Callable[[], object]] = {"bare": lambda: subject.forward(setting.batch)}
    contenders |= {kind: edited(subject, setting.saes(kind), setting) for kind in writable}
    times = alternated(contenders, rounds, clock=clock)
    report.line(
        f"\none pass of {N_PROMPTS} prompts, {int(setting.batch.attention_mask_bt.sum())} tokens, with {PER_LAYER} features "
        f"ablated on each of {len(LAYERS)} layers"
    )
    report.line(times.table())
    for kind in writable:
        report.ratio(f"edited_at_{kind}", times.ratio(kind, "bare"), "<= 1.10")


def ten_lines(report: Report, setting: Setting, rounds: int, clock: Clock) -> None:
    """Answers by the public Engine, and by the engine that a recipe's stages call, for the same edits."""
    saes, features = setting.saes("resid_post"), setting.features()
    engine = saelake.Engine(setting.subject, list(saes.values()))
    ablate: dict[str | int | Site, Sequence[int]] = {saes[n].sae_id: features.at(n)["feature_id"].tolist() for n in features.saes}
    inner = AblationEngine(setting.subject, saes, setting.prompts)
    requests = [Request(row, features) for row in range(N_PROMPTS)]
    times = alternated(
        {
            "stages": lambda: inner.answer(requests, N_NEW),
            "library": lambda: engine.answer(setting.texts, ablate=ablate, max_new_tokens=N_NEW),
        },
        rounds,
        clock=clock,
    )
    report.line(f"\n{N_PROMPTS} greedy answers of {N_NEW} tokens under the same edits")
    report.line(times.table())
    report.ratio("ten_lines", times.ratio("library", "stages"), "<= 1.05")


def peers(report: Report, setting: Setting, rounds: int, clock: Clock) -> None:
    """The same features ablated by other libraries, each in its own way of keeping the SAE's error; logits are compared."""
    saes, features = setting.saes("resid_post"), setting.features()
    here = edited(setting.subject, saes, setting)
    expected = here()
    contenders: dict[str, Callable[[], object]] = {"here": here}
    for name, make in {
        "TransformerLens (bridge), hooks": _bridge,
        "SAELens, SAETransformerBridge": _saelens,
        "nnsight, trace": _nnsight,
    }.items():
        try:
            run = make(setting, saes, features)
            differs = float((run() - expected).abs().max())
        except Exception as error:  # whatever a peer makes of a model that it does not know
            report.not_run(name, " ".join(f"{type(error).__name__}: {error}".split())[:200])
            continue
        if differs > SAME:
            report.not_run(name, f"it does something else: its logits differ by {differs:.2g}")
            continue
        report.line(f"largest difference of a logit, {name}: {differs:.2g}")
        contenders[name] = run
    times = alternated(contenders, rounds, clock=clock)
    report.line(f"\nthe same edits by other libraries: one pass, {PER_LAYER} features on each of {len(LAYERS)} layers")
    report.line(times.table())
    for name in list(contenders)[1:]:
        report.ratio(f"faster_than_{name.split(',')[0].split(' ')[0].lower()}", times.ratio(name, "here"), ">= 1")


def _ablated(module: Any, ids: Tensor, x_btd: Tensor) -> Tensor:
    """The literal edit: what the SAE writes without the features, with its error added."""
    acts = module.encode(x_btd)
    held = acts.clone()
    held[..., ids] = 0
    return module.decode(held) + (x_btd - module.decode(acts))


def _bridged(setting: Setting) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer = AutoTokenizer.from_pretrained(setting.folder)
    return TransformerBridge.boot_transformers(str(setting.folder), tokenizer=tokenizer, device="cpu", dtype=torch.float32)


def _bridge(setting: Setting, saes: dict[int, Sae], features: FeatureSet) -> Callable[[], Tensor]:
    model, batch = _bridged(setting), setting.batch

    def hook(sae: Sae, ids: Tensor, x_btd: Tensor, hook: Any) -> Tensor:
        return _ablated(sae.module, ids, x_btd)

    hooks = [(saes[n].reads.hook, partial(hook, saes[n], ids_of(features, n))) for n in features.saes]

    def run() -> Tensor:
        with torch.inference_mode():
            found = model.run_with_hooks(
                batch.input_ids_bt, attention_mask=batch.attention_mask_bt, fwd_hooks=hooks, return_type="logits"
            )
            return found[:, -1]

    return run


def _saelens(setting: Setting, saes: dict[int, Sae], features: FeatureSet) -> Callable[[], Tensor]:
    model, batch = saelens_bridge(setting.folder, saes), setting.batch
    hooks = bridge_hooks(features)

    def run() -> Tensor:
        with torch.no_grad():
            found: Tensor = model.run_with_hooks(batch.input_ids_bt, attention_mask=batch.attention_mask_bt, fwd_hooks=hooks)
            return found[:, -1]

    return run


def _nnsight(setting: Setting, saes: dict[int, Sae], features: FeatureSet) -> Callable[[], Tensor]:
    from nnsight import NNsight

    model, batch = NNsight(setting.subject.model), setting.batch
    given = {"input_ids": batch.input_ids_bt, "attention_mask": batch.attention_mask_bt, "position_ids": batch.position_ids_bt}
    edits = [(n, saes[n].module, ids_of(features, n)) for n in features.saes]

    def run() -> Tensor:
        with torch.no_grad(), model.trace(**given, use_cache=False):
            for n, module, ids in edits:
                model.model.layers[n].output[:] = _ablated(module, ids, model.model.layers[n].output)
            logits = model.output.logits.save()
        found: Tensor = logits[:, -1]
        return found

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of torch; two are slower here while others use the machine")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    report = Report("library", "The engine as a library", PACKAGES)
    clock, kind = clock_of(arguments.threads)
    report.line(f"torch threads: {arguments.threads}; times are {kind}")
    try:
        report.line(f"nnsight {version('nnsight')}")
    except PackageNotFoundError:
        report.line("nnsight is not installed")
    report.line(
        f"a random Llama of {LLAMA['num_hidden_layers']} layers of width {LLAMA['hidden_size']}, random JumpReLU SAEs of "
        f"{WIDTH:,} latents on layers {LAYERS[0]} to {LAYERS[-1]}, float32"
    )
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(Path(folder))
        by_site(report, setting, arguments.rounds, clock)
        ten_lines(report, setting, arguments.rounds, clock)
        peers(report, setting, arguments.rounds, clock)
    report.keep()


if __name__ == "__main__":
    main()
