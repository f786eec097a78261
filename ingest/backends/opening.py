"""Backends by their names in a command, each with the model that the recipe names, and those of models that are loaded."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import torch

from saelake.extras import require
from saelake.ingest.backends.backend import Backend
from saelake.ingest.backends.hooked import TransformerLens
from saelake.ingest.backends.ours import Padded, Transformers
from saelake.ingest.backends.served import Vllm
from saelake.ingest.backends.traced import NNsight
from saelake.ingest.loading import load_network, load_tokenizer
from saelake.ingest.recipe import ModelSpec
from saelake.ingest.subject import Subject
from saelake.warehouse.errors import UserError, one_line


class Kind(NamedTuple):
    """A backend that a command can open."""

    package: str
    """On the package index, whose version is a part of what a run is known by."""
    module: str


REFERENCE = "transformers"
"""One prompt a pass: what all others are compared with."""
KINDS = {
    REFERENCE: Kind("transformers", "transformers"),
    "padded": Kind("transformers", "transformers"),
    "transformer_lens": Kind("transformer-lens", "transformer_lens"),
    "nnsight": Kind("nnsight", "nnsight"),
}
"""Name -> what it needs; padded reads the same prompts as the reference in saelake's batches."""


def check_backends(names: Sequence[str]) -> None:
    """Raises UserError for a name that is none or doubled, for one backend alone, and for a package that is not installed."""
    for name in names:
        if name not in KINDS:
            raise UserError(f"there is no backend {name!r}: there are {', '.join(KINDS)}")
        if names.count(name) > 1:
            raise UserError(f"the backend {name} is named twice")
    for name in names:
        require("backends", f"the backend {name}", KINDS[name].module)
    if set(names) <= {REFERENCE}:
        raise UserError(f"name a backend beside {REFERENCE}, which all others are compared with")


def identity_of(name: str, model: ModelSpec) -> dict[str, Any]:
    """What a run of the backend is known by, beside the prompts and the model; nothing is loaded."""
    return {"package": KINDS[name].package, "version": version(KINDS[name].package), "dtype": model.dtype}


def open_backend(name: str, model: ModelSpec, subject: Subject) -> Backend:
    """A backend with the model of a recipe, loaded by itself; raises UserError where the library cannot load it."""
    if name == REFERENCE:
        return Transformers(subject)
    if name == "padded":
        return Padded(subject)
    if model.gguf is not None:
        raise UserError(f"the backend {name} reads no model.gguf: compare a model in safetensors")
    if model.adapter is not None and name != "nnsight":
        raise UserError(f"the backend {name} reads no model.adapter: compare a model whose weights hold it")
    dtype = torch.bfloat16 if model.dtype == "bfloat16" else torch.float32
    if name == "nnsight":
        from importlib import import_module

        network = load_network(model, dtype).to(subject.device).requires_grad_(False)
        return NNsight(import_module("nnsight").NNsight(network), subject, load_tokenizer(model))
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer = load_tokenizer(model)
    try:
        bridge = TransformerBridge.boot_transformers(
            str(model.folder or model.id),
            revision=model.revision,
            tokenizer=tokenizer,
            device=subject.device,
            dtype=dtype,
        )
    except Exception as error:  # whatever another library makes of a model that it does not know
        raise UserError(f"TransformerLens cannot load the model ({one_line(error)})") from error
    return TransformerLens(bridge, subject.template)


def wrapped(name: str, given: Any, subject: Subject) -> Backend:
    """A loaded model of another library as a backend; raises UserError, which says its name, for what is none."""
    if isinstance(given, Subject):
        return Padded(given)
    if hasattr(given, "read"):
        return given
    origins = {base.__module__.partition(".")[0] for base in type(given).__mro__}
    if "transformer_lens" in origins:
        return TransformerLens(given, subject.template)
    if "nnsight" in origins:
        return NNsight(given, subject)
    if "vllm" in origins:
        return Vllm(given, subject.template, subject.n_vocab)
    raise UserError(
        f"{name} is a {type(given).__name__}: give a HookedTransformer or TransformerBridge, an nnsight model, a vllm.LLM, a "
        f"Subject, or an object with read(texts, places)"
    )
