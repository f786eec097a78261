"""The model under study behind one small interface: its chat template, left-padded batches, forward passes, hook points.

    subject = Subject.load(recipe.model, recipe.compute)
    batch = subject.batch([subject.encode(text).token_ids for text in texts])
    resid_btd = subject.read_resid_post(batch, layers=[3])[3]

Letters of shapes: b batch, t token, d residual width, v vocabulary.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from saelake.ingest.recipe import Compute, ModelSpec
from saelake.ingest.spelling import Spelling
from saelake.ingest.targets import targets_of
from saelake.ingest.template import ChatTemplate, Tokenized
from saelake.warehouse.errors import UserError, first_line

__all__ = ["Batch", "StopForward", "Subject", "Tokenized"]

# Where the decoder blocks of known architectures lie, from the ...ForCausalLM or ...ForConditionalGeneration model.
BLOCK_LISTS = (
    "model.layers",  # Llama, Gemma, Qwen, Mistral, Phi
    "model.language_model.layers",  # Gemma 3 and others with images
    "language_model.model.layers",
    "model.model.layers",
    "model.model.language_model.layers",
    "gpt_neox.layers",
    "transformer.h",  # GPT-2, Falcon
    "model.decoder.layers",  # OPT
)


class Batch(NamedTuple):
    """Left-padded sequences: the last token of every row is at t = -1."""

    input_ids_bt: Tensor
    """int64; padding where the mask is 0."""
    attention_mask_bt: Tensor
    """int64, 1 for real tokens. With a cache it covers the cached positions too, so it is wider than the ids."""
    position_ids_bt: Tensor
    """int64, 0 at the first real token of a row (and at padding)."""


class StopForward(Exception):
    """Raised by a hook to leave a forward pass whose remaining layers nobody reads."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A loaded model with its tokenizer. Made by `Subject.load`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    device: torch.device
    dtype: torch.dtype
    blocks: nn.ModuleList
    d_model: int
    n_vocab: int
    refusal_token_ids: tuple[int, ...]
    max_prompt_tokens: int

    @classmethod
    def load(cls, model: ModelSpec, compute: Compute | None = None) -> "Subject":
        """The model of a recipe in eval mode, without gradients, on the device and in the dtype that the recipe asks for.

        Raises UserError, which names the recipe field: files or id that cannot be loaded, weights missing from the files, an
        architecture without a known list of blocks, no chat template or another one than asserted, a refusal token that is not
        one token.
        """
        compute = compute or Compute()
        if compute.threads is not None:
            torch.set_num_threads(compute.threads)
        device = resolve_device(compute.device)
        dtype = torch.bfloat16 if model.dtype == "bfloat16" else torch.float32
        tokenizer = load_tokenizer(model)
        template = ChatTemplate.of(tokenizer, model)
        network = _load_network(model, dtype).to(device).eval().requires_grad_(False)
        n_vocab = network.get_input_embeddings().weight.shape[0]
        largest = max(tokenizer.get_vocab().values())
        if largest >= n_vocab:
            raise UserError(f"{_field(model)}: the tokenizer has token id {largest}, but the model embeds only {n_vocab}")
        return cls(
            model=network,
            tokenizer=tokenizer,
            template=template,
            device=device,
            dtype=dtype,
            blocks=find_blocks(network),
            d_model=network.config.get_text_config().hidden_size,
            n_vocab=n_vocab,
            refusal_token_ids=tuple(target.token_id for target in targets_of(template, model)),
            max_prompt_tokens=model.max_prompt_tokens,
        )

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @cached_property
    def spelling(self) -> Spelling:
        """How its vocabulary spells tokens."""
        return Spelling(self.tokenizer)

    @property
    def template_hash(self) -> str:
        """sha256 of the chat template's text, in hex."""
        return self.template.sha256

    def encode(self, text: str) -> Tokenized:
        """A prompt through the chat template, ready for the answer's first token.

        Raises UserError when it has more tokens than max_prompt_tokens: prompts are never cut.
        """
        tokenized = self.template.encode(text)
        if len(tokenized.token_ids) > self.max_prompt_tokens:
            raise UserError(
                f"the prompt {text[:60]!r} has {len(tokenized.token_ids)} tokens, but model.max_prompt_tokens is "
                f"{self.max_prompt_tokens}: raise it or leave the prompt out"
            )
        return tokenized

    def batch(self, sequences: Sequence[Sequence[int]]) -> Batch:
        """Token sequences as one left-padded batch on the model's device."""
        assert sequences, "a batch of no sequences"
        assert all(sequences), "a batch with an empty sequence"
        width = max(map(len, sequences))
        ids_bt = torch.full((len(sequences), width), self._padding_id(), dtype=torch.int64)
        mask_bt = torch.zeros_like(ids_bt)
        for row, sequence in enumerate(sequences):
            ids_bt[row, width - len(sequence) :] = torch.tensor(sequence, dtype=torch.int64)
            mask_bt[row, width - len(sequence) :] = 1
        positions_bt = (mask_bt.cumsum(dim=1) - 1).clamp(min=0)
        return Batch(ids_bt.to(self.device), mask_bt.to(self.device), positions_bt.to(self.device))

    def forward(self, batch: Batch, cache: Cache | None = None, logits_to_keep: int = 1) -> Tensor:
        """Next-token logits in float32: (b, v) after the last token, or (b, k, v) for logits_to_keep = k other than 1 (0: all).

        A given cache is read and extended; the batch then holds only the new tokens, its mask all of them.
        """
        logits_bkv = self._call(batch, cache, logits_to_keep).logits.float()
        return logits_bkv[:, -1] if logits_to_keep == 1 else logits_bkv

    @contextmanager
    def resid_post(self, layer: int, fn: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        """While open, calls fn(resid_btd) on what block `layer` gives; a returned tensor replaces it.

        The blocks themselves are hooked, since the model's own hidden_states end with a normalised one.
        """

        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            resid_btd = output if isinstance(output, Tensor) else output[0]
            replacement_btd = fn(resid_btd)
            if replacement_btd is None:
                return None
            return replacement_btd if isinstance(output, Tensor) else (replacement_btd, *output[1:])

        handle = self.blocks[layer].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def read_resid_post(self, batch: Batch, layers: Sequence[int], stop_after_last: bool = True) -> dict[int, Tensor]:
        """resid_btd after each of `layers`, in the model's dtype, from one pass that ends after the last of them.

        The tensors are the pass's own, not copies.
        """
        read: dict[int, Tensor] = {}
        last = max(layers)

        def hook_for(layer: int) -> Callable[[Tensor], None]:
            def keep(resid_btd: Tensor) -> None:
                read[layer] = resid_btd
                if stop_after_last and layer == last:
                    raise StopForward

            return keep

        with ExitStack() as hooks:
            for layer in set(layers):
                hooks.enter_context(self.resid_post(layer, hook_for(layer)))
            with suppress(StopForward):
                self._call(batch, None, 1)
        return read

    def _call(self, batch: Batch, cache: Cache | None, logits_to_keep: int) -> Any:
        with torch.no_grad():
            return self.model(
                input_ids=batch.input_ids_bt,
                attention_mask=batch.attention_mask_bt,
                position_ids=batch.position_ids_bt,
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=logits_to_keep,
            )

    def _padding_id(self) -> int:
        # Padding is masked, so any id that the model embeds will do.
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(token_id for token_id in known if token_id is not None)


def resolve_device(name: str) -> torch.device:
    """The device of compute.device; "auto" takes cuda, else mps, else cpu. Raises UserError when the named one is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise UserError(f'compute.device is {name!r}, which this machine does not have: use device = "auto"')
    return torch.device(name)


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a model; raises UserError for an architecture that keeps them in an unknown place."""
    for path in BLOCK_LISTS:
        found: Any = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return found
    raise UserError(f"model: the decoder blocks of a {type(model).__name__} were not found; looked for {', '.join(BLOCK_LISTS)}")


def _field(model: ModelSpec) -> str:
    return f"model.path {model.path}" if model.path else f"model.id {model.id}"


def load_tokenizer(model: ModelSpec) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe's model; raises UserError when it cannot be loaded."""
    try:
        return AutoTokenizer.from_pretrained(
            model.path or model.id, revision=model.revision, trust_remote_code=False, **_gguf(model)
        )
    except Exception as error:  # the tokenizers library raises nothing more specific for a damaged file
        raise UserError(f"{_field(model)}: the tokenizer cannot be loaded ({first_line(error)})") from error


def _load_network(model: ModelSpec, dtype: torch.dtype) -> PreTrainedModel:
    """The weights, safetensors only; attention is sdpa where the architecture allows it (Gemma 2 does not)."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        network, info = AutoModelForCausalLM.from_pretrained(
            model.path or model.id,
            revision=model.revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **_gguf(model),
        )
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{_field(model)}: the model cannot be loaded ({first_line(error)})") from error
    if absent := sorted(info["missing_keys"]):
        # transformers would go on with random numbers in their place.
        raise UserError(f"{_field(model)}: the files lack {len(absent)} of the model's weights, for example {absent[0]}")
    return network


def _gguf(model: ModelSpec) -> dict[str, Any]:
    return {} if model.gguf is None else {"gguf_file": model.gguf}
