"""The recipe as a whole: its sections put together, and how it is read from a file."""

import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from saelake.ingest.inputs import is_there, read_text, short
from saelake.ingest.recipe.answers import Generation, Verdicts
from saelake.ingest.recipe.atlas import Atlas
from saelake.ingest.recipe.audit import Audit
from saelake.ingest.recipe.effects import Diagnostic, Losses, Redundancy, Steering, Waking
from saelake.ingest.recipe.errors import nearest, sentence
from saelake.ingest.recipe.interactions import FactorisationMachine, Interactions, Probe, Stage3
from saelake.ingest.recipe.judges import Judges, check_names, known_judges
from saelake.ingest.recipe.meaning import Concepts, Explanations, Taxonomy
from saelake.ingest.recipe.prompts import PromptSet
from saelake.ingest.recipe.search import Algorithm1, Candidates, Controls, Direction, Minimal
from saelake.ingest.recipe.sections import Behaviour, Capture, Compute, Count, Labels, ModelSpec, SaesSpec, Section
from saelake.ingest.recipe.training import TrainSaes
from saelake.warehouse.errors import UserError
from saelake.warehouse.keys import NAME

POSITIONS = 1 << 15
"""Of a prompt with what is stored of its answer: positions are int16."""
RECIPES = Path(__file__).resolve().parents[2] / "recipes"

# What determines no content is not part of a run's id: where content lies and who may pass it on (its hash is there), how many
# prompts a shard or a batch takes, whether rows are stored a second time, how long a prompt may be, and that a missing BOS is no
# error. The target tokens, how many tokens of answers are read, and that texts have no BOS, count in the stages that read them.
_NO_CONTENT: dict[str, Any] = {
    "capture": {"shard_prompts": True, "batch_tokens": True, "prompt_major": True, "answer_tokens": True},
    "model": dict.fromkeys(
        ("path", "package", "adapter", "chat_template_file", "licence", "without_bos", "refusal_tokens", "max_prompt_tokens"),
        True,
    ),
    "losses": {"texts": {"__all__": {"file": True, "url": True}}},
    "train_saes": {"texts": {"__all__": {"file": True, "url": True}}},
}


class Recipe(Section):
    """A whole study. `load_recipe` makes one from a file."""

    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    """The study's name: a lake keeps what is current by it."""
    labels: Labels = Labels()
    behaviour: Behaviour = Behaviour()
    model: ModelSpec
    saes: SaesSpec
    """The SAEs; written several times as [[saes]], groups of them, which may have SAEs of the same layers."""
    more_saes: tuple[SaesSpec, ...] = ()
    """The groups behind the first; a file has them as further [[saes]]."""
    prompts: Annotated[tuple[PromptSet, ...], Field(min_length=1)]
    capture: Capture = Capture()
    direction: Direction = Direction()
    candidates: Candidates = Candidates()
    algorithm1: Algorithm1 = Algorithm1()
    minimal: Minimal = Minimal()
    controls: Controls = Controls()
    diagnostic: Diagnostic = Diagnostic()
    redundancy: Redundancy = Redundancy()
    waking: Waking = Waking()
    steering: Steering = Steering()
    losses: Losses = Losses()
    interactions: Interactions = Interactions()
    fm: FactorisationMachine = FactorisationMachine()
    probe: Probe = Probe()
    stage3: Stage3 = Stage3()
    taxonomy: Taxonomy = Taxonomy()
    explanations: Explanations = Explanations()
    concepts: Concepts = Concepts()
    atlas: Atlas = Atlas()
    audit: Audit = Audit()
    generation: Generation = Generation()
    verdicts: Verdicts = Verdicts()
    judges: Judges = Field({})
    train_saes: TrainSaes = TrainSaes()
    compute: Compute = Compute()
    prompts_per_group: Count | None = None
    """Keep only this many prompts of every set, label and split, the first ones: a smoke run, as `--limit` makes it."""
    _file: Path | None = PrivateAttr(None)
    _allows_code: bool = PrivateAttr(False)
    _hosts: frozenset[str] = PrivateAttr(frozenset())
    _sends: bool = PrivateAttr(True)

    @model_validator(mode="before")
    @classmethod
    def _in_groups(cls, content: Any) -> Any:
        """[[saes]] are groups: the first is `saes`, the others are `more_saes`."""
        if isinstance(content, dict) and "more_saes" in content:
            raise ValueError("there is no field more_saes: write each group of SAEs as [[saes]]")
        if isinstance(content, dict) and isinstance(groups := content.get("saes"), list):
            if not groups:
                raise ValueError("saes lists no SAEs")
            return content | {"saes": groups[0], "more_saes": tuple(groups[1:])}
        return content

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [prompts.set for prompts in self.prompts]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"two [[prompts]] are called {repeated!r}: give every set its own name")
        layers = {"candidates.exclude_layers": self.candidates.exclude_layers, "explanations.sources": self.explanations.sources}
        layers["audit.layers"] = self.audit.layers
        for field, named in layers.items():
            if others := sorted(set(named) - set(self.sae_layers)):
                known = ", ".join(map(str, self.sae_layers))
                raise ValueError(f"{field} names layer {others[0]}, but the layers of saes.layers are {known}")
        if set(self.sae_layers) <= set(self.candidates.exclude_layers):
            raise ValueError("candidates.exclude_layers leaves no layer of saes.layers")
        if self.is_given("train_saes") and all(group.release is not None for group in self.sae_groups):
            raise ValueError(
                "[train_saes] changes nothing: saes.release names SAEs that are trained already; take one of them out"
            )
        for section, sets in (("interactions", self.interactions.sets), ("taxonomy", self.taxonomy.sets)):
            if unknown := [name for name in sets if name not in names]:
                raise ValueError(f"{section}.sets names {unknown[0]!r}, but the sets of [[prompts]] are {', '.join(names)}")
        asked = {f"verdicts.judges[{n}]": name for n, name in enumerate(self.verdicts.judges)}
        asked["verdicts.oracle"] = self.verdicts.oracle
        if self.verdicts.control_oracle is not None:
            asked["verdicts.control_oracle"] = self.verdicts.control_oracle
        check_names(self.judges, asked)
        if self.capture.answer_tokens > self.generation.max_new_tokens:
            raise ValueError(
                f"capture.answer_tokens is {self.capture.answer_tokens}, but answers end after generation.max_new_tokens = "
                f"{self.generation.max_new_tokens}"
            )
        if self.model.max_prompt_tokens + self.capture.answer_tokens > POSITIONS:
            answers = f" and capture.answer_tokens is {self.capture.answer_tokens:,}" if self.capture.answer_tokens else ""
            raise ValueError(
                f"model.max_prompt_tokens is {self.model.max_prompt_tokens:,}{answers}, but the tables of a lake have "
                f"{POSITIONS:,} positions: lower it"
            )
        if self.model.system is not None and all(one.messages or isinstance(one.system, str) for one in self.prompts):
            raise ValueError("model.system changes nothing: all [[prompts]] are chats, or have a system message of their own")
        searched: dict[str, str] = {"algorithm1": self.algorithm1.direction}
        if self.minimal.pool == "candidates":
            searched["minimal"] = self.minimal.direction
        for section, direction in searched.items():
            if direction != "first" and direction not in self.candidates.rankings:
                add = (
                    "set candidates.attribution = true"
                    if direction == "attribution"
                    else f"add {direction} to candidates.directions"
                )
                raise ValueError(
                    f"{section}.direction is {direction}, by which there are no candidates: set it to "
                    f"{' or '.join(self.candidates.directions)}, or {add}"
                )
        if self.stage3.size not in self.fm.sizes:
            raise ValueError(f"stage3.size is {self.stage3.size}, but fm.sizes has no such machine")
        return self

    @property
    def words(self) -> dict[str, str]:
        """What the behaviour and its prompts are called where people read of them."""
        known = self.behaviour.model_dump()
        return known | {role: known[role] or label for role, label in self.labels.model_dump().items()}

    @property
    def judge_names(self) -> tuple[str, ...]:
        """All judges that the study knows."""
        return known_judges(self.judges)

    def allowing(self, code: bool = False, hosts: Sequence[str] = ()) -> "Recipe":
        """The same recipe, whose judges may be the user's own code and send answers to these hosts: it cannot say so itself."""
        allowed = self.model_copy()
        allowed._allows_code, allowed._hosts = code, frozenset(host.lower() for host in hosts)
        return allowed

    def sending_nothing(self) -> "Recipe":
        """The same recipe, whose judges are named and never asked: so they need neither a host's permission nor a key."""
        quiet = self.model_copy()
        quiet._sends = False
        return quiet

    @property
    def sends(self) -> bool:
        """Whether its judges may be asked."""
        return self._sends

    @property
    def allows_code(self) -> bool:
        return self._allows_code

    @property
    def hosts(self) -> frozenset[str]:
        """Hosts beside this machine that answers may be sent to."""
        return self._hosts

    @property
    def file(self) -> Path | None:
        """The file that the recipe was read from."""
        return self._file

    @property
    def sae_groups(self) -> tuple[SaesSpec, ...]:
        """All groups of SAEs, in the order of the recipe."""
        return (self.saes, *self.more_saes)

    @property
    def sae_layers(self) -> list[int]:
        """The layers that have an SAE, rising."""
        return sorted({layer for group in self.sae_groups for layer in group.layers})

    def limit(self, n: int) -> "Recipe":
        """The same recipe on the first `n` prompts of every (set, label, split), in file order, for a quick look.

        Splits are drawn before the cut, so a limited run sees a subset of the full run's prompts with the same splits.
        """
        assert n >= 1, f"limit of {n} prompts"
        return self.model_copy(update={"prompts_per_group": n})

    def section(self, name: str) -> dict[str, Any]:
        """One section as JSON values, defaults filled in, without what determines no content: equal content gives equal dicts.

        The pinned template stands in "model" as text. Prompts, SAEs and verdicts have no such section: a run's id holds hashes of
        the first two, and the identity of the judges whose verdicts count.
        """
        section = None if name in ("saes", "verdicts") else getattr(self, name)
        assert isinstance(section, Section), f"no section {name!r} in a run's id"
        left_out = {**_NO_CONTENT.get(name, {}), **section.unused_later_fields()}
        content = section.model_dump(mode="json", exclude=left_out, exclude_none=True)
        if isinstance(section, Taxonomy):
            content["label"] = section.label or self.labels.target
        if isinstance(section, ModelSpec) and (template := section.pinned_template()) is not None:
            content["chat_template"] = template
        return content

    def about(self) -> dict[str, Any]:
        """What the behaviour is called, who made what the study uses, and who may pass it on, as JSON values.

        Folders of this machine are left out.
        """

        def sources(one: PromptSet) -> list[str]:
            return [one.hub] if one.hub else [source.url for source in one.files if source.url]

        def pins(one: PromptSet) -> list[str]:
            return [pin for pin in (one.revision, *(source.sha256 for source in one.files)) if pin]

        return {
            "behaviour": self.words,
            "model": {"id": self.model.id, "licence": self.model.licence},
            "saes": {
                "release": _joined(g.release for g in self.sae_groups),
                "licence": _joined(g.licence for g in self.sae_groups),
            },
            "prompts": [
                {
                    "set": one.set,
                    "sources": sources(one),
                    "pins": pins(one),
                    "licence": one.licence,
                    "restricted": one.restricted,
                }
                for one in self.prompts
            ],
        }


def _joined(names: Iterable[str | None]) -> str | None:
    """The different names, if any."""
    return ", ".join(dict.fromkeys(name for name in names if name)) or None


def load_recipe(path_or_name: str | Path) -> Recipe:
    """The recipe in a .toml file, or the shipped recipe of that name.

    Raises UserError, which names file and field: no such file, TOML syntax (with the line), an unknown, missing or wrong field.
    """
    file = _recipe_file(path_or_name)
    try:
        content = tomllib.loads(read_text(file, "recipe"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"recipe {file} is not valid TOML: {error}") from error
    if not content:
        raise UserError(f"recipe {file} is empty: give at least name, [model], [saes] and one [[prompts]]")
    try:
        recipe = Recipe.model_validate(content, context={"folder": file.absolute().parent})
    except ValidationError as error:
        raise UserError(f"recipe {file}: {sentence(error, Recipe)}") from error
    recipe._file = file.absolute()
    return recipe


def _recipe_file(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if path.suffix == ".toml":
        if not is_there(path):
            raise UserError(
                f"there is no recipe file {short(path)}: give the path of a .toml file, or the name of a shipped recipe"
            )
        return path
    shipped = {file.stem: file for file in sorted(RECIPES.glob("*.toml"))}
    if str(path) not in shipped:
        hint = nearest(str(path), shipped)
        names = ", ".join(shipped) or "none"
        raise UserError(f"there is no recipe {path}{hint}: give a path that ends in .toml, or one of {names}")
    return shipped[str(path)]
