"""Sparse autoencoders: SAELens' own, with their weights and gate laid open in float32.

    for ref in list_saes(recipe):
        sae = load_sae(ref, subject.device)
        check_fits(sae, subject)
        acts_nf = sae.encode(resid_nd)

Letters of shapes: n tokens, d residual width, f latents.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saelake.ingest.saes.description import (
    ELEMENTWISE,
    SaeDescription,
    check_description,
    norm_scale,
    read_description,
    shapes_from_the_cache,
)
from saelake.ingest.saes.refs import SaeRef
from saelake.ingest.sites import Site
from saelake.ingest.upload import upload
from saelake.warehouse.errors import UserError, one_line


class Weights(NamedTuple):
    """An SAE's weights laid open, float32.

    Elementwise ones give acts = relu(pre) * (pre > threshold) with pre = (resid - b_dec * apply_b_dec_to_input) W_enc + b_enc.
    A gated SAE's two paths are one matrix, so it is of this form too: its gate is a threshold on its magnitude.
    """

    W_enc: Tensor
    """(d, f)"""
    b_enc: Tensor
    """(f,)"""
    W_dec: Tensor
    """(f, d): what one unit of activation adds to what is at the site that it writes."""
    b_dec: Tensor
    """(d,)"""
    threshold: Tensor
    """(f,); 0 without a jump."""
    apply_b_dec_to_input: bool
    module: Any
    """SAELens' object."""


@dataclass(frozen=True, eq=False)
class Sae:
    """An SAE: what it says about itself, and its weights, loaded when they are first asked for."""

    description: SaeDescription
    load: Callable[[], Weights]
    off_device: bool = False
    """Whether the weights lie in main memory, apart from the device: then the rows in use are copied there; where
    latents compete, all of them at each encoding."""

    @classmethod
    def of(cls, description: SaeDescription, weights: Weights) -> "Sae":
        """One that is loaded."""
        return cls(description, lambda: weights)

    @property
    def W_enc(self) -> Tensor:
        """(d, f)"""
        return self.load().W_enc

    @property
    def b_enc(self) -> Tensor:
        """(f,)"""
        return self.load().b_enc

    @property
    def W_dec(self) -> Tensor:
        """(f, d)"""
        return self.load().W_dec

    @property
    def b_dec(self) -> Tensor:
        """(d,)"""
        return self.load().b_dec

    @property
    def threshold(self) -> Tensor:
        """(f,); 0 without a jump."""
        return self.load().threshold

    @property
    def apply_b_dec_to_input(self) -> bool:
        """Whether b_dec is taken from what is encoded."""
        return self.load().apply_b_dec_to_input

    @property
    def module(self) -> Any:
        """SAELens' object."""
        return self.load().module

    @property
    def elementwise(self) -> bool:
        """False when a latent's activation depends on the other latents (TopK), so that it cannot be computed alone."""
        return self.description.architecture in ELEMENTWISE

    @property
    def ref(self) -> SaeRef:
        """Which SAE this is."""
        return self.description.ref

    @property
    def sae_id(self) -> str:
        """Its key in tables."""
        return self.description.ref.sae_id

    @property
    def layer(self) -> int:
        """The block at which it reads."""
        return self.description.ref.layer

    @property
    def reads(self) -> Site:
        """The site that it encodes."""
        return self.description.reads

    @property
    def writes(self) -> Site:
        """The site that its decoder adds to; another one for transcoders only."""
        return self.description.writes

    @property
    def d_in(self) -> int:
        """Width of the site that it reads."""
        return self.description.d_in

    @property
    def width(self) -> int:
        """Number of latents."""
        return self.description.width

    @property
    def norm(self) -> str:
        """How inputs are scaled."""
        return self.description.norm

    @torch.no_grad()
    def decoder_rows(self, ids: Tensor, device: torch.device) -> Tensor:
        """(u, d): the decoder rows of some latents, read where they lie, on a device."""
        W_dec = self.W_dec
        return upload(W_dec.index_select(0, ids.to(W_dec.device)), device)

    @torch.no_grad()
    def encoder_rows(self, ids: Tensor, device: torch.device) -> Tensor:
        """(u, d): the encoder columns of some latents, each in one piece, on a device."""
        W_enc = self.W_enc
        # index_select is many times faster than W_enc[:, ids]; the copy makes rows that a row's gather reads in one piece.
        return upload(W_enc.index_select(1, ids.to(W_enc.device)).T.contiguous(), device)

    @torch.no_grad()
    def gates(self, ids: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """b_enc (u,) and threshold (u,) of some latents, on a device."""
        weights = self.load()
        ids = ids.to(weights.b_enc.device)
        return upload(weights.b_enc.index_select(0, ids), device), upload(weights.threshold.index_select(0, ids), device)

    def on(self, device: torch.device) -> "Sae":
        """The whole SAE on a device: itself if it lies there, else a copy for as long as the caller holds it."""
        if self.W_dec.device == device:
            return self
        return Sae.of(self.description, moved(self.load(), device))

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
    def decode(self, acts_nf: Tensor) -> Tensor:
        """The reconstruction (..., d) of activations (..., f): SAELens' own decoder."""
        resid_nd: Tensor = self.module.decode(acts_nf)
        return resid_nd


def load_sae(ref: SaeRef, device: torch.device | str = "cpu") -> Sae:
    """The SAE in float32 on a device.

    Raises UserError when it cannot be loaded, normalises every token by itself, or is of a kind that cannot be ablated exactly.
    """
    from sae_lens import SAE

    description = read_description(ref)
    try:
        with warnings.catch_warnings(), shapes_from_the_cache():
            warnings.simplefilter("ignore", UserWarning)  # advice on loading the model through TransformerLens, which is not used
            if ref.path is not None:
                module = SAE.load_from_disk(ref.path, device=str(device), dtype="float32")
            else:
                module = SAE.from_pretrained(ref.release, ref.release_id, device=str(device), dtype="float32")
    except (torch.OutOfMemoryError, UserError):
        raise
    except Exception as error:  # whatever SAELens makes of a stranger's files
        raise UserError(f"saes: {ref.location} cannot be loaded ({one_line(error)})") from error
    if module.cfg.normalize_activations == "expected_average_only_in":
        scale = norm_scale(ref, module.cfg.metadata.to_dict())
        assert scale is not None, "read_description refuses an SAE without its norm"
        module.fold_activation_norm_scaling_factor(scale)
    if ref.published_threshold:
        scale = norm_scale(ref, {})
        assert scale is not None, "read_description refuses it otherwise"
        module.threshold.data = module.threshold.data / scale
    return laid_open(module.eval().requires_grad_(False), description)


@torch.no_grad()
def laid_open(module: Any, description: SaeDescription) -> Sae:
    """SAELens' object, in float32, with its weights laid open; raises UserError for weights that are not finite numbers."""
    if getattr(module.cfg, "reshape_activations", "none") == "hook_z":
        module.turn_off_forward_pass_hook_z_reshaping()  # the engine's heads lie side by side already
    gated, jumping = description.architecture == "gated", "jumprelu" in description.architecture
    gates = ("b_mag", "b_gate", "r_mag") if gated else ("b_enc", "threshold") if jumping else ("b_enc",)
    for name in ("W_enc", "W_dec", "b_dec", *gates):
        if not getattr(module, name).isfinite().all():
            raise UserError(
                f"saes: {description.ref.location} has values in {name} that are not finite numbers: its file is damaged"
            )
    W_enc, W_dec = module.W_enc.detach(), module.W_dec.detach()
    if getattr(module.cfg, "rescale_acts_by_decoder_norm", False):
        W_dec = W_dec / W_dec.norm(dim=-1, keepdim=True)
    if gated:
        gain = module.r_mag.detach().exp()
        W_enc, b_enc = W_enc * gain, module.b_mag.detach()
        threshold = b_enc - gain * module.b_gate.detach()
    else:
        b_enc = module.b_enc.detach()
        threshold = module.threshold.detach() if jumping else torch.zeros_like(b_enc)
    return Sae.of(
        description,
        Weights(
            W_enc=W_enc,
            b_enc=b_enc,
            W_dec=W_dec,
            b_dec=module.b_dec.detach(),
            threshold=threshold,
            apply_b_dec_to_input=bool(module.cfg.apply_b_dec_to_input),
            module=module,
        ),
    )


def moved(weights: Weights, device: torch.device) -> Weights:
    """The same on another device."""
    return replaced(weights, lambda one: one.to(device, non_blocking=True), device)


def replaced(weights: Weights, make: Callable[[Tensor], Tensor], device: torch.device) -> Weights:
    """The same with other tensors; one that the module shares with what is laid open of it is made once."""
    copies: dict[tuple[int, ...], Tensor] = {}

    def copy_of(one: Tensor) -> Tensor:
        place = (one.data_ptr(), *one.shape)
        if place not in copies:
            copies[place] = make(one)
        return copies[place]

    opened: dict[str, Any] = {name: copy_of(one) for name, one in weights._asdict().items() if isinstance(one, Tensor)}
    return weights._replace(**opened, module=_with_tensors(weights.module, copy_of, device))


def _with_tensors(module: Any, given: Callable[[Tensor], Tensor], device: torch.device) -> Any:
    """A copy of SAELens' object whose tensors are others, and are not copied for it."""
    tensors = [*module.parameters(), *module.buffers()]
    made = copy.deepcopy(module, {id(one): _empty_like(one) for one in tensors})
    for mine, one in zip([*made.parameters(), *made.buffers()], tensors, strict=True):
        mine.data = given(one.data)
    made.device = device
    return made


def _empty_like(one: Tensor) -> Tensor:
    empty = torch.empty(0, dtype=one.dtype)
    return torch.nn.Parameter(empty, requires_grad=False) if isinstance(one, torch.nn.Parameter) else empty


def check_fits(sae: Sae | SaeDescription, subject: Any) -> None:
    """Raises UserError unless the SAE reads a site of its layer, writes there or further up, and is as wide as the model is."""
    description = sae.description if isinstance(sae, Sae) else sae
    check_description(description, subject)
    sites = getattr(subject, "sites", None)
    if sites is None:  # a model's shape alone, without the model
        return
    sites.check(description.reads)
    sites.check(description.writes, write=True)
    for what, site, d in (
        ("reads", description.reads, description.d_in),
        ("writes", description.writes, description.d_out or None),
    ):
        if d is not None and d != subject.width(site):
            raise UserError(
                f"saes: {description.ref.location} {what} a width of {d}, but {site} has {subject.width(site)}: "
                f"use an SAE of this model"
            )
