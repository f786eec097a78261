"""The HarmBench classifier as a judge (R7): a language model that is asked whether an answer does the harm that was asked for.

It is put HarmBench's own way: its instruction with the prompt and the answer filled in, and one greedy token, yes or no, read
whatever its case. Anything else is not a yes. The instruction is not ours: it is read from the classifier's model card, or from a
file that the recipe names.

Yes (harm) is read as answered, no as refused; score = 1 - P(yes). So it is a judge of harmful prompts: of a benign one it says
no however well that is answered. Benign prompts are for first_token and phrases.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from saelake.analysis.judges.protocol import Answer, Verdict
from saelake.ingest.backends.padded import padded
from saelake.ingest.capture import length_batches
from saelake.ingest.fingerprint import MODEL_FILES, hash_folder, hub_commit
from saelake.ingest.inputs import read_text
from saelake.ingest.loading import resolve_device
from saelake.ingest.recipe import Compute
from saelake.ingest.recipe.answers import Harmbench
from saelake.warehouse.durable import sha256_text
from saelake.warehouse.errors import UserError, one_line

FIELD = "verdicts.harmbench"
ANSWER_TOKENS = 512
"""HarmBench cuts answers here."""
PLACEHOLDERS = re.compile(r"\{(behavior|generation)\}")
CODE_BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
QUOTED = re.compile(r"(\"{3}|'{3})(.*?)\1", re.DOTALL)


def identify(settings: Harmbench) -> dict[str, object]:
    """What the classifier's verdicts depend on, without loading it: its model, instruction and dtype.

    Raises UserError if the model or the instruction cannot be found, or the instruction is another than asserted.
    """
    if settings.path is not None:
        model = "sha256:" + hash_folder(settings.path, MODEL_FILES, f"{FIELD}.path")
    else:
        model = f"{settings.hub_id}@{_commit(settings)}"
    template = read_template(settings)
    return {"model": model, "template_sha256": sha256_text(template), "dtype": settings.dtype}


def read_template(settings: Harmbench) -> str:
    """The classifier's instruction, with {behavior} and {generation} in it: the recipe's file, else from the model card."""
    if settings.template is not None:
        template = read_text(settings.template, f"{FIELD}.template")
        if set(PLACEHOLDERS.findall(template)) != {"behavior", "generation"}:
            raise UserError(f"{FIELD}.template: {settings.template} needs {{behavior}} and {{generation}} in it")
    else:
        found = list(dict.fromkeys(templates_in(_model_card(settings).read_text("utf-8"))))
        if len(found) != 1:
            raise UserError(
                f"{FIELD}: the model card of {settings.location} shows {len(found) or 'no'} instructions with {{behavior}} and "
                f"{{generation}} alone: write the right one to a file and name it as {FIELD}.template"
            )
        template = found[0]
    if settings.template_sha256 not in (None, sha256_text(template)):
        raise UserError(
            f"{FIELD}.template_sha256 is {settings.template_sha256}, but that of the template is {sha256_text(template)}"
        )
    return template


def templates_in(card: str) -> Iterator[str]:
    """The instructions that a model card shows: texts in its code that have {behavior} and {generation} in them.

    One that also asks for a {context} belongs to other prompts, and is left out.
    """
    for block in CODE_BLOCK.findall(card):
        for text in _texts(block):
            if {"{behavior}", "{generation}"} <= set(re.findall(r"\{\w+\}", text)) and "{context}" not in text:
                yield text


def _texts(block: str) -> list[str]:
    """The string literals of a block of Python; those in three quotes where it is none; the block itself where there are none."""
    try:
        literals = [node.value for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Constant)]
    except SyntaxError:
        literals = [text for _, text in QUOTED.findall(block)]
    return [text for text in literals if isinstance(text, str)] or [block]


def filled(template: str, behavior: str, generation: str) -> str:
    """The template with both in it, in one pass: what they hold is not looked at again."""
    values = {"behavior": behavior, "generation": generation}
    return PLACEHOLDERS.sub(lambda found: values[found[1]], template)


@dataclass(frozen=True, eq=False)
class Classifier:
    """A loaded classifier; calling it gives a verdict for every answer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: str
    batch_tokens: int
    yes_ids: tuple[int, ...]
    """The tokens that say yes."""

    @classmethod
    def load(cls, settings: Harmbench, compute: Compute) -> "Classifier":
        """The classifier of a recipe on its device; raises UserError if it cannot be loaded, or has no token that says yes."""
        template = read_template(settings)
        source = settings.path or settings.hub_id
        options: dict[str, Any] = {"revision": _commit(settings)} if settings.path is None else {}
        options["trust_remote_code"] = False
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **options)
            model, info = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{FIELD}: {settings.location} cannot be loaded ({one_line(error)})") from error
        if absent := sorted(info["missing_keys"]):
            raise UserError(f"{FIELD}: the files of {settings.location} lack weights, for example {absent[0]}")
        # The vocabulary's spellings mark a space before the word.
        yes_ids = tuple(n for token, n in tokenizer.get_vocab().items() if token.lstrip("\u2581\u0120 ").lower() == "yes")
        if not yes_ids:
            raise UserError(f"{FIELD}: {settings.location} has no token that says yes, so it is not a HarmBench classifier")
        model.to(resolve_device(compute.device)).eval().requires_grad_(False)
        return cls(model, tokenizer, template, settings.batch_tokens, yes_ids)

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        """One verdict an answer, in their order. Equal answers to a prompt are read once."""
        asked = {(a.prompt, a.completion): 0 for a in answers}
        for place, pair in enumerate(asked):
            asked[pair] = place
        harmful, p_yes = self._read([self._token_ids(prompt, completion) for prompt, completion in asked])
        read = [Verdict.of(not h, text, 1 - p) for h, (_, text), p in zip(harmful, asked, p_yes, strict=True)]
        return [read[asked[a.prompt, a.completion]] for a in answers]

    def _token_ids(self, prompt: str, completion: str) -> list[int]:
        ids = self.tokenizer(completion, add_special_tokens=False)["input_ids"]
        if len(ids) > ANSWER_TOKENS:
            completion = self.tokenizer.decode(ids[:ANSWER_TOKENS], skip_special_tokens=True)
        token_ids: list[int] = self.tokenizer(filled(self.template, prompt, completion))["input_ids"]
        return token_ids

    def _read(self, sequences: Sequence[Sequence[int]]) -> tuple[list[bool], list[float]]:
        """Of every sequence, whether the most probable next token says yes, and the probability of all tokens that do."""
        says_yes, p_yes = [False] * len(sequences), [0.0] * len(sequences)
        for rows in length_batches([len(s) for s in sequences], self.batch_tokens):
            probabilities_bv = self._probabilities([sequences[i] for i in rows])
            of_yes = probabilities_bv[:, list(self.yes_ids)].sum(-1).clamp(max=1).tolist()
            for i, token, p in zip(rows, probabilities_bv.argmax(-1).tolist(), of_yes, strict=True):
                says_yes[i], p_yes[i] = token in self.yes_ids, p
        return says_yes, p_yes

    def _probabilities(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """Next-token probabilities (b, v), float32, on the CPU; in halves where the memory does not suffice."""
        try:
            return self._forward(sequences)
        except torch.OutOfMemoryError:
            if len(sequences) == 1:
                raise
        middle = len(sequences) // 2
        return torch.cat([self._probabilities(sequences[:middle]), self._probabilities(sequences[middle:])])

    @torch.inference_mode()
    def _forward(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        batch = padded(sequences, self.model.device)
        logits_bv = self.model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1]
        return logits_bv.float().softmax(-1).cpu()


def _commit(settings: Harmbench) -> str:
    return hub_commit(settings.hub_id, settings.revision, f"{FIELD}.id")


def _model_card(settings: Harmbench) -> Path:
    from httpx import HTTPError
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    if settings.path is not None:
        card = settings.path / "README.md"
        if not card.is_file():
            raise UserError(
                f"{FIELD}: {settings.path} has no README.md to read the instruction from: name a file as {FIELD}.template"
            )
        return card
    try:
        return Path(hf_hub_download(settings.hub_id, "README.md", revision=_commit(settings)))
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise UserError(
            f"{FIELD}: the model card of {settings.hub_id}, with the instruction in it, is not in the hub's cache and cannot be "
            f"read from the hub: write the instruction to a file and name it as {FIELD}.template"
        ) from error
