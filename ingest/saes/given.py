"""SAEs that come as objects of SAELens, from a notebook: which site each reads, and what it is called."""

import copy
import hashlib
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from saelake.ingest.saes.description import SaeDescription, check_kind, hooks_of, norm_convention, norm_scale
from saelake.ingest.saes.refs import SaeRef, sae_id_of
from saelake.ingest.saes.sae import Sae, laid_open
from saelake.ingest.sites import Site
from saelake.ingest.subject import Subject
from saelake.warehouse import arguments
from saelake.warehouse.errors import UserError


def saes_of(saes: Any, subject: Subject) -> list[Sae]:
    """SAEs laid open, in the order given, on the subject's device; those in main memory beside a GPU stay there.

    Args:
        saes: SAEs of SAELens or saelake, or a mapping from hooks, Sites or layers (resid_post) to such, or to lists of such.
    """
    if not isinstance(saes, Mapping):
        return [_opened(sae, None, subject.device) for sae in _listed(saes)]
    return [_opened(sae, _at(key), subject.device) for key, some in saes.items() for sae in _listed(some)]


def _listed(saes: Any) -> Iterable[Any]:
    return saes if isinstance(saes, list | tuple) else [saes]


def _at(key: Any) -> Site:
    if isinstance(key, Site):
        return key
    return Site.parse(key) if isinstance(key, str) else Site(arguments.whole("a layer in saes", key, 0))


def _opened(given: Any, site: Site | None, device: torch.device) -> Sae:
    if isinstance(given, Sae):
        if site not in (None, given.reads):
            raise UserError(f"{given.sae_id} reads {given.reads}, not {site}")
        return given
    if not hasattr(given, "cfg") or not hasattr(given, "encode"):
        raise UserError(
            f"a {type(given).__name__} is not an SAE of SAELens: give what SAE.from_pretrained or SAE.load_from_disk gives"
        )
    stays = device.type != "cpu" and all(one.device.type == "cpu" for one in given.parameters())
    module = _for_inference(given, torch.device("cpu") if stays else device)
    metadata = module.cfg.metadata.to_dict()
    hook, hook_out = hooks_of(metadata)
    if site is None and hook is None:
        raise UserError("an SAE does not say which hook it reads: give saes as {hook or Site: SAE}")
    reads = site or Site.parse(str(hook))
    content_hash = _content_hash(module, f"{reads.hook} {hook_out}")
    ref = SaeRef(
        sae_id_of(reads.layer, content_hash), f"given@sha256:{content_hash}", reads.layer, content_hash, None, None, None, None
    )
    check_kind(module.cfg.architecture(), ref)
    scale = norm_scale(ref, metadata)
    norm = norm_convention(ref, module.cfg.normalize_activations, scale)
    description = SaeDescription(ref, module.cfg.architecture(), module.cfg.d_in, module.cfg.d_sae, reads.hook, norm, hook_out)
    description = replace(description, d_out=getattr(module.cfg, "d_out", None))
    if scale is not None and module.cfg.normalize_activations == "expected_average_only_in":
        module = copy.deepcopy(module)
        module.fold_activation_norm_scaling_factor(scale)
    return replace(laid_open(module, description), off_device=stays)


def _for_inference(given: Any, device: torch.device) -> Any:
    """The SAE in float32 on the device, as it is used after training; the one that is given stays as it is."""
    from sae_lens import SAE, TrainingSAE

    if isinstance(given, TrainingSAE):  # BatchTopK, for one, counts over the whole batch while it is trained
        with tempfile.TemporaryDirectory() as folder:
            given.save_inference_model(Path(folder))
            return SAE.load_from_disk(folder, device=str(device), dtype="float32")
    weights = dict(given.named_parameters())
    as_it_is = all(one.dtype == torch.float32 and one.device == device for one in weights.values())
    reshapes = getattr(given.cfg, "reshape_activations", "none") == "hook_z"
    if as_it_is and not reshapes:
        return given
    module = copy.deepcopy(given).to(device=device, dtype=torch.float32)
    module.dtype = torch.float32
    return module


def _content_hash(module: Any, sites: str) -> str:
    """sha256 of kind, sites and weights, in hex."""
    digest = hashlib.sha256(f"{module.cfg.architecture()} {sites}".encode())
    for name, weight in sorted(module.named_parameters()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
