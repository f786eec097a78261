"""How much a study computes: prompts and their tokens, and the passes of every stage. No torch unless tokens can be counted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from saelake.ingest.model_shape import ModelShape, local_file
from saelake.ingest.prompts import Prompt, load_prompts
from saelake.ingest.recipe import Fractions, Recipe
from saelake.ingest.recipe.prompts import PromptSet
from saelake.ingest.recipe.sections import ModelSpec
from saelake.ingest.sources import is_here

USER_TOKENS = 20
"""Of a prompt that is not here: what requests in the usual sets have, by rule of thumb."""
TEMPLATE_TOKENS = 12
UNKNOWN_PROMPTS = 1_000
"""In a hub data set without an asserted count."""
CLASSIFIER_PARAMETERS, CLASSIFIER_TEMPLATE_TOKENS = 13_000_000_000, 150
"""Of the HarmBench classifier, and of the instruction around an answer, by rule of thumb."""
ANSWER_PASSES = 32
"""What a whole answer and its judging cost, in passes for one next token: thirty tokens, or the reading of a larger model."""
IN_FULL = 3
"""Layers that direction.selection = "best" measures in full, for the estimate."""
MINIMAL_SIZE = 16
"""Features of a minimal set, for the estimate of what its search asks for."""


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
    return Corpus([Group(*key, len(n), sum(n)) for key, n in groups.items()], "tokenizer", prompts, token_ids)


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
    length: float | None = None
    """Tokens of a prompt, where they are not those of the prompts that are ablated on."""
    n_parameters: int | None = None
    """Of the model that is run, where it is not the subject."""


def passes_a_prompt(recipe: Recipe) -> dict[str, float]:
    """Stage -> what it computes for one searched prompt at most, in passes for one next token."""
    groups = [Group("", recipe.candidates.split, label, 1, 1) for label in (recipe.labels.target, recipe.labels.control)]
    work = _stage_work(recipe, Corpus(groups, "estimate", [], []), max(recipe.sae_layers) + 1)
    return {one.stage: one.passes + ANSWER_PASSES * one.answers for one in work}


def stage_work(recipe: Recipe, found: Corpus, shape: ModelShape) -> list[StageWork]:
    """The passes of every stage; upper bounds where they depend on what is found."""
    return _stage_work(recipe, found, shape.n_layers)


def _stage_work(recipe: Recipe, found: Corpus, n_layers: int) -> list[StageWork]:
    direction, candidates, greedy = recipe.direction, recipe.candidates, recipe.algorithm1
    target, control = found.count(candidates.split, recipe.labels.target), found.count(candidates.split, recipe.labels.control)
    both = target + control
    select_target = found.count(direction.select_split, recipe.labels.target)
    select_control = found.count(direction.select_split, recipe.labels.control)
    train = found.count(direction.split, recipe.labels.target) + found.count(direction.split, recipe.labels.control)
    searched = sorted(set(recipe.sae_layers) - set(candidates.exclude_layers))
    above = (n_layers - min(searched, default=0)) / n_layers
    n_ks, n_pool = candidates.cap // candidates.step, candidates.cap * len(searched)
    sizes = (greedy.block_size, *greedy.other_block_sizes)
    n_blocks = sum(n_pool // greedy.n_of(size, n_pool) for size in sizes)
    n_directions, n_taus = len(candidates.directions), len(greedy.taus)
    trials = 2 * MINIMAL_SIZE * math.log2(max(n_pool / MINIMAL_SIZE, 2)) + MINIMAL_SIZE
    asked = round(target * recipe.minimal.starts * trials)
    by_token = recipe.verdicts.oracle == "first_token"
    controls = recipe.controls
    n_found = (2 + n_taus) * target * controls.random_draws
    n_controls = both * controls.random_draws * n_ks + n_found + both * len(controls.firing_on_tokens)
    n_controls += control * n_directions * len(controls.clamp_values)
    published = 2 * n_blocks * n_taus * greedy.seeds * target
    return [
        StageWork("ingest", found.n_prompts, 0, (max(recipe.sae_layers) + 1) / n_layers, "and every SAE on every token"),
        _direction_work(recipe, train, select_target, select_control, n_layers),
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
            target * greedy.seeds * (n_blocks + 1),
            n_taus * (greedy.seeds + 1) * (2 * target + control),
            above,
            f"at most, every pool at its cap; the loop as published: {published:,} passes",
        ),
        StageWork(
            "minimal",
            asked if by_token else 0,
            recipe.minimal.starts * both + (0 if by_token else asked),
            above,
            f"if a minimal set has {MINIMAL_SIZE} features",
        ),
        StageWork("controls", 0, n_controls, above, "at most, if Algorithm 1 finds a set at every threshold"),
        *_interaction_work(recipe, found, above),
    ]


def _direction_work(recipe: Recipe, train: int, target: int, control: int, n_layers: int) -> StageWork:
    """The choice of a layer: of all of them in full, or by first tokens and of some in full."""
    direction = recipe.direction
    if direction.selection == "all":
        n_open, n_full, note = 0, n_layers, f"{n_layers} layers tried"
    else:
        n_open = round(n_layers * (1 - direction.drop_last_layers))
        n_full = min(IN_FULL, n_layers)
        note = f"first tokens of {n_open} layers, if {n_full} are tried in full"
    passes = train + n_open * target + (1 + n_full) * control
    return StageWork("direction", passes, target + n_full * (target + control), 1.0, note)


def judge_work(recipe: Recipe, found: Corpus, work: Sequence[StageWork]) -> list[StageWork]:
    """What the HarmBench classifier reads, if it judges: every answer of every stage, once."""
    if "harmbench" not in recipe.verdicts.judges:
        return []
    length = CLASSIFIER_TEMPLATE_TOKENS + mean_length(found, [recipe.candidates.split]) + recipe.generation.max_new_tokens
    n_answers = sum(one.answers for one in work)
    return [StageWork("harmbench", n_answers, 0, 1.0, "the classifier reads every answer", length, CLASSIFIER_PARAMETERS)]


def _interaction_work(recipe: Recipe, found: Corpus, above: float) -> list[StageWork]:
    """The stages after the search that run the model. They start from minimal sets, whose sizes nobody knows before."""
    split, starts = recipe.candidates.split, recipe.minimal.starts
    target, control = found.count(split, recipe.labels.target), found.count(split, recipe.labels.control)
    diagnosed = found.count(recipe.diagnostic.split, recipe.labels.target) + found.count(
        recipe.diagnostic.split, recipe.labels.control
    )
    supposed = f"if a minimal set has {MINIMAL_SIZE} features"
    woken = MINIMAL_SIZE * (1 + recipe.waking.controls) + starts + recipe.waking.controls
    steered = min(control, recipe.steering.prompts or control)
    texts = sum(spec.take for spec in recipe.losses.texts)
    text_tokens = sum(spec.take * spec.max_tokens for spec in recipe.losses.texts) / max(texts, 1)
    n_ks, draws = len(recipe.stage3.ks), recipe.stage3.random_draws
    return [
        StageWork("layer_diagnostic", diagnosed, 0, 1.0),
        StageWork("inert", 0, 2 * starts * target, above, "each minimal set in two parts"),
        StageWork("readouts", (1 + 2 * (MINIMAL_SIZE + starts)) * target, 0, above, supposed),
        StageWork("waking", 2 * woken * target, 0, above, supposed),
        StageWork("backups", 0, 3 * (MINIMAL_SIZE + starts) * target, above, f"at most, {supposed}"),
        StageWork("steering", 0, 2 * (len(recipe.steering.values) + len(recipe.steering.levels)) * steered, above),
        StageWork("losses", (2 + recipe.losses.sets) * texts, 0, 1.0, f"texts of at most {text_tokens:.0f} tokens", text_tokens),
        StageWork("fm, probe", 0, 0, 1.0, "trained on the lake, without the model: not estimated"),
        StageWork("stage3", n_ks * target, 2 * n_ks * (2 + draws) * target + 2 * n_ks * control, 1.0),
        StageWork(
            "stage3_probe", 0, 4 * len(recipe.probe.ks) * (2 * target + control), 1.0, "probe, signed probe, alignment, gradient"
        ),
    ]


def mean_length(found: Corpus, splits: Sequence[str]) -> float:
    """Mean tokens of the prompts of some splits, or of all where none is in these."""
    groups = [group for group in found.groups if group.split in splits] or found.groups
    return sum(group.n_tokens for group in groups) / max(sum(group.n_prompts for group in groups), 1)
