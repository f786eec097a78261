"""Sparse autoencoders: SAELens' own, with their weights and gate laid open in float32.

    for ref in list_saes(recipe):
        sae = load_sae(ref, subject.device)
        check_fits(sae, subject)
        acts_nf = sae.encode(resid_nd)

Letters of shapes: n tokens, d residual width, f latents. Nothing is kept between calls: the caller holds one layer at a time.
"""

import re
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from ingest.sae_refs import SaeRef, list_saes
from warehouse.errors import UserError

__all__ = ["Sae", "SaeFacts", "SaeRef", "check_fits", "list_saes", "load_sae", "read_facts"]

ARCHITECTURES = ("standard", "jumprelu", "topk")
HOOKS = (
    (re.compile(r"blocks\.(\d+)\.hook_resid_post"), 0),
    (re.compile(r"model\.(?:language_model\.)?layers\.(\d+)(?:\.output)?"), 0),
    (re.compile(r"blocks\.(\d+)\.hook_resid_pre"), -1),  # the same tensor: what block l - 1 gives
)


class Sized(Protocol):
    """What an SAE must fit: a loaded subject, or its shape as its files tell it."""

    @property
    def n_layers(self) -> int: ...

    @property
    def d_model(self) -> int: ...


@dataclass(frozen=True)
class SaeFacts:
    """What an SAE says about itself; known from its configuration alone."""

    ref: SaeRef
    architecture: str
    d_in: int
    width: int
    hook: str | None
    """The hook point that it was trained on, if declared."""
    norm: str
    """none | dataset norm folded: SCALE, with what became of the threshold (one scale for all tokens, inside the weights)"""

    @property
    def n_bytes(self) -> int:
        """Memory of its weights, loaded."""
        return 4 * (2 * self.d_in * self.width + 2 * self.width + self.d_in)


class SaeColumns(NamedTuple):
    """What of an SAE some features need: the same for all rows, or gathered row by row (then every tensor leads with b)."""

    W_enc: Tensor
    """(d, k) or (b, d, k)"""
    bias: Tensor
    """(k,) or (b, 1, k): b_enc, with the subtraction of b_dec from the input folded in."""
    threshold: Tensor
    """(k,) or (b, 1, k)"""
    W_dec: Tensor
    """(k, d) or (b, k, d)"""

    def encode(self, resid_btd: Tensor) -> Tensor:
        """Activations (b, t, k) of float32 residuals: what `Sae.encode` gives for these features, up to rounding."""
        pre_btk = resid_btd @ self.W_enc + self.bias
        return pre_btk.relu() * (pre_btk > self.threshold)


@dataclass(frozen=True, eq=False)
class Sae:
    """A loaded SAE, float32.

    Elementwise ones give acts = relu(pre) * (pre > threshold) with pre = (resid - b_dec * apply_b_dec_to_input) W_enc + b_enc.
    """

    facts: SaeFacts
    W_enc: Tensor
    """(d, f)"""
    b_enc: Tensor
    """(f,)"""
    W_dec: Tensor
    """(f, d): what one unit of activation adds to the residual stream."""
    b_dec: Tensor
    """(d,)"""
    threshold: Tensor
    """(f,); 0 without a jump."""
    apply_b_dec_to_input: bool
    elementwise: bool
    """False when a latent's activation depends on the other latents (TopK), so that it cannot be computed alone."""
    module: Any
    """SAELens' object."""

    @property
    def ref(self) -> SaeRef:
        """Which SAE this is."""
        return self.facts.ref

    @property
    def layer(self) -> int:
        """The block after which resid_post is read."""
        return self.facts.ref.layer

    @property
    def d_in(self) -> int:
        """Residual width."""
        return self.facts.d_in

    @property
    def width(self) -> int:
        """Number of latents."""
        return self.facts.width

    @property
    def norm(self) -> str:
        """How inputs are scaled."""
        return self.facts.norm

    @torch.no_grad()
    def encode(self, resid_nd: Tensor) -> Tensor:
        """All activations (..., f) of residuals (..., d): SAELens' own encoder, in float32."""
        acts_nf: Tensor = self.module.encode(resid_nd.float())
        return acts_nf

    @torch.no_grad()
    def pre_activations(self, resid_nd: Tensor, out_nf: Tensor) -> Tensor:
        """What `encode` gates, (n, f) in float32, written into `out_nf`: the same arithmetic without a pass for each step."""
        x_nd = resid_nd.float()
        if self.apply_b_dec_to_input:
            x_nd = x_nd - self.b_dec
        return torch.mm(x_nd, self.W_enc, out=out_nf).add_(self.b_enc)

    @torch.no_grad()
    def columns(self, feature_ids: np.ndarray) -> SaeColumns:
        """What these features (k,), or each row's features (b, k), need. The SAE must be elementwise."""
        assert self.elementwise, "a latent of this SAE cannot be computed alone"
        ids = torch.from_numpy(feature_ids.astype(np.int64)).to(self.W_enc.device)
        W_enc, bias, threshold = self.W_enc[:, ids], self.b_enc[ids], self.threshold[ids]
        if self.apply_b_dec_to_input:
            bias = bias - torch.tensordot(self.b_dec, W_enc, dims=1)
        if ids.ndim == 1:
            return SaeColumns(W_enc, bias, threshold, self.W_dec[ids])
        return SaeColumns(W_enc.permute(1, 0, 2), bias[:, None], threshold[:, None], self.W_dec[ids])

    @torch.no_grad()
    def decode(self, acts_nf: Tensor) -> Tensor:
        """The reconstruction (..., d) of activations (..., f): SAELens' own decoder."""
        resid_nd: Tensor = self.module.decode(acts_nf)
        return resid_nd


def read_facts(ref: SaeRef) -> SaeFacts:
    """What an SAE's configuration says, without its weights; UserError when it cannot be read or is not supported."""
    from sae_lens.loading.pretrained_sae_loaders import (
        get_conversion_loader_name,
        get_sae_lens_config_from_disk,
        handle_config_defaulting,
        load_sae_config_from_huggingface,
    )

    try:
        if ref.path is not None:
            config = handle_config_defaulting(get_sae_lens_config_from_disk(ref.path))
        else:
            config = load_sae_config_from_huggingface(ref.release, ref.release_id)
        metadata = config.get("metadata") or {}
        hook = metadata.get("hook_name") or metadata.get("hf_hook_name")
        sizes = config["d_in"], config["d_sae"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"saes: the configuration of {ref.location} cannot be read ({_first_line(error)}).") from error
    scale = _norm_scale(ref, metadata)
    if ref.published_threshold and (ref.release is None or get_conversion_loader_name(ref.release) != "llama_scope"):
        raise UserError(f'saes.threshold = "published" is about Llama Scope, and {ref.location} is another SAE: leave it out.')
    norm = _norm_convention(ref, config.get("normalize_activations", "none"), scale)
    return _supported(SaeFacts(ref, config["architecture"], *sizes, hook, norm))


def load_sae(ref: SaeRef, device: torch.device | str = "cpu") -> Sae:
    """The SAE in float32 on a device.

    UserError when it cannot be loaded, normalises every token by itself, or is neither standard, JumpReLU nor TopK.
    """
    from sae_lens import SAE

    facts = read_facts(ref)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # advice on loading the model through TransformerLens, which is not used
            if ref.path is not None:
                module = SAE.load_from_disk(ref.path, device=str(device), dtype="float32")
            else:
                module = SAE.from_pretrained(ref.release, ref.release_id, device=str(device), dtype="float32")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"saes: {ref.location} cannot be loaded ({_first_line(error)}).") from error
    if module.cfg.normalize_activations == "expected_average_only_in":
        scale = _norm_scale(ref, module.cfg.metadata.to_dict())
        assert scale is not None, "read_facts refuses an SAE without its norm"
        module.fold_activation_norm_scaling_factor(scale)
    if ref.published_threshold:
        scale = _norm_scale(ref, {})
        assert scale is not None, "read_facts refuses it otherwise"
        module.threshold.data = module.threshold.data / scale
    module.eval().requires_grad_(False)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        if not getattr(module, name).isfinite().all():
            raise UserError(f"saes: {ref.location} has values in {name} that are not finite numbers: its file is damaged.")
    W_dec = module.W_dec.data
    if getattr(module.cfg, "rescale_acts_by_decoder_norm", False):
        W_dec = W_dec / W_dec.norm(dim=-1, keepdim=True)
    b_enc = module.b_enc.data
    return Sae(
        facts=facts,
        W_enc=module.W_enc.data,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=module.b_dec.data,
        threshold=module.threshold.data if facts.architecture == "jumprelu" else torch.zeros_like(b_enc),
        apply_b_dec_to_input=bool(module.cfg.apply_b_dec_to_input),
        elementwise=facts.architecture != "topk",
        module=module,
    )


def check_fits(sae: Sae | SaeFacts, subject: Sized) -> None:
    """UserError unless the SAE reads resid_post of its layer in this model, going by its width and declared hook point."""
    facts = sae.facts if isinstance(sae, Sae) else sae
    ref = facts.ref
    if ref.layer >= subject.n_layers:
        raise UserError(
            f"saes.layers: layer {ref.layer} does not exist: the model has {subject.n_layers} layers, counted from 0."
        )
    if facts.d_in != subject.d_model:
        raise UserError(
            f"saes: {ref.location} reads a width of {facts.d_in}, but the model's residual stream has {subject.d_model}."
        )
    if facts.hook is not None and _hook_layer(facts.hook) != ref.layer:
        raise UserError(
            f"saes: {ref.location} was trained on {facts.hook}, but the recipe uses it for resid_post of layer {ref.layer}."
        )


def _hook_layer(hook: str) -> int | None:
    """The layer whose resid_post a hook point is, or None when it is something else."""
    for pattern, shift in HOOKS:
        if match := pattern.fullmatch(hook):
            return int(match[1]) + shift
    return None


def _norm_scale(ref: SaeRef, metadata: dict[str, Any]) -> float | None:
    """The factor sqrt(d) / mean norm by which inputs were scaled in training, if it is known."""
    from sae_lens.loading.pretrained_saes_directory import get_norm_scaling_factor

    listed = get_norm_scaling_factor(ref.release, ref.release_id) if ref.release is not None else None
    return metadata.get("norm_scaling_factor") if listed is None else listed


def _norm_convention(ref: SaeRef, normalize: str, scale: float | None) -> str:
    if normalize == "none":
        return "none"
    if normalize != "expected_average_only_in":
        raise UserError(
            f"saes: {ref.location} normalises every token by itself ({normalize}), which ablation cannot undo: use another SAE."
        )
    if scale is None:
        raise UserError(f"saes: {ref.location} expects scaled inputs but does not say the scale: fold it in with SAELens first.")
    if ref.release is None:
        return f"dataset norm folded: {scale:.6g}"
    return f"dataset norm folded: {scale:.6g}, threshold {'as published' if ref.published_threshold else 'too'}"


def _supported(facts: SaeFacts) -> SaeFacts:
    if facts.architecture not in ARCHITECTURES:
        raise UserError(f"saes: {facts.ref.location} is a {facts.architecture} SAE; supported are {', '.join(ARCHITECTURES)}.")
    return facts


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
