"""How much a study computes: prompts and their tokens, and the passes of every stage. No torch unless tokens can be counted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from saelake.ingest.model_shape import ModelShape, local_file
from saelake.ingest.plan.sizes import SaeSize
from saelake.ingest.plan.supposed import Supposed, much, searched_layers, usual
from saelake.ingest.prompts import Prompt, load_prompts
from saelake.ingest.recipe import Fractions, Recipe
from saelake.ingest.recipe.prompts import PromptSet
from saelake.ingest.recipe.sections import ModelSpec
from saelake.ingest.sources import is_here
from saelake.ingest.texts import read_texts

if TYPE_CHECKING:
    from saelake.ingest.template import ChatTemplate

USER_TOKENS = 20
"""Of a prompt that is not here: what requests in the usual sets have, by rule of thumb."""
TEMPLATE_TOKENS = 12
UNKNOWN_PROMPTS = 1_000
"""In a hub data set without an asserted count."""
CLASSIFIER_PARAMETERS, CLASSIFIER_TEMPLATE_TOKENS = 13_000_000_000, 150
"""Of the HarmBench classifier, and of the instruction around an answer, by rule of thumb."""
ANSWER_PASSES = 32
"""What a whole answer and its judging cost, in passes for one next token: thirty tokens, or the reading of a larger model."""
IN_TURN = 2.0
"""What an evaluation of a search costs beside one of many that are known at once: measured with one thread, both studies."""
TRAIN_SAES, TRAINING = "train-saes", 2.2
"""The command that comes before a study, where its SAEs are to be trained, and what a step costs beside its products (top K, the
optimiser), as it was measured with the eight SAEs of smollm2-refusal."""
IN_FULL = 3
"""Layers that direction.selection = "best" measures in full, for the estimate."""


@dataclass(frozen=True)
class Group:
    """Prompts of one set, split and label."""

    set: str
    split: str
    label: str
    n_prompts: int
    n_tokens: int


@dataclass(frozen=True)
class Corpus:
    """The study's prompts; with their texts and tokens, where everything to count them is here."""

    groups: list[Group]
    known_by: str
    """tokenizer, or estimate"""
    prompts: list[Prompt]
    token_ids: list[list[int]]
    text_tokens: float | None = None
    """Of the texts whose loss is measured, in the mean; None where they cannot be counted."""

    @property
    def n_prompts(self) -> int:
        return sum(group.n_prompts for group in self.groups)

    @property
    def n_tokens(self) -> int:
        return sum(group.n_tokens for group in self.groups)

    def count(self, split: str, label: str) -> int:
        """Prompts of a split with a label."""
        return sum(group.n_prompts for group in self.groups if (group.split, group.label) == (split, label))


def corpus(recipe: Recipe) -> Corpus:
    """The prompts, counted with the model's tokenizer where it and they are here, else by rules of thumb.

    Raises UserError for prompt sets that are here and wrong.
    """
    if all(is_here(spec) for spec in recipe.prompts) and tokenizer_is_here(recipe.model):
        return _counted(recipe)
    return Corpus([group for spec in recipe.prompts for group in _estimated(recipe, spec)], "estimate", [], [])


def tokenizer_is_here(model: ModelSpec) -> bool:
    return (model.gguf is not None and model.folder is not None) or local_file(model, "tokenizer.json") is not None


def _counted(recipe: Recipe) -> Corpus:
    from saelake.ingest.loading import load_tokenizer
    from saelake.ingest.template import ChatTemplate

    template = ChatTemplate.of(load_tokenizer(recipe.model), recipe.model)
    prompts = load_prompts(recipe, template.identities)
    token_ids = [one.token_ids for one in template.encode_all([prompt.asked for prompt in prompts])]
    groups: dict[tuple[str, str, str], list[int]] = {}
    for prompt, ids in zip(prompts, token_ids, strict=True):
        groups.setdefault((prompt.set, prompt.split, prompt.label), []).append(len(ids))
    return Corpus(
        [Group(*key, len(n), sum(n)) for key, n in groups.items()],
        "tokenizer",
        prompts,
        token_ids,
        _counted_texts(recipe, template),
    )


def _counted_texts(recipe: Recipe, template: "ChatTemplate") -> float | None:
    specs = recipe.losses.texts
    if not specs or not all(is_here(spec) for spec in specs):
        return None
    lengths = [len(text.token_ids) for spec in specs for text in read_texts(spec, template)]
    return sum(lengths) / len(lengths)


def _estimated(recipe: Recipe, spec: PromptSet) -> list[Group]:
    n_prompts = spec.count or spec.take or sum(source.count or 0 for source in spec.files) or UNKNOWN_PROMPTS
    if isinstance(spec.split, Fractions):
        shares = spec.split.shares
    else:
        shares = {spec.split if isinstance(spec.split, str) else recipe.candidates.split: 1.0}
    label = spec.label if isinstance(spec.label, str) else recipe.labels.target
    limit = recipe.prompts_per_group or n_prompts
    counts = {split: min(round(n_prompts * share), limit) for split, share in shares.items()}
    return [Group(spec.set, split, label, n, n * (USER_TOKENS + TEMPLATE_TOKENS)) for split, n in counts.items()]


@dataclass(frozen=True)
class StageWork:
    """What one stage asks of the model."""

    stage: str
    passes: int
    """Prompts through the model, for one next token each."""
    answers: int
    """Prompts through the model, with a whole answer generated after each."""
    share: float
    """Of the layers, how many a pass really computes: the part below the first edit is kept."""
    note: str = ""
    most: tuple[int, int] | None = None
    """Passes and answers where much is found: every pool at its cap, sets of LARGEST_SIZE. None where the work is the same."""
    waits: float = 1.0
    """What its work costs more for being asked bit by bit, so that fewer rows share a batch."""
    length: float | None = None
    """Tokens of a prompt, where they are not those of the prompts that are ablated on."""
    n_parameters: int | None = None
    """Of the model that is run, where it is not the subject; of what is trained, three times."""


def passes_a_prompt(recipe: Recipe) -> dict[str, float]:
    """Stage -> what it computes for one searched prompt where much is found, in passes for one next token."""
    groups = [Group("", recipe.candidates.split, label, 1, 1) for label in (recipe.labels.target, recipe.labels.control)]
    work = _stage_work(recipe, Corpus(groups, "estimate", [], []), max(recipe.sae_layers) + 1, much(recipe))
    return {one.stage: one.passes + ANSWER_PASSES * one.answers for one in work}


def stage_work(recipe: Recipe, found: Corpus, shape: ModelShape) -> list[StageWork]:
    """The work of every stage: what is to be expected, and where much is found."""
    expected = _stage_work(recipe, found, shape.n_layers, usual(recipe))
    if_much = _stage_work(recipe, found, shape.n_layers, much(recipe))
    return [
        one if (one.passes, one.answers) == (most.passes, most.answers) else replace(one, most=(most.passes, most.answers))
        for one, most in zip(expected, if_much, strict=True)
    ]


def _stage_work(recipe: Recipe, found: Corpus, n_layers: int, supposed: Supposed) -> list[StageWork]:
    candidates, greedy, controls = recipe.candidates, recipe.algorithm1, recipe.controls
    target, control = found.count(candidates.split, recipe.labels.target), found.count(candidates.split, recipe.labels.control)
    both = target + control
    above = (n_layers - min(searched_layers(recipe), default=0)) / n_layers
    n_ks, n_directions = candidates.cap // candidates.step, len(candidates.directions)
    asked = round(target * recipe.minimal.starts * supposed.evaluations)
    by_token = recipe.verdicts.oracle == "first_token"
    n_blocks = [supposed.n_pool // greedy.n_of(size, supposed.n_pool) for size in (greedy.block_size, *greedy.other_block_sizes)]
    # The sets of all thresholds are nested, and differ by whole blocks.
    n_sets = [min(len(greedy.taus), n + 1) for n in n_blocks]
    n_found = (2 + n_sets[0]) * target * controls.random_draws
    n_controls = both * controls.random_draws * n_ks + n_found + both * len(controls.firing_on_tokens)
    n_controls += control * n_directions * len(controls.clamp_values)
    return [
        StageWork("ingest", found.n_prompts, 0, (max(recipe.sae_layers) + 1) / n_layers, "and every SAE on every token"),
        _direction_work(recipe, found, n_layers),
        StageWork("baseline", 0, 2 * both, 1.0),
        StageWork(
            "candidates",
            0,
            both * n_ks * (n_directions + candidates.attribution),
            above,
            f"K = {candidates.step} .. {candidates.cap}",
        ),
        StageWork(
            "algorithm1",
            target * greedy.seeds * sum(n + 1 for n in n_blocks),
            sum(n_sets) * (greedy.seeds + 1) * (2 * target + control),
            above,
            f"pools of {supposed.n_pool:,}; the loop as published: {_published(recipe, target):,} passes",
        ),
        StageWork(
            "minimal",
            asked if by_token else 0,
            recipe.minimal.starts * both + (0 if by_token else asked),
            above,
            f"sets of {supposed.size} of {supposed.n_pool:,}",
            waits=IN_TURN,
        ),
        StageWork("controls", 0, n_controls, above),
        *_interaction_work(recipe, found, n_layers, supposed),
    ]


def _published(recipe: Recipe, target: int) -> int:
    """Passes of Algorithm 1 as the paper has it: two a block, every threshold and seed by itself, pools at the cap."""
    greedy, n_pool = recipe.algorithm1, recipe.candidates.cap * len(searched_layers(recipe))
    sizes = (greedy.block_size, *greedy.other_block_sizes)
    n_blocks = sum(n_pool // greedy.n_of(size, n_pool) for size in sizes)
    return 2 * n_blocks * len(greedy.taus) * greedy.seeds * target


def _direction_work(recipe: Recipe, found: Corpus, n_layers: int) -> StageWork:
    """The choice of a layer: of all of them in full, or by first tokens and of some in full."""
    direction = recipe.direction
    target, control = (found.count(direction.select_split, label) for label in (recipe.labels.target, recipe.labels.control))
    train = found.count(direction.split, recipe.labels.target) + found.count(direction.split, recipe.labels.control)
    if direction.selection == "all":
        n_open, n_full, note = 0, n_layers, f"{n_layers} layers tried"
    else:
        n_open = round(n_layers * (1 - direction.drop_last_layers))
        n_full = min(IN_FULL, n_layers)
        note = f"first tokens of {n_open} layers, if {n_full} are tried in full"
    passes = train + n_open * target + (1 + n_full) * control
    return StageWork("direction", passes, target + n_full * (target + control), 1.0, note)


def training_work(recipe: Recipe, saes: Sequence[SaeSize]) -> list[StageWork]:
    """The steps of the SAEs that are to be trained: two products forwards, four backwards."""
    training, missing = recipe.train_saes, [one for one in saes if one.to_be_trained]
    if not missing:
        return []
    n_weights = 2 * training.width * missing[0].d_in
    return [
        StageWork(
            TRAIN_SAES,
            len(missing) * training.steps,
            0,
            1.0,
            f"steps, of {len(missing)} SAEs",
            waits=TRAINING,
            length=training.batch_tokens,
            n_parameters=3 * n_weights,
        )
    ]


def judge_work(recipe: Recipe, found: Corpus, work: Sequence[StageWork]) -> list[StageWork]:
    """What the HarmBench classifier reads, if it judges: every answer of every stage, once."""
    if "harmbench" not in recipe.verdicts.judges:
        return []
    length = CLASSIFIER_TEMPLATE_TOKENS + mean_length(found, [recipe.candidates.split]) + recipe.generation.max_new_tokens
    n_answers = sum(one.answers for one in work)
    n_most = sum(one.answers if one.most is None else one.most[1] for one in work)
    most = None if n_most == n_answers else (n_most, 0)
    return [
        StageWork("harmbench", n_answers, 0, 1.0, "the classifier reads every answer", most, 1.0, length, CLASSIFIER_PARAMETERS)
    ]


def _interaction_work(recipe: Recipe, found: Corpus, n_layers: int, supposed: Supposed) -> list[StageWork]:
    """The stages after the search that run the model. They start from minimal sets."""
    split, starts, size = recipe.candidates.split, recipe.minimal.starts, supposed.size
    target, control = found.count(split, recipe.labels.target), found.count(split, recipe.labels.control)
    diagnosed = found.count(recipe.diagnostic.split, recipe.labels.target) + found.count(
        recipe.diagnostic.split, recipe.labels.control
    )
    above, above_all = ((n_layers - min(layers, default=0)) / n_layers for layers in (searched_layers(recipe), recipe.sae_layers))
    note = f"sets of {size}"
    woken = size * (1 + supposed.matched) + starts + supposed.matched
    backed = size * (1 + 2 * supposed.waking) + 3 * starts
    steered = min(control, recipe.steering.prompts or control)
    n_texts = sum(spec.take for spec in recipe.losses.texts)
    text_tokens = _text_tokens(recipe) if found.text_tokens is None else found.text_tokens
    n_ks, draws = len(recipe.stage3.ks), recipe.stage3.random_draws
    return [
        StageWork("layer_diagnostic", diagnosed, 0, 1.0),
        StageWork("inert", 0, 2 * starts * target, above, "each minimal set in two parts"),
        StageWork("readouts", (1 + 2 * (size + starts)) * target, 0, above, note),
        StageWork("waking", 2 * woken * target, 0, above, note),
        StageWork("backups", 0, round(backed * target), above, note),
        StageWork("steering", 0, 2 * (len(recipe.steering.values) + len(recipe.steering.levels)) * steered, above),
        StageWork("losses", (2 + recipe.losses.sets) * n_texts, 0, 1.0, f"texts of {text_tokens:.0f} tokens", length=text_tokens),
        StageWork("fm, probe", 0, 0, 1.0, "trained on the lake, without the model: not estimated"),
        StageWork("stage3", n_ks * target, 2 * n_ks * (2 + draws) * target + 2 * n_ks * control, above_all),
        StageWork(
            "stage3_probe",
            0,
            4 * len(recipe.probe.ks) * (2 * target + control),
            above_all,
            "probe, signed probe, alignment, gradient",
        ),
    ]


def _text_tokens(recipe: Recipe) -> float:
    """The most that the texts whose loss is measured may have, in the mean."""
    specs = recipe.losses.texts
    return sum(spec.take * spec.max_tokens for spec in specs) / max(sum(spec.take for spec in specs), 1)


def mean_length(found: Corpus, splits: Sequence[str]) -> float:
    """Mean tokens of the prompts of some splits, or of all where none is in these."""
    groups = [group for group in found.groups if group.split in splits] or found.groups
    return sum(group.n_tokens for group in groups) / max(sum(group.n_prompts for group in groups), 1)
