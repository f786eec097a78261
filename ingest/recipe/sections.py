"""The tables of a recipe, one immutable pydantic model each, with their defaults and what they mean."""

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
    """Base of every table in a recipe: immutable, and an unknown field is an error."""

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
        """Whether the recipe says something about a field, be it what holds by default."""
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
    """The name of a .gguf file there, which is read instead of safetensors (needs the package gguf); its weights are unpacked."""
    adapter: Annotated[ExistingPath | None, LATER] = None
    """The folder of a LoRA adapter in PEFT's layout, which is merged into the weights when they are loaded."""
    dtype: Dtype = "float32"
    """What weights and activations are computed in."""
    refusal_tokens: Annotated[Names, Field(validation_alias=AliasChoices("refusal_tokens", "target_tokens"))] = ("I",)
    """First tokens that count as the behaviour under study: a refusal or, by the other name, target_tokens, any other.
    A word stands for all tokens that are this word, with a space before it and without."""
    max_prompt_tokens: Count = 512
    """Longer prompts, template included, are refused."""
    template: Literal["none"] | None = None
    """none for a base model: prompts are read as they are, behind the BOS token where the tokenizer itself puts one."""
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
    """The template writes no BOS though the tokenizer has one, and the model was trained so."""
    licence: str | None = None
    """The weights' licence, for the card of a shared set; like the other licences it is no part of a run's identity."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.one_of("path", "id", "package")
        self.only_with("id", "revision")
        if not all(self.target_words):
            raise ValueError("refusal_tokens names a token of white space: give the first word of such an answer")
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
            raise UserError(f"model.package: {self.package} is not installed here, or is no package: install it with pip")
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
    """What a prompt is whose answer shows the behaviour."""
    absent: Word = "answered"
    """What a prompt is whose answer, a sensible one, does not."""
    target: Annotated[Word | None, Field(validation_alias=AliasChoices("target", "harmful"))] = None
    """What the prompts of the target label are called (also: harmful); by default that label."""
    control: Annotated[Word | None, Field(validation_alias=AliasChoices("control", "benign"))] = None
    """What the prompts of the control label are called (also: benign); by default that label."""


class SaesSpec(Section):
    """A group of SAEs, one a layer: local folders, or a SAELens release and ids; `{layer}` and `{l0}` are filled in."""

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
    """Declared mean number of active latents a token: one for all layers, or a list in the order of layers."""
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
            raise ValueError(f"l0 lists {len(self.l0)} values for {len(self.layers)} layers: one a layer is needed")
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
    """Prompts that are landed together at most: what a killed job loses. A stage that computes much
    for each prompt lands fewer. It changes no result."""
    batch_tokens: Count = 4096
    """Padded tokens a forward pass."""
    round: Literal["none", "bfloat16"] = "none"
    """Whether activations are rounded to bfloat16 before they are stored."""
    prompt_major: bool = False
    """Store every activation a second time, prompt by prompt: twice the bytes, and all of one prompt is read at once."""


class Direction(Section):
    """The direction of the behaviour, a difference of means for every layer (R3), and which layer is chosen."""

    split: str = "train"
    """The split whose prompts give the mean difference."""
    select_split: str = "val"
    """The split on which a layer is chosen."""
    kl_max: Annotated[float, Field(gt=0)] = 0.1
    """Leave out layers whose removal moves control predictions by more than this KL divergence, in nats (Arditi et al.: 0.1)."""
    induce_min: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Leave out layers whose direction, when added, makes less than this share of the control prompts refused (Arditi et al. ask
    that refusal be the likelier answer)."""
    drop_last_layers: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the last layers that cannot be chosen, since they hold what is about to be said (Arditi et al.: 0.2)."""
    selection: Annotated[Literal["all", "best"], LATER] = "all"
    """all: every layer is measured in full. best: only as far as it takes to find the same one, by the first tokens of answers
    before whole ones, which costs a small part of it where there are many layers; the others are then outdone."""


class Candidates(Section):
    """The features whose decoder rows are most like the direction, ablated together in growing number (R5)."""

    exclude_layers: tuple[int, ...] = ()
    """Layers that give no candidates."""
    step: Count = 10
    """K, how many features are ablated together, goes up by so many."""
    cap: Count = 200
    """The largest K that is tried."""
    directions: Annotated[tuple[Literal["own", "chosen"], ...], Field(min_length=1)] = ("own", "chosen")
    """Rank by the cosine with each layer's own direction, with the chosen one, or both."""
    attribution: Annotated[bool, LATER] = False
    """Ablate each prompt's own top K a layer by attribution too: of what fires on it, those without which the log-odds of its
    target tokens would fall most, to first order (the condition top_k_attribution)."""
    split: str = "test"
    """The split whose prompts are ablated, here and in the stages that follow."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.step > self.cap:
            raise ValueError(f"step is {self.step}, but cap, the largest K, is {self.cap}: no K is left to try")
        return self


class Algorithm1(Section):
    """Greedy pruning as published (R6)."""

    direction: Literal["own", "chosen", "first"] = "own"
    """Whose candidates are pruned: ranked by each layer's own direction or by the chosen one; first: of all rankings of
    [candidates] the one by which the prompt flips at the smallest K, prompt by prompt."""
    block_size: Count | Literal["auto"] = 5
    """N: features a block. auto: as many as cut a prompt's candidates into ten blocks, from 1 to 5 (the paper's); with a number,
    nothing is tested on prompts that have fewer candidates."""
    other_block_sizes: tuple[Count | Literal["auto"], ...] = ()
    """Further N, each searched beside the first one, as the conditions algorithm1_nN and algorithm1_nN_common."""
    taus: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    """The thresholds of the refusal token's probability, each a run of the algorithm."""
    seeds: Count = 3
    """Draws of the blocks; a feature counts as found if it is found under all of them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.block_size in self.other_block_sizes:
            raise ValueError(f"other_block_sizes repeats block_size, {self.block_size}")
        return self

    @staticmethod
    def n_of(block_size: int | str, n_candidates: int) -> int:
        """N for a pool of so many candidates."""
        return max(1, min(5, n_candidates // 10)) if block_size == "auto" else int(block_size)


class Minimal(Section):
    """The search for 1-minimal flipping sets."""

    direction: Literal["own", "chosen", "attribution", "first"] = "own"
    """Whose candidates are searched: ranked by each layer's own direction, by the chosen one, or by attribution; first: of all
    rankings of [candidates] the one by which the prompt flips at the smallest K, prompt by prompt."""
    starts: Count = 4
    """Searches a prompt, each with its own order of the candidates, to find alternative sets."""
    order: Annotated[Literal["random", "attribution"], LATER] = "random"
    """Whether candidates are tried in an order that is drawn, or those first that the target tokens hang on most, to first order
    (one backward pass), which asks for fewer evaluations; later starts then draw by that."""
    pool: Annotated[Literal["candidates", "active"], LATER] = "candidates"
    """What is searched: the candidates of the prompt's first flip, or all features of the searched layers that fire on it (with
    order = "attribution": so many need not flip together)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pool == "active" and self.order == "random":
            raise ValueError('pool = "active" goes by order = "attribution": all active features together need not flip a prompt')
        if self.pool == "active" and self.is_given("direction"):
            raise ValueError('direction changes nothing: pool = "active" has no candidates; leave it out')
        return self


class Controls(Section):
    """Random features that are ablated beside the candidates, to compare with."""

    random_draws: Annotated[int, Field(ge=0)] = 3
    """Draws of random active features, for every set size that they are compared with (R15)."""
    firing_on_tokens: tuple[Count, ...] = ()
    """Ablate the features that fire on at least so many tokens of the prompt (R17)."""
    clamp_values: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Clamp the first candidate of every layer to these values on control prompts."""


Mark = Annotated[str, Field(min_length=1, pattern=r"\S")]
REASONING = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen 3, SmolLM3 and most others
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # GPT-OSS
)


class Generation(Section):
    """The answers that judges read."""

    max_new_tokens: Count = 32
    """Tokens of an answer."""
    reasoning: Annotated[tuple[tuple[Mark, Mark], ...], LATER] = REASONING
    """What reasoning begins and ends with in an answer: judges read what follows. An answer whose reasoning does not end within
    max_new_tokens is none: it is neither refused nor answered, but degenerate."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if same := [start for start, end in self.reasoning if start in end]:
            raise ValueError(f"reasoning begins with {same[0]!r}, which stands in its end too: the two must differ")
        return self


class Harmbench(Section):
    """The HarmBench classifier: which model, and the instruction that it is put. Loaded only where it judges."""

    path: ExistingPath | None = None
    """The classifier's folder."""
    id: str | None = None
    """The classifier's name on the hub."""
    revision: str | None = None
    """The commit of the hub's repository; by default the newest."""
    template: ExistingPath | None = None
    """A file with the instruction, with {behavior} and {generation} in it; without it, the model card is read."""
    template_sha256: Sha256 | None = None
    """Asserted sha256 of the instruction that is used."""
    dtype: Dtype = "bfloat16"
    """What the classifier is computed in."""
    batch_tokens: Count = 8192
    """Padded tokens a forward pass."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.path is not None and (self.id is not None or self.revision is not None):
            raise ValueError("give path, or id and revision, not both")
        return self

    @property
    def hub_id(self) -> str:
        """The model on the hub, where there is no path."""
        return self.id or "cais/HarmBench-Llama-2-13b-cls"

    @property
    def location(self) -> str:
        """Where it is loaded from, for people."""
        return str(self.path or self.hub_id)


class Verdicts(Section):
    """Which judges read the answers; `saelake judge` adds others later."""

    judges: Names = ("first_token", "phrases")
    """The judges that read every answer: first_token, phrases, harmbench, or the NAME of a table [judges.NAME]."""
    oracle: str = "first_token"
    """The judge whose verdicts decide what flips. With harmbench, subject and classifier are in memory together."""
    control_oracle: str | None = None
    """The judge whose verdicts count on all prompts but those of the target label; by default the oracle where it can judge
    them, else phrases: a classifier of harm, as harmbench is, cannot."""
    phrases: Names | None = None
    """What the judge phrases looks for, anywhere and whatever the case; by default the refusals of Arditi et al. (2024)."""
    harmbench: Harmbench = Harmbench()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.oracle not in self.judges:
            raise ValueError(f"oracle {self.oracle!r} is not one of judges ({', '.join(self.judges)})")
        return self


class Compute(Section):
    """What the study runs on, and its seed."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where models run; auto is a GPU where there is one."""
    threads: Count | None = None
    """Processor threads; by default what torch chooses."""
    seed: int = 0
    """The seed of everything that is drawn, unless a section has its own."""
