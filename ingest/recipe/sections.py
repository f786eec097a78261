"""What a section of a recipe is, an immutable pydantic model; and those of model, SAEs, labels, words, capture and device."""

import os
from collections.abc import Hashable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from saelake.ingest.inputs import is_there, read_text, short
from saelake.warehouse.errors import UserError

Scalar = str | int | float | bool
Dtype = Literal["float32", "bfloat16"]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


def _resolve(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder", Path.cwd())
    try:
        return Path(os.path.normpath(folder / path.expanduser()))
    except RuntimeError as error:  # the home of a user who is not there
        raise ValueError(f"{path}: {error}") from error


def _resolve_existing(path: Path, info: ValidationInfo) -> Path:
    resolved = _resolve(path, info)
    if not is_there(resolved):
        raise ValueError(f"there is no {short(path)} in {short(resolved.parent)}: paths are relative to the recipe's folder")
    return resolved


RecipePath = Annotated[Path, AfterValidator(_resolve)]
ExistingPath = Annotated[Path, AfterValidator(_resolve_existing)]


LATER = "since version 2"
"""Marks a field that recipes of version 1 did not have: at its default it stands in no run's id, so that older runs are found."""


class Section(BaseModel):
    """Base of every section of a recipe: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_order: ClassVar[frozenset[str]] = frozenset()
    """Fields whose values belong to those of another list by their places, so that one may come again."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        """A value that a list repeats changes nothing, or counts twice what should count once."""
        for field in set(type(self).model_fields) - self.in_order:
            value = getattr(self, field)
            for where, items in [(field, value)] + (
                [(f"{field}.{k}", v) for k, v in value.items()] if isinstance(value, dict) else []
            ):
                if isinstance(items, tuple) and (repeated := _repeated(items)):
                    raise ValueError(f"{where} lists {repeated[0]} twice")
        return self

    def unused_later_fields(self) -> dict[str, bool]:
        """Fields that came with a later version (`LATER`) and have their default: what runs before them were computed with."""
        fields = type(self).model_fields
        return {name: True for name, field in fields.items() if LATER in field.metadata and getattr(self, name) == field.default}

    def one_of(self, *fields: str) -> str:
        """The one field of `fields` that is set; raises ValueError when none or several are."""
        given = [field for field in fields if getattr(self, field) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(fields)}, not {' and '.join(given) or 'none'}")
        return given[0]

    def is_given(self, field: str) -> bool:
        """Whether the recipe says something about a field, even if that is the default."""
        return field in self.model_fields_set

    def only_with(self, field: str, *companions: str) -> None:
        """Raises ValueError when a companion is set but `field` is not."""
        for companion in companions:
            if getattr(self, companion) is not None and getattr(self, field) is None:
                raise ValueError(f"{companion} only makes sense together with {field}")


def _repeated(items: tuple[object, ...]) -> list[str]:
    """The items of a list that stand in it before, as a sentence shows them."""
    seen: set[Hashable] = set()
    found = []
    for item in items:
        is_table = isinstance(item, BaseModel)
        known: Hashable = repr(item) if is_table else item
        if known in seen:
            found.append("the same table" if is_table else repr(item))
        seen.add(known)
    return found


def _word(token: str) -> str:
    return token.strip().lstrip("\u2581\u0120").strip() or token.strip()


TEMPLATE_FIELDS = ("chat_template", "chat_template_file", "template_sha256", "template_variables", "system", "without_bos")
"""What a template's text is, or what stands in it."""


class ModelSpec(Section):
    """The language model under study: a local folder, a hub id with its revision, or an installed package that holds one."""

    path: ExistingPath | None = None
    """The model's folder, in the layout of transformers."""
    id: str | None = None
    """The model's name on the hub; needs access where it is gated."""
    revision: str | None = None
    """The commit of the hub's repository; by default the newest."""
    package: Annotated[str | None, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), LATER] = None
    """The name by which a Python package is imported that holds the model's files; it is found, not imported."""
    gguf: str | None = None
    """The name of a .gguf file among the model's files, read instead of safetensors (needs the package gguf) and unpacked."""
    adapter: Annotated[ExistingPath | None, LATER] = None
    """The folder of a LoRA adapter in PEFT's layout, which is merged into the weights when they are loaded."""
    dtype: Dtype = "float32"
    """What weights and activations are computed in."""
    refusal_tokens: Annotated[Names, Field(validation_alias=AliasChoices("refusal_tokens", "target_tokens"))] = ("I",)
    """First tokens that count as the behaviour under study: a refusal or, by the other name, target_tokens, any other.
    A word stands for all tokens that are this word, with a space before it and without."""
    max_prompt_tokens: Count = 512
    """Longer prompts, template included, are an error: none is cut. In a study at most 32,768, with capture.answer_tokens."""
    template: Literal["none"] | None = None
    """none for a base model: prompts are read as they are, after the BOS token if the tokenizer puts one."""
    chat_template: str | None = None
    """Jinja text that replaces the tokenizer's own template."""
    chat_template_file: ExistingPath | None = None
    """The same, kept in a file."""
    template_sha256: Sha256 | None = None
    """Asserted sha256 of the template text that is used."""
    template_variables: dict[str, Scalar] = {}
    """Further variables of the template, e.g. date_string or enable_thinking."""
    system: str | None = None
    """The system prompt, where the template takes one."""
    without_bos: bool = False
    """The template writes no BOS though the tokenizer has one, and the model was trained so: texts get none either."""
    licence: str | None = None
    """The weights' licence, for the card of a shared set; like the other licences it is not part of a run's identity."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.one_of("path", "id", "package")
        self.only_with("id", "revision")
        if not all(self.target_words):
            raise ValueError("a target token is white space: give the first word of such an answer")
        if self.chat_template is not None and self.chat_template_file is not None:
            raise ValueError("give chat_template or chat_template_file, not both")
        if self.chat_template == "none":
            raise ValueError('chat_template is Jinja text: for prompts as they are, write template = "none"')
        if self.template == "none":
            given = [name for name in TEMPLATE_FIELDS if getattr(self, name)]
            if given:
                raise ValueError(f'with template = "none" there is no template, so that {given[0]} has no effect: leave it out')
        return self

    @property
    def folder(self) -> Path | None:
        """Where the model's files lie; None for a model of the hub.

        Raises UserError where the package that holds them is not installed.
        """
        if self.package is None:
            return self.path
        found = find_spec(self.package)  # a name without dots: nothing is imported
        where = None if found is None else next(iter(found.submodule_search_locations or ()), None)
        if where is None:
            raise UserError(f"model.package: {self.package} is not installed here, or is not a package: install it with pip")
        return Path(where)

    @property
    def name(self) -> str:
        """The hub's id or the package's name, else the folder."""
        return str(self.id or self.package or self.path)

    @property
    def target_words(self) -> tuple[str, ...]:
        """The target tokens as words, each once: without the white space, or the vocabulary's mark for it, that stands before."""
        return tuple(dict.fromkeys(_word(token) for token in self.refusal_tokens))

    def pinned_template(self) -> str | None:
        """The template text that the recipe pins, if it pins one."""
        if self.chat_template_file is None:
            return self.chat_template
        return read_text(self.chat_template_file, "model.chat_template_file")


Word = Annotated[str, Field(pattern=r"^[^{}\s][^{}\n]{0,39}$")]


Role = Literal["target", "control", "other"]
"""What a study takes a prompt's label for."""
ROLES: tuple[Role, ...] = ("target", "control", "other")


class Labels(Section):
    """Which labels of the prompts the study sets against each other; prompts of others are answered and reported beside them."""

    target: Annotated[str, Field(min_length=1), LATER] = "harmful"
    """The label of the prompts that should show the behaviour."""
    control: Annotated[str, Field(min_length=1), LATER] = "benign"
    """The label of those that should not."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.target == self.control:
            raise ValueError(f"target and control are both {self.target!r}: they are two labels")
        return self

    def role(self, label: str) -> Role:
        """What a label is taken for."""
        return "target" if label == self.target else "control" if label == self.control else "other"

    def of(self, role: Role) -> str:
        """The label that is taken for target or control."""
        return self.target if role == "target" else self.control


class Behaviour(Section):
    """What the study's behaviour is called where people read of it; it changes no result, and no name of a table or column."""

    name: Word = "refusal"
    """What the behaviour is called."""
    shown: Word = "refused"
    """What a prompt is called when its answer shows the behaviour."""
    absent: Word = "answered"
    """What a prompt is called when its answer makes sense and does not show the behaviour."""
    target: Annotated[Word | None, Field(validation_alias=AliasChoices("target", "harmful"))] = None
    """What the prompts of the target label are called (also: harmful); by default that label."""
    control: Annotated[Word | None, Field(validation_alias=AliasChoices("control", "benign"))] = None
    """What the prompts of the control label are called (also: benign); by default that label."""


class SaesSpec(Section):
    """A group of SAEs, one per layer: local folders, or a SAELens release and ids; `{layer}` and `{l0}` are filled in."""

    in_order = frozenset({"l0"})

    path: RecipePath | None = None
    """The SAEs' folders in SAELens' layout, with `{layer}` in the name where there are several."""
    release: str | None = None
    """A release of SAELens' directory."""
    id: str | None = None
    """The SAE's id in the release, a pattern over layers."""
    revision: str | None = None
    """Asserted commit of the release's hub repository (SAELens itself always loads its newest)."""
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """The layers, counted from 0, in which the SAEs read; where in them, each SAE says itself."""
    l0: float | tuple[float, ...] | None = None
    """Declared mean number of active latents per token: one for all layers, or a list in the order of layers."""
    threshold: Literal["saelens", "published"] = "saelens"
    """Llama Scope's thresholds: multiplied by the dataset norm's scale, as SAELens loads them, or as they were published."""
    licence: str | None = None
    """The SAEs' licence, for the card of a shared set."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        source = self.one_of("path", "release")
        self.only_with("release", "id", "revision")
        if source == "release" and self.id is None:
            raise ValueError('release needs id, for example id = "layer_{layer}/width_65k/average_l0_{l0}"')
        pattern = str(self.path or self.id)
        if "{layer}" not in pattern and len(self.layers) > 1:
            raise ValueError(f"{pattern} needs {{layer}} in it: {len(self.layers)} layers are listed")
        if source == "path" and self.threshold == "published":
            raise ValueError(
                'threshold = "published" is about the Llama Scope release, and changes nothing with path: leave it out'
            )
        if isinstance(self.l0, tuple) and len(self.l0) != len(self.layers):
            raise ValueError(f"l0 lists {len(self.l0)} values for {len(self.layers)} layers: one per layer is needed")
        if "{l0}" in pattern and self.l0 is None:
            raise ValueError(f"{pattern} has {{l0}} in it: give l0, a list with one value a layer")
        return self

    def declared_l0(self, layer: int) -> float | None:
        """The L0 that the recipe declares for a layer, if any."""
        return self.l0[self.layers.index(layer)] if isinstance(self.l0, tuple) else self.l0

    def fill(self, pattern: str, layer: int) -> str:
        """`pattern` with {layer} and {l0} filled in."""
        return pattern.replace("{layer}", str(layer)).replace("{l0}", f"{self.declared_l0(layer) or 0:g}")


class Capture(Section):
    """How prompts are run and activations stored."""

    shard_prompts: Count = 128
    """The most prompts that are landed together: a killed job repeats those that it had begun. A stage that computes much
    for each prompt lands fewer. It changes no result."""
    batch_tokens: Count = 4096
    """Padded tokens per forward pass."""
    round: Literal["none", "bfloat16"] = "none"
    """Whether activations are rounded to bfloat16 before they are stored."""
    answer_tokens: Annotated[int, Field(ge=0), LATER] = 0
    """Also cover this many tokens of the model's own answers, as judges read them: unmodified, with the direction projected out,
    and under every `saelake ablate`; 0: none. They are in the tables answer_tokens and answer_activations."""
    prompt_major: bool = False
    """Store every activation a second time, prompt by prompt: twice the bytes, and all of one prompt is read at once."""


class Compute(Section):
    """What the study runs on, and its seed."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where models run; auto is a GPU where there is one."""
    threads: Count | None = None
    """Processor threads; by default what torch chooses."""
    compile: bool = False
    """On a CUDA device, have torch compile the model's blocks: passes of many short prompts are a tenth to a third faster. It is
    part of a run's identity, because it rounds differently."""
    seed: int = 0
    """The seed of everything that is drawn, unless a section has its own."""
