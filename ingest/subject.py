"""The model under study behind one small interface: its chat template, left-padded batches, forward passes, sites.

    subject = Subject(model, tokenizer, target_tokens=["I"])  # or Subject.load("org/name"), or Subject.load(recipe.model, ...)
    batch = subject.batch([subject.encode(text).token_ids for text in texts])
    resid_btd = subject.read_resid_post(batch, layers=[3])[3]

Letters of shapes: b batch, t token, d residual width, v vocabulary.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from saelake.ingest.compiled import check_compiles, compile_blocks
from saelake.ingest.given import computing, named, of_fields
from saelake.ingest.loading import find_blocks, load_network, load_tokenizer, resolve_device
from saelake.ingest.messages import Asked
from saelake.ingest.model_checks import check_attention, check_loaded, check_states, learned_positions
from saelake.ingest.recipe import Compute, ModelSpec
from saelake.ingest.site_map import find_sites
from saelake.ingest.sites import Site
from saelake.ingest.spelling import Spelling
from saelake.ingest.targets import find_targets, targets_of
from saelake.ingest.template import ChatTemplate
from saelake.ingest.tokenized import Tokenized
from saelake.ingest.unembedding import exact_unembedding
from saelake.ingest.upload import upload
from saelake.warehouse import arguments
from saelake.warehouse.errors import UserError

OF_ANY_SHAPE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""All attention but cuDNN's, which is planned anew on the host for every shape of a batch."""


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


class Subject:
    """A loaded transformers model with its tokenizer, its weights untouched and in eval mode.

    Args:
        target_tokens: first tokens that count as the behaviour under study: what `p_target` sums the probabilities of.
        chat_template: Jinja text in place of the tokenizer's own template; "none" for prompts as they are, without a template.
        without_bos: the model was trained without the BOS token that its tokenizer has.
        system: a system message before every prompt that is a text; a chat is read as it is.
        template_variables: further variables of the template, e.g. date_string.
        max_prompt_tokens: longer prompts are an error, never cut.
    Raises UserError: an architecture without a known list of blocks, or that keeps other states than keys and values; no chat
    template; a tokenizer of another model; a target token that is not one token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        target_tokens: Sequence[str] = ("I",),
        *,
        chat_template: str | None = None,
        without_bos: bool = False,
        system: str | None = None,
        template_variables: Mapping[str, str | int | float | bool] | None = None,
        max_prompt_tokens: int | None = None,
    ) -> None:
        check_loaded(model, tokenizer)
        if max_prompt_tokens is not None:
            max_prompt_tokens = arguments.whole("max_prompt_tokens", max_prompt_tokens, 1)
        words = arguments.listed("target_tokens", target_tokens, "a list of texts, such as ['I']")
        if not words:
            raise UserError("target_tokens has no token: give at least one, such as ['I']")
        variables = arguments.mapping("template_variables", template_variables, "{name: value}")
        if chat_template is None and not tokenizer.chat_template:
            raise UserError(
                'the tokenizer has no chat template: give one as chat_template, or chat_template="none" for prompts as they are'
            )
        fields = {"chat_template": chat_template, "system": system, "template_variables": dict(variables)}
        with arguments.without_recipe():
            spec = of_fields({"id": "model", "without_bos": without_bos} | fields)
            template = ChatTemplate.of(tokenizer, spec)
            targets = find_targets(tokenizer, words, template.before + "x" + template.after)
            self._set(model, tokenizer, template, [target.token_id for target in targets], max_prompt_tokens)

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate,
        target_token_ids: Sequence[int],
        max_prompt_tokens: int | None = None,
    ) -> "Subject":
        """The subject of a model whose template and target tokens are known already."""
        subject = cls.__new__(cls)
        subject._set(model, tokenizer, template, target_token_ids, max_prompt_tokens)
        return subject

    def _set(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate,
        target_token_ids: Sequence[int],
        max_prompt_tokens: int | None,
    ) -> None:
        check_states(model)
        check_attention(model)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.template = template
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.blocks = find_blocks(model)
        self.d_model: int = model.config.get_text_config().hidden_size
        self.n_vocab: int = model.get_input_embeddings().weight.shape[0]
        largest = max(tokenizer.get_vocab().values())
        if largest >= self.n_vocab:
            raise UserError(f"model: the tokenizer has token id {largest}, but the model embeds only {self.n_vocab}")
        self.target_token_ids: tuple[int, ...] = tuple(target_token_ids)
        self.n_positions = learned_positions(model)
        self.max_prompt_tokens = min(max_prompt_tokens or sys.maxsize, self.n_positions or sys.maxsize)
        self._forward_takes = inspect.signature(model.forward).parameters
        self.sites = find_sites(self.blocks, self._probe, self.device, self.n_vocab)

    @classmethod
    def load(
        cls,
        model: ModelSpec | str | Path,
        compute: Compute | None = None,
        *,
        device: str | None = None,
        target_tokens: Sequence[str] | None = None,
        **spec: Any,
    ) -> "Subject":
        """A model by its hub id or folder, or as a recipe names it: without gradients, on its device and in its dtype.

        Args:
            compute: a recipe's [compute]: device, threads, and whether the blocks are compiled.
            device: where the model runs, in place of `compute`: "cpu", "cuda", "mps" or, by default, "auto", a GPU if any.
            target_tokens: as in `Subject`; only with an id or a folder.
            spec: with an id or a folder, further fields of a recipe's [model], e.g. dtype="bfloat16" or system="...". One is
                max_prompt_tokens, here 512 unless said otherwise: longer prompts are refused.
        Raises UserError, which names the recipe's field, or the argument: files or id that cannot be loaded, weights missing
        from the files, an architecture without a known list of blocks, no chat template or one other than asserted, a target
        token that is not one token.
        """
        compute = computing(compute, device)
        given = spec if target_tokens is None else {"target_tokens": target_tokens} | spec
        if not isinstance(model, ModelSpec):
            with arguments.without_recipe():
                return cls.load(named(model, given), compute)
        if given:
            raise UserError(f"{next(iter(given))} has no effect: the ModelSpec says it already; leave it out")
        if compute.threads is not None:
            torch.set_num_threads(compute.threads)
        place = resolve_device(compute.device)
        dtype = torch.bfloat16 if model.dtype == "bfloat16" else torch.float32
        check_compiles(compute, place.type)
        tokenizer = load_tokenizer(model)
        template = ChatTemplate.of(tokenizer, model)
        token_ids = tuple(target.token_id for target in targets_of(template, model))
        network = load_network(model, dtype).to(place).requires_grad_(False)
        subject = cls.of(network, tokenizer, template, token_ids, model.max_prompt_tokens)
        if compute.compile:
            compile_blocks(subject.blocks)
        return subject

    def _probe(self, ids_bt: Tensor) -> None:
        mask_bt = torch.ones_like(ids_bt)
        self._call(Batch(ids_bt, mask_bt, mask_bt.cumsum(dim=1) - 1), None, 1)

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

    @property
    def without_bos(self) -> bool:
        """Whether the model was trained without the BOS that its tokenizer has."""
        return self.template.without_bos

    def encode(self, prompt: Asked) -> Tokenized:
        """A prompt through the chat template, ready for the answer's first token.

        Raises UserError as `check_length` does: prompts are never cut.
        """
        tokenized = self.template.encode(prompt)
        self.check_length(tokenized, f"the prompt {(prompt if isinstance(prompt, str) else prompt[-1][1])[:60]!r}")
        return tokenized

    def check_length(self, prompt: Tokenized, name: str) -> None:
        """Raises UserError when a prompt has more tokens than max_prompt_tokens, or than the model has learned positions."""
        n = len(prompt.token_ids)
        if n > (self.n_positions or n):
            raise UserError(
                f"{name} has {n} tokens, but the model has learned {self.n_positions} positions: leave the prompt out"
            )
        if n > self.max_prompt_tokens:
            raise UserError(
                f"{name} has {n} tokens, but max_prompt_tokens is {self.max_prompt_tokens}: raise it or leave the prompt out"
            )

    def batch(self, sequences: Sequence[Sequence[int]]) -> Batch:
        """Token sequences as one left-padded batch on the model's device."""
        assert sequences, "a batch of no sequences"
        assert all(sequences), "a batch with an empty sequence"
        lengths_b1 = torch.tensor([[len(sequence)] for sequence in sequences])
        width, padding = int(lengths_b1.max()), [self._padding_id()]
        ids_bt = torch.tensor([(width - len(sequence)) * padding + list(sequence) for sequence in sequences])
        mask_bt = (torch.arange(width) >= width - lengths_b1).long()
        positions_bt = (mask_bt.cumsum(dim=1) - 1).clamp(min=0)
        return Batch(*(upload(one_bt, self.device) for one_bt in (ids_bt, mask_bt, positions_bt)))

    def forward(self, batch: Batch, cache: Cache | None = None, logits_to_keep: int = 1) -> Tensor:
        """Next-token logits in float32: (b, v) after the last token, or (b, k, v) for logits_to_keep = k other than 1 (0: all).

        The unembedding and a soft cap are computed in float32 whatever the model's dtype. A given cache is read and extended;
        the batch then holds only the new tokens, its mask all of them.
        """
        logits_bkv = self._call(batch, cache, logits_to_keep).logits.float()
        return logits_bkv[:, -1] if logits_to_keep == 1 else logits_bkv

    def forward_with_gradient(self, batch: Batch, cache: Cache | None = None) -> Tensor:
        """Next-token logits (b, v) in float32 after the last token, for a backward pass."""
        with torch.enable_grad():
            return self._run(batch, cache, 1).logits.float()[:, -1]

    @contextmanager
    def at(self, site: Site, fn: Callable[[Tensor], Tensor | None], n_rows: int | None = None) -> Iterator[None]:
        """While open, calls fn(x_btd) at a site; a returned tensor replaces what is there.

        Args:
            n_rows: b, needed where a model's MLP flattens batch and tokens into one dimension (OPT).
        """
        with self.sites.open(site, fn, n_rows):
            yield

    def width(self, site: Site) -> int:
        """d at a site: for every kind of site but z, that of the residual stream."""
        return self.sites.widths.get(site, self.d_model)

    def resid_post(self, layer: int, fn: Callable[[Tensor], Tensor | None]) -> AbstractContextManager[None]:
        """`at` the residual stream after block `layer`, before the final norm; the model's last hidden_states come after it."""
        return self.at(Site(layer), fn)

    def read_resid_post(self, batch: Batch, layers: Sequence[int]) -> dict[int, Tensor]:
        """resid_btd after each of `layers`: `read` at those sites."""
        found = self.read(batch, [Site(layer) for layer in layers])
        return {site.layer: resid_btd for site, resid_btd in found.items()}

    def read(self, batch: Batch, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """x_btd at each site, in the model's dtype, from one pass that ends once all of them were seen.

        Of the residual stream after a block the tensors are the pass's own, elsewhere copies.
        """
        read: dict[Site, Tensor] = {}
        n_asked = len(set(sites))

        def keep(site: Site, x_btd: Tensor) -> None:
            read[site] = x_btd if site.kind == "resid_post" else x_btd.clone()
            if len(read) == n_asked:
                raise StopForward

        with ExitStack() as hooks:
            for site in dict.fromkeys(sites):
                hooks.enter_context(self.at(site, partial(keep, site), len(batch.input_ids_bt)))
            with suppress(StopForward):
                self._call(batch, None, 1)
        return read

    def _call(self, batch: Batch, cache: Cache | None, logits_to_keep: int) -> Any:
        with torch.no_grad():
            return self._run(batch, cache, logits_to_keep)

    def _run(self, batch: Batch, cache: Cache | None, logits_to_keep: int) -> Any:
        options = {
            "position_ids": batch.position_ids_bt,
            "logits_to_keep": logits_to_keep,
        }
        with exact_unembedding(self.model), self._attention():
            return self.model(
                input_ids=batch.input_ids_bt,
                attention_mask=batch.attention_mask_bt,
                past_key_values=cache,
                use_cache=cache is not None,
                **{name: value for name, value in options.items() if name in self._forward_takes},
            )

    def _attention(self) -> AbstractContextManager[Any]:
        """Leaves cuDNN's attention out on a GPU: planning it takes a third of the time of many short prompts."""
        return sdpa_kernel(OF_ANY_SHAPE) if self.device.type == "cuda" else nullcontext()

    def _padding_id(self) -> int:
        # Padding is masked, so any id that the model embeds will do.
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(token_id for token_id in known if token_id is not None)
