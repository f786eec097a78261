"""Sites: the places in a transformer that SAEs read and write, by their names in SAE files. No torch.

A site is a layer and a kind. What each kind is, and the name that SAELens and TransformerLens give it at layer 5:

    resid_pre    the residual stream that block 5 reads                              blocks.5.hook_resid_pre
    z            all heads' outputs side by side, before their common projection     blocks.5.attn.hook_z
    attn_out     what the attention adds to the residual stream                      blocks.5.hook_attn_out
    resid_mid    resid_pre + attn_out, where the block's MLP reads that sum          blocks.5.hook_resid_mid
    mlp_in_unit  that, normalised, before the norm's own gain (read only)            blocks.5.ln2.hook_normalized
    mlp_in       what the MLP reads, normalised as the model does                    blocks.5.mlp.hook_in
    mlp_out      what the MLP adds to the residual stream                            blocks.5.hook_mlp_out
    resid_post   the residual stream that block 5 gives                              blocks.5.hook_resid_post

"Adds" is meant literally: after a norm or a scale that the model applies to an output before it adds it, without the residual
where a module's output has it in it. So resid_pre + attn_out + mlp_out = resid_post, which `site_map.find_sites` checks.
"""

import re
from dataclasses import dataclass

from saelake.warehouse import arguments
from saelake.warehouse.errors import UserError

KINDS = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_in_unit", "mlp_in", "mlp_out", "resid_post")
"""In the order in which a block computes them; where attention and MLP lie side by side, a pass may come to the MLP's first."""
HOOKS = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "z": "blocks.{}.attn.hook_z",
    "attn_out": "blocks.{}.hook_attn_out",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "mlp_in_unit": "blocks.{}.ln2.hook_normalized",
    "mlp_in": "blocks.{}.mlp.hook_in",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "resid_post": "blocks.{}.hook_resid_post",
}
_LAYER = r"(?:model\.)?(?:language_model\.)?(?:model\.)?layers\.(\d+)"
NAMES = (
    *((re.compile(re.escape(name).replace(r"\{\}", r"(\d+)")), kind) for kind, name in HOOKS.items()),
    (re.compile(r"blocks\.(\d+)\.mlp\.hook_out"), "mlp_out"),
    (re.compile(r"blocks\.(\d+)\.hook_out"), "resid_post"),
    # Modules of Hugging Face models, as Gemma Scope 2 and others name them.
    (re.compile(_LAYER + r"(?:\.output)?"), "resid_post"),
    (re.compile(_LAYER + r"\.input"), "resid_pre"),
    (re.compile(_LAYER + r"\.self_attn\.o_proj\.input"), "z"),
    (re.compile(_LAYER + r"\.(?:pre_feedforward_layernorm\.output|mlp\.input)"), "mlp_in"),
    (re.compile(_LAYER + r"\.post_feedforward_layernorm\.output"), "mlp_out"),
)


@dataclass(frozen=True)
class Site:
    """One place in the network."""

    layer: int
    kind: str = "resid_post"

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise UserError(f"there is no kind of site {arguments.shown(self.kind)}: the kinds are {', '.join(KINDS)}")
        arguments.whole("the layer of a site", self.layer, 0)

    @classmethod
    def parse(cls, hook: str) -> "Site":
        """The site that a hook's name stands for; raises UserError where it is none of those that an SAE can be used at."""
        for pattern, kind in NAMES:
            if match := pattern.fullmatch(hook):
                return cls(int(match[1]), kind)
        known = ", ".join(HOOKS.values()).replace("{}", "L")
        raise UserError(f"{hook} is not a site that SAEs can be used at: these are {known}")

    @property
    def hook(self) -> str:
        """Its name in the files of SAELens."""
        return HOOKS[self.kind].format(self.layer)

    @property
    def depth(self) -> tuple[int, int]:
        """Sorts sites in the order in which a pass comes to them; within a block as KINDS says."""
        return self.layer, KINDS.index(self.kind)

    @property
    def below(self) -> int:
        """The highest block that may be left out of a pass that touches this site: resid_post is hooked after its block."""
        return self.layer if self.kind == "resid_post" else self.layer - 1

    def __str__(self) -> str:
        return f"{self.kind} of layer {self.layer}"
