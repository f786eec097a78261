"""Sparse autoencoders: SAELens' own, with their weights and gate laid open in float32.

    for ref in list_saes(recipe):
        sae = load_sae(ref, subject.device)
        check_fits(sae, subject)
        acts_nf = sae.encode(resid_nd)

Letters of shapes: n tokens, d residual width, f latents. Nothing is kept between calls: the caller holds one layer at a time.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saelake.ingest.saes.facts import (
    ELEMENTWISE,
    SaeFacts,
    check_facts,
    norm_scale,
    read_facts,
    shapes_from_the_cache,
)
from saelake.ingest.saes.refs import SaeRef, list_saes
from saelake.ingest.sites import Site
from saelake.warehouse.errors import UserError, first_line

__all__ = ["Sae", "SaeFacts", "SaeRef", "check_fits", "list_saes", "load_sae", "read_facts"]


@dataclass(frozen=True, eq=False)
class Sae:
    """A loaded SAE, float32.

    Elementwise ones give acts = relu(pre) * (pre > threshold) with pre = (resid - b_dec * apply_b_dec_to_input) W_enc + b_enc.
    A gated SAE's two paths are one matrix, so it is of this form too: its gate is a threshold on its magnitude.
    """

    facts: SaeFacts
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
    elementwise: bool
    """False when a latent's activation depends on the other latents (TopK), so that it cannot be computed alone."""
    module: Any
    """SAELens' object."""

    @property
    def ref(self) -> SaeRef:
        """Which SAE this is."""
        return self.facts.ref

    @property
    def sae_id(self) -> str:
        """Its key in tables."""
        return self.facts.ref.sae_id

    @property
    def layer(self) -> int:
        """The block at which it reads."""
        return self.facts.ref.layer

    @property
    def reads(self) -> Site:
        """The site that it encodes."""
        return self.facts.reads

    @property
    def writes(self) -> Site:
        """The site that its decoder adds to; only of a transcoder another one."""
        return self.facts.writes

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
    def decode(self, acts_nf: Tensor) -> Tensor:
        """The reconstruction (..., d) of activations (..., f): SAELens' own decoder."""
        resid_nd: Tensor = self.module.decode(acts_nf)
        return resid_nd


def load_sae(ref: SaeRef, device: torch.device | str = "cpu") -> Sae:
    """The SAE in float32 on a device.

    Raises UserError when it cannot be loaded, normalises every token by itself, or is of a kind that cannot be ablated exactly.
    """
    from sae_lens import SAE

    facts = read_facts(ref)
    try:
        with warnings.catch_warnings(), shapes_from_the_cache():
            warnings.simplefilter("ignore", UserWarning)  # advice on loading the model through TransformerLens, which is not used
            if ref.path is not None:
                module = SAE.load_from_disk(ref.path, device=str(device), dtype="float32")
            else:
                module = SAE.from_pretrained(ref.release, ref.release_id, device=str(device), dtype="float32")
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever SAELens makes of a stranger's files
        raise UserError(f"saes: {ref.location} cannot be loaded ({first_line(error)})") from error
    if module.cfg.normalize_activations == "expected_average_only_in":
        scale = norm_scale(ref, module.cfg.metadata.to_dict())
        assert scale is not None, "read_facts refuses an SAE without its norm"
        module.fold_activation_norm_scaling_factor(scale)
    if ref.published_threshold:
        scale = norm_scale(ref, {})
        assert scale is not None, "read_facts refuses it otherwise"
        module.threshold.data = module.threshold.data / scale
    return laid_open(module.eval().requires_grad_(False), facts)


@torch.no_grad()
def laid_open(module: Any, facts: SaeFacts) -> Sae:
    """SAELens' object, in float32, with its weights laid open; raises UserError for weights that are not finite numbers."""
    if getattr(module.cfg, "reshape_activations", "none") == "hook_z":
        module.turn_off_forward_pass_hook_z_reshaping()  # the engine's heads lie side by side already
    gated = facts.architecture == "gated"
    gates = ("b_mag", "b_gate", "r_mag") if gated else ("b_enc", "threshold") if "jumprelu" in facts.architecture else ("b_enc",)
    for name in ("W_enc", "W_dec", "b_dec", *gates):
        if not getattr(module, name).isfinite().all():
            raise UserError(f"saes: {facts.ref.location} has values in {name} that are not finite numbers: its file is damaged")
    W_enc, W_dec = module.W_enc.detach(), module.W_dec.detach()
    if getattr(module.cfg, "rescale_acts_by_decoder_norm", False):
        W_dec = W_dec / W_dec.norm(dim=-1, keepdim=True)
    if gated:
        gain = module.r_mag.detach().exp()
        W_enc, b_enc = W_enc * gain, module.b_mag.detach()
        threshold = b_enc - gain * module.b_gate.detach()
    else:
        b_enc = module.b_enc.detach()
        threshold = module.threshold.detach() if "jumprelu" in facts.architecture else torch.zeros_like(b_enc)
    return Sae(
        facts=facts,
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=module.b_dec.detach(),
        threshold=threshold,
        apply_b_dec_to_input=bool(module.cfg.apply_b_dec_to_input),
        elementwise=facts.architecture in ELEMENTWISE,
        module=module,
    )


def check_fits(sae: Sae | SaeFacts, subject: Any) -> None:
    """Raises UserError unless the SAE reads and writes at sites of its layer in this model, by its width and declared hooks."""
    facts = sae.facts if isinstance(sae, Sae) else sae
    check_facts(facts, subject)
    sites = getattr(subject, "sites", None)
    if sites is None:  # a model's shape alone, without the model
        return
    sites.check(facts.reads)
    sites.check(facts.writes, write=True)
    for what, site, d in (("reads", facts.reads, facts.d_in), ("writes", facts.writes, facts.d_out or None)):
        if d is not None and d != subject.width(site):
            raise UserError(
                f"saes: {facts.ref.location} {what} a width of {d}, but {site} has {subject.width(site)}: "
                f"use an SAE of this model"
            )
