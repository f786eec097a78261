"""What an SAE says about itself, read through SAELens without its weights, and whether it fits a model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from saelake.ingest.model_shape import cached_file
from saelake.ingest.saes.folder import check_config, check_folder
from saelake.ingest.saes.refs import SaeRef
from saelake.ingest.saes.weight_files import tensor_shapes
from saelake.ingest.sites import Site
from saelake.warehouse.errors import UserError, one_line

ELEMENTWISE = (
    "standard",
    "gated",
    "jumprelu",
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
)
"""SAELens' names of SAEs each of whose latents can be encoded by itself, as relu(pre) * (pre > threshold)."""
JOINT = ("topk",)
"""Of SAEs whose latents compete within a token: all are encoded for any of them."""
LACKING = {
    "temporal": "its latents depend on earlier tokens, so that what a latent adds to one token cannot be told from that token",
    "matching_pursuit": "its latents are found one after another, each in what those before it left, so that none "
    "has a value of its own",
    "abstopk": "its activations can be negative, which the tables of a lake do not hold",
    "crosscoder": "it reads several layers at once, so that its latents have no one site to be taken out of",
    "crosslayer_transcoder": "it writes to several layers at once, so that its latents have no one site to be taken out of",
}
"""What SAEs of other kinds lack."""


class Sized(Protocol):
    """What an SAE must fit: a loaded subject, or its shape as its files give it."""

    @property
    def n_layers(self) -> int: ...

    @property
    def d_model(self) -> int: ...


@dataclass(frozen=True)
class SaeDescription:
    """What an SAE says about itself; known from its configuration alone."""

    ref: SaeRef
    architecture: str
    d_in: int
    width: int
    hook: str | None
    """The hook point that it was trained on, if declared."""
    norm: str
    """`none`, or `dataset norm folded: SCALE` (one scale for all tokens, inside the weights), for some releases with what became
    of the threshold"""

    hook_out: str | None = None
    """The hook point that a transcoder writes to, if declared."""
    d_out: int | None = None
    """A transcoder's output width, where it is declared."""

    @property
    def n_bytes(self) -> int:
        """Memory of its weights, loaded."""
        return sae_bytes(self.d_in, self.width)

    @property
    def is_transcoder(self) -> bool:
        """Whether it reads at one site and writes at another."""
        return "transcoder" in self.architecture

    @cached_property
    def reads(self) -> Site:
        """The site whose values it encodes; where it declares none, resid_post of the recipe's layer, for transcoders mlp_in."""
        if self.hook is None:
            return Site(self.ref.layer, "mlp_in" if self.is_transcoder else "resid_post")
        site = Site.parse(self.hook)
        # The same tensor by its other name: what block l - 1 gives.
        return Site(self.ref.layer) if site == Site(self.ref.layer + 1, "resid_pre") else site

    @cached_property
    def writes(self) -> Site:
        """The site that its decoder adds to: the one that it reads, but for transcoders, and mlp_out where these declare none."""
        if not self.is_transcoder:
            return self.reads
        return Site(self.ref.layer, "mlp_out") if self.hook_out is None else Site.parse(self.hook_out)


def sae_bytes(d_in: int, width: int) -> int:
    """Memory of an SAE's weights in float32: two matrices, two columns a latent, and the decoder's bias."""
    return 4 * (2 * d_in * width + 2 * width + d_in)


def read_description(ref: SaeRef) -> SaeDescription:
    """What an SAE's configuration says, without its weights; raises UserError when it cannot be read or is not supported."""
    from sae_lens.loading.pretrained_sae_loaders import (
        get_conversion_loader_name,
        get_sae_lens_config_from_disk,
        handle_config_defaulting,
        load_sae_config_from_huggingface,
    )

    try:
        if ref.path is not None:
            check_folder(ref.path)
            config = handle_config_defaulting(get_sae_lens_config_from_disk(ref.path))
        else:
            with shapes_from_the_cache():
                config = load_sae_config_from_huggingface(ref.release, ref.release_id)
        check_config(config, ref.location)
        metadata = config.get("metadata") or {}
        hook, hook_out = hooks_of(metadata)
        sizes = config["d_in"], config["d_sae"]
        check_kind(str(config["architecture"]), ref)
    except UserError:
        raise
    except Exception as error:  # SAELens takes the fields of a stranger's file for what they should be
        raise UserError(f"saes: the configuration of {ref.location} cannot be read ({one_line(error)})") from error
    scale = norm_scale(ref, metadata)
    if ref.published_threshold and (ref.release is None or get_conversion_loader_name(ref.release) != "llama_scope"):
        raise UserError(f'saes.threshold = "published" is about Llama Scope, and {ref.location} is another SAE: leave it out')
    norm = norm_convention(ref, config.get("normalize_activations", "none"), scale)
    return SaeDescription(ref, config["architecture"], *sizes, hook, norm, hook_out, config.get("d_out"))


def hooks_of(metadata: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The hook points that an SAE was trained on and, if it is a transcoder, writes to, as far as it declares them."""
    hook, hook_out = (metadata.get(name) or metadata.get(f"hf_{name}") for name in ("hook_name", "hook_name_out"))
    if str(hook).endswith(".hook_mlp_in"):
        # In TransformerLens the residual stream before the norm; SAELens gives what Gemma Scope 2's transcoders read that name.
        hook = metadata.get("hf_hook_name") or hook
    return hook, hook_out


def check_description(description: SaeDescription, subject: Sized) -> None:
    """Raises UserError unless the SAE reads a site of its layer, writes there or further up, and is as wide as the model is."""
    ref = description.ref
    check_layer(ref.layer, subject)
    try:
        there = description.reads.layer == ref.layer
    except UserError as error:
        raise UserError(f"saes: {ref.location} was trained on {description.hook}: {error}") from error
    if not there:
        raise UserError(
            f"saes: {ref.location} was trained on {description.hook}, but the recipe uses it for layer {ref.layer}: "
            f"correct saes.layers, or use another SAE"
        )
    if not ref.layer <= description.writes.layer < subject.n_layers:
        raise UserError(f"saes: {ref.location} writes to {description.writes}, but reads layer {ref.layer} of {subject.n_layers}")
    # How wide the heads' outputs are only the loaded model shows.
    if description.reads.kind != "z" and description.d_in != subject.d_model:
        raise UserError(
            f"saes: {ref.location} reads a width of {description.d_in}, but the model's residual stream has {subject.d_model}: "
            f"use an SAE of this model"
        )


def check_layer(layer: int, subject: Sized) -> None:
    """Raises UserError unless the model has that layer."""
    if layer >= subject.n_layers:
        raise UserError(f"saes.layers: layer {layer} does not exist: the model has {subject.n_layers} layers, counted from 0")


@contextmanager
def shapes_from_the_cache() -> Iterator[None]:
    """While open, SAELens reads the shapes in a cached Gemma Scope 2 file from that file.

    SAELens (6.54) asks the hub for them even when the file is in the cache, which fails without a network.
    """
    from sae_lens.loading import pretrained_sae_loaders as loaders

    ask_hub = loaders.get_safetensors_tensor_shapes

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        file = cached_file(repo_id, filename)
        found: dict[str, list[int]]
        found = ask_hub(repo_id, filename) if file is None else {k: list(v) for k, v in tensor_shapes(file).items()}
        return found

    loaders.get_safetensors_tensor_shapes = shapes
    try:
        yield
    finally:
        loaders.get_safetensors_tensor_shapes = ask_hub


def norm_scale(ref: SaeRef, metadata: dict[str, Any]) -> float | None:
    """The factor sqrt(d) / mean norm by which inputs were scaled in training, if it is known."""
    from sae_lens.loading.pretrained_saes_directory import get_norm_scaling_factor

    listed = get_norm_scaling_factor(ref.release, ref.release_id) if ref.release is not None else None
    return metadata.get("norm_scaling_factor") if listed is None else listed


def norm_convention(ref: SaeRef, normalize: str, scale: float | None) -> str:
    """What the column `norm` says of an SAE; raises UserError for a norm that an edit cannot undo."""
    if normalize == "none":
        return "none"
    if normalize != "expected_average_only_in":
        raise UserError(
            f"saes: {ref.location} normalises every token by itself ({normalize}), which ablation cannot undo: use another SAE"
        )
    if scale is None:
        raise UserError(f"saes: {ref.location} expects scaled inputs but does not say the scale: fold it in with SAELens first")
    if ref.release is None:
        return f"dataset norm folded: {scale:.6g}"
    return f"dataset norm folded: {scale:.6g}, threshold {'as published' if ref.published_threshold else 'too'}"


def check_kind(kind: str, ref: SaeRef) -> None:
    """Raises UserError for a kind of SAE that cannot be ablated exactly, and says what it lacks."""
    if kind not in (*ELEMENTWISE, *JOINT):
        why = f": {LACKING[kind]}" if kind in LACKING else ""
        raise UserError(f"saes: {ref.location} is a {kind} SAE{why}; supported are {', '.join((*ELEMENTWISE, *JOINT))}")
