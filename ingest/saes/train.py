"""SAEs for a model without public ones: `saelake train-saes RECIPE`.

The subject's own residuals of the recipe's prompts and texts, one SAE a layer, gates on held-out sequences. Either every SAE
passes and all are moved to where saes.path says, or nothing is.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sae_lens import SAE
from torch import Tensor

from saelake.ingest.access import require_access
from saelake.ingest.capture import Captured, capture
from saelake.ingest.fingerprint import fingerprint
from saelake.ingest.loading import load_tokenizer
from saelake.ingest.prompts import load_prompts
from saelake.ingest.recipe import Recipe
from saelake.ingest.recipe.training import TrainSaes
from saelake.ingest.saes.description import check_layer
from saelake.ingest.saes.loader import HOST_SHARE
from saelake.ingest.saes.side_by_side import side_by_side
from saelake.ingest.saes.training import Fit, Settings, fit, metadata_of, train_sae
from saelake.ingest.sites import Site
from saelake.ingest.subject import Subject
from saelake.ingest.template import ChatTemplate
from saelake.ingest.texts import Reader, read_texts, source_hash
from saelake.warehouse.durable import sha256_text
from saelake.warehouse.errors import UserError
from saelake.warehouse.machine import host_bytes
from saelake.warehouse.progress import Quiet

MADE_FROM = "training.json"
"""Beside every SAE: what it was made from, and how it reads what was held out."""


GATES = ("min_explained_variance", "max_l0_factor")
"""Fields of [train_saes] that make no SAE another one."""
BYTES_A_WEIGHT = 4 * 4
"""Of main memory while it is trained, in float32: the weight, its gradient and two moments."""


class Trained(NamedTuple):
    """One SAE that passed its gates."""

    layer: int
    folder: Path
    fit: Fit


class Residuals(NamedTuple):
    """What one layer's SAE is trained on and judged by: (t, d) each, without the first token of a sequence."""

    layer: int
    train_td: Tensor
    held_out_td: Tensor


def train_saes(recipe: Recipe, *, force: bool = False, update: bool = False, progress: Quiet | None = None) -> list[Trained]:
    """Trains, judges and places the SAEs of a recipe, which then reads them; deterministic for a seed and device.

    A killed training goes on from the SAEs that were finished; they are placed when all are. On a processor, layers are trained
    side by side, one for each of its threads, as far as main memory allows.

    Args:
        update: keep the SAEs that are there and were made from what the recipe names now, and train the others in their place.
    Raises UserError, before anything is computed, where saes names a release, where SAEs are there already (unless `force` or
    `update`), for an unknown layer and for too few or too many tokens; and, with nothing written, when a layer misses a gate.
    """
    progress = progress or Quiet()
    targets = _targets(recipe, force or update)
    require_access(recipe.model)
    if update and not (targets := _stale(recipe, targets)):
        return []
    subject = Subject.load(recipe.model, recipe.compute)
    check_layer(max(target.layer for target in targets), subject)
    sequences = _sequences(recipe, subject.template, subject)
    held_out = _held_out(sequences, recipe.train_saes, recipe.compute.seed)
    known = _provenance(recipe, sequences) | {"versions": {name: version(name) for name in ("torch", "transformers", "sae-lens")}}
    drafts = _existing_parent(targets[0].folder) / f".train-saes-{sha256_text(json.dumps(known, default=str))[:16]}"
    found = {target: _read_fit(drafts / target.draft) for target in targets}
    missing = [target for target, fit in found.items() if fit is None]
    progress.start(f"{recipe.name} · train-saes", len(missing) * recipe.train_saes.steps, "steps")

    def finish(take: Callable[[], Residuals], progress: Quiet) -> dict[Target, Fit]:
        """Trains and judges the missing SAEs of a layer."""
        resid, fits = take(), dict[Target, Fit]()
        for target in (target for target in missing if target.layer == resid.layer):
            unfinished = drafts / f"unfinished-{target.draft}"
            fits[target] = fit = _train(recipe, subject, resid, target.seed, unfinished, progress)
            _check_gates(target.layer, fit, recipe.train_saes)
            judged = {"held_out": {name: round(value, 4) for name, value in fit._asdict().items()}}
            _write_json(unfinished / MADE_FROM, known | {"seed": target.seed} | judged)
            unfinished.replace(drafts / target.draft)
        return fits

    layers = list(dict.fromkeys(target.layer for target in missing))
    try:
        for group in _residuals(recipe, subject, sequences, held_out, layers):
            for fits in side_by_side(_n_at_once(recipe, subject), finish, group, progress):
                found |= fits
    except UserError:
        shutil.rmtree(drafts, ignore_errors=True)
        raise
    for target in targets:
        _replace(drafts / target.draft, target.folder)
    shutil.rmtree(drafts)
    return sorted(Trained(target.layer, target.folder, fit) for target, fit in found.items() if fit is not None)


class Target(NamedTuple):
    """An SAE that is to be trained."""

    layer: int
    folder: Path
    seed: int
    """The study's, and one more for each group before: SAEs of one layer differ by it alone."""

    @property
    def draft(self) -> str:
        """The name of its folder until all SAEs are finished."""
        return f"{self.layer}-{self.seed}"


def _stale(recipe: Recipe, targets: Sequence[Target]) -> list[Target]:
    """Those that are not there, or were made from something else than the recipe names now; the tokenizer alone is loaded."""
    template = ChatTemplate.of(load_tokenizer(recipe.model), recipe.model)
    wanted = _as_json(_provenance(recipe, _sequences(recipe, template, template)))
    return [t for t in targets if not (wanted | {"seed": t.seed}).items() <= _read_json(t.folder / MADE_FROM).items()]


def _targets(recipe: Recipe, force: bool) -> list[Target]:
    """What a recipe's groups of folders lack: a group that stands whole is left as it is beside one that does not."""
    groups = [group for group in recipe.sae_groups if group.path is not None]
    if not groups:
        release = recipe.saes.release
        raise UserError(f"saes.release: {release} is downloaded, not trained: give saes.path, folders to write SAEs to")
    targets: list[Target] = []
    known: list[Path] = []
    for number, group in enumerate(groups):
        folders = {layer: Path(group.fill(str(group.path), layer)) for layer in group.layers}
        known += folders.values()
        there = [folder for folder in folders.values() if folder.exists()]
        if there and not force and (len(there) < len(folders) or len(groups) == 1):
            raise UserError(f"saes.path: {there[0]} is there already: --force trains new SAEs in its place")
        if force or not there:
            targets += [Target(layer, folder, recipe.compute.seed + number) for layer, folder in folders.items()]
    if twice := next((folder for folder in known if known.count(folder) > 1), None):
        raise UserError(f"saes.path: two groups write to {twice}: give each a folder of its own")
    if not targets:
        raise UserError(f"saes.path: {known[0]} and all others are there already: --force trains new SAEs in their place")
    return targets


def _sequences(recipe: Recipe, template: ChatTemplate, reader: Reader) -> list[list[int]]:
    """Token ids of the prompts in the direction's split and of all texts; the splits that are ablated stay unseen."""
    known = load_prompts(recipe, template.identities)
    prompts = [reader.encode(p.asked).token_ids for p in known if p.split == recipe.direction.split]
    texts = [text.token_ids for spec in recipe.train_saes.texts for text in read_texts(spec, reader)]
    return [ids for ids in prompts + texts if len(ids) > 1]


def _held_out(sequences: Sequence[Sequence[int]], training: TrainSaes, seed: int) -> np.ndarray:
    """(sequences,) bool; raises UserError when what remains to train on is not even a batch."""
    n = len(sequences)
    n_held_out = max(round(n * training.held_out), 1)
    held_out = np.zeros(n, dtype=bool)
    held_out[np.random.default_rng(seed).permutation(n)[:n_held_out]] = True
    n_tokens = sum(len(ids) - 1 for ids, out in zip(sequences, held_out, strict=True) if not out)
    if n_tokens <= training.batch_tokens:
        raise UserError(
            f"train_saes: prompts and texts have {n_tokens:,} tokens to train on, but a batch has {training.batch_tokens:,}: "
            f"add [[train_saes.texts]] or lower train_saes.batch_tokens"
        )
    return held_out


def _residuals(
    recipe: Recipe, subject: Subject, sequences: Sequence[Sequence[int]], held_out: np.ndarray, layers: Sequence[int]
) -> Iterator[list[Callable[[], Residuals]]]:
    """What takes each layer's, in groups: as many layers a pass as a part of main memory holds. A layer can be taken once."""
    n_bytes = sum(map(len, sequences)) * subject.d_model * subject.dtype.itemsize
    room = HOST_SHARE * host_bytes()
    if n_bytes > room:
        raise UserError(
            f"train_saes: the residuals of one layer take {n_bytes / 1e9:.1f} GB of main memory, but {room / 1e9:.1f} GB may be "
            f"used: take fewer or shorter texts"
        )
    n_together = int(room // n_bytes)
    for start in range(0, len(layers), n_together):
        sites = [Site(layer) for layer in layers[start : start + n_together]]
        captured = capture(subject, sequences, sites, recipe.capture.batch_tokens, on_host=True)
        lengths = np.array([len(sequences[i]) for i in captured.order])
        # The first token sees nothing but itself, and its residual is tens of times as large as the others'.
        counted = np.ones(lengths.sum(), dtype=bool)
        counted[np.cumsum(lengths) - lengths] = False
        judged = np.repeat(held_out[captured.order], lengths)
        yield [partial(_take, captured, site, counted & ~judged, counted & judged) for site in sites]


def _take(captured: Captured, site: Site, *rows: np.ndarray) -> Residuals:
    """The residuals of one layer, those to train on and those held out, which are then gone from what was captured."""
    resid_td = captured.resid.pop(site)
    return Residuals(site.layer, *(resid_td[torch.from_numpy(some)] for some in rows))


def _n_at_once(recipe: Recipe, subject: Subject) -> int:
    """Layers to train at once: one on a GPU, on a processor one a thread, as many as a part of main memory holds.

    Of all layers of the recipe, however few are missing: what a resumed training ends has as many threads, and so the same bits.
    """
    if subject.device.type != "cpu":
        return 1
    n_bytes = 2 * recipe.train_saes.width * subject.d_model * BYTES_A_WEIGHT
    return max(min(torch.get_num_threads(), len(recipe.sae_layers), int(HOST_SHARE * host_bytes() // n_bytes)), 1)


def _train(recipe: Recipe, subject: Subject, resid: Residuals, seed: int, folder: Path, progress: Quiet) -> Fit:
    """Trains and writes one SAE; returns how the files, loaded again, read what was held out."""
    training = recipe.train_saes
    settings = Settings(training.width, training.l0, training.steps, training.batch_tokens, training.lr, scale_inputs=True)
    metadata = metadata_of(str(recipe.model.id or recipe.name), resid.layer, seed)
    trained = train_sae(resid.train_td, settings, metadata, seed, device=subject.device, progress=progress)
    trained.save_inference_model(folder)
    return fit(SAE.load_from_disk(folder, device=str(subject.device), dtype="float32"), resid.held_out_td)


def _check_gates(layer: int, found: Fit, training: TrainSaes) -> None:
    """Raises UserError when an SAE is not good enough."""
    low, high = training.l0 / training.max_l0_factor, training.l0 * training.max_l0_factor
    missed = []
    # Written so that NaN misses.
    if not found.explained_variance >= training.min_explained_variance:
        missed.append(f"explains {found.explained_variance:.3f} of the variance, not {training.min_explained_variance:g}")
    if not low <= found.l0 <= high:
        missed.append(f"has {found.l0:.1f} active latents a token, not {low:.1f} to {high:.1f}")
    if missed:
        raise UserError(
            f"train_saes: the SAE of layer {layer} {' and '.join(missed)} on what was held out, so no SAE is kept: "
            f"more train_saes.steps or texts, another lr or width may help"
        )


def _provenance(recipe: Recipe, sequences: Sequence[Sequence[int]]) -> dict[str, object]:
    """What an SAE is made from, for the file beside it.

    The token ids stand for all that makes them of prompts and texts: messages, template, variables, system message and BOS.
    """
    read = hashlib.sha256()
    for token_ids in sequences:
        read.update(f"{json.dumps(token_ids)}\n".encode())
    return {
        "model": fingerprint(recipe.model),
        "dtype": recipe.model.dtype,
        "prompts": recipe.direction.split,
        "token_ids_sha256": read.hexdigest(),
        "train_saes": {name: value for name, value in recipe.section("train_saes").items() if name not in GATES},
        "texts": [source_hash(spec) for spec in recipe.train_saes.texts],
    }


def _read_fit(draft: Path) -> Fit | None:
    """How a finished SAE of a training that was killed reads what was held out; None where there is none."""
    held_out = _read_json(draft / MADE_FROM).get("held_out")
    return Fit(**held_out) if isinstance(held_out, dict) else None


def _read_json(file: Path) -> dict[str, Any]:
    """What a file says, nothing where it is not there or damaged."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _as_json(content: Mapping[str, object]) -> dict[str, Any]:
    """As it reads once it was written."""
    read: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return read


def _existing_parent(target: Path) -> Path:
    """The folder that a set of SAEs goes into, made if it is not there; drafts lie beside, so that moving them is a rename."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"saes.path: {target.parent} cannot be made ({error.strerror or error})") from error
    return target.parent


def _replace(draft: Path, target: Path) -> None:
    """Puts a finished SAE in the place of what is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for file in draft.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner only
    if target.exists():
        shutil.rmtree(target)
    draft.replace(target)


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=1, default=str) + "\n", "utf-8")
