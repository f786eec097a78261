"""What a study will need, before anything is downloaded: access, downloads, memory, rows and bytes, passes, hours.

    plan = make_plan(load_recipe("gemma-2-2b"))
    plan.problems, plan.lake.n_bytes

Everything that is an estimate says so. Where model, SAEs and prompts are here and small, or a GPU is, a sample is measured.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from saelake.ingest.access import Access, access_to
from saelake.ingest.model_shape import ModelShape, read_shape, weight_bytes
from saelake.ingest.plan.sizes import Download, SaeSize, downloads, sae_sizes
from saelake.ingest.plan.work import (
    TRAIN_SAES,
    Corpus,
    Group,
    StageWork,
    corpus,
    judge_work,
    mean_length,
    stage_work,
    tokenizer_is_here,
    training_work,
)
from saelake.ingest.recipe import Recipe
from saelake.warehouse.errors import UserError

if TYPE_CHECKING:
    from saelake.ingest.targets import Target

BYTES_PER_ROW = {"bfloat16": 2.4, "float32": 4.5}
"""Of `activations`, by the precision of what is stored; measured on synthetic data at the paper's sizes."""
FEATURE_BYTES, TOKEN_BYTES, PROMPT_BYTES = 25, 2, 40
"""Of a row of the other tables of an ingest run."""
UNDECLARED_L0 = 64.0
SMALL_MODEL = 1_000_000_000
"""Parameters up to which a sample is measured on a CPU."""
PASS_WIDTHS = 20
"""What a pass holds of one layer for a token, in widths of the residual stream, by rule of thumb."""
LIBRARIES = 600_000_000
"""Bytes that Python takes with torch, transformers and DuckDB, before there is a model."""
KEY_SHARE = 1 / 3
"""The width of keys in that of the residual stream, as a rule."""
# Four numbers of modules that need a GPU stack, or that ingest may not import: a test holds them equal.
SLICES = 4
"""Sets of a layer's rows that the engine keeps, each at most of as many as are candidates together."""
UNEMBEDDED = 1 << 15
"""Rows of the unembedding that are in float32 at a time."""
ENCODED = 4 << 26
"""Bytes of pre-activations that ingest holds at once."""
ANSWERED_TOKENS = 4096
"""Tokens of a batch of prompts that are answered on a CPU."""
PREFILL_SHARE, DECODE_SHARE = {"cuda": 0.5, "mps": 0.5, "cpu": 0.85}, {"cuda": 0.05, "mps": 0.1, "cpu": 0.55}
"""Share of the matrix-product rate that whole prompts, and single tokens of many answers at once, reach by rule of thumb."""
NARROW = {"cpu": 160}
"""Width of a model at which what is not a matrix product halves these shares: on one thread a model 128 wide reached 0.35 with
whole prompts, one 576 wide 0.67."""


@dataclass(frozen=True)
class Memory:
    """Something that is on the device."""

    what: str
    n_bytes: int


@dataclass(frozen=True)
class LakeSize:
    """What ingest will write."""

    n_tokens: int
    n_activations: int
    n_bytes: int
    known_by: str
    """sample (measured), declared L0, what train_saes aims at, or a guess at L0"""


@dataclass(frozen=True)
class StageTime:
    """One stage with its time on this machine."""

    work: StageWork
    hours: float
    most_hours: float | None = None
    """Where much is found, if that matters."""


@dataclass(frozen=True)
class StudyPlan:
    """The whole estimate."""

    recipe: str
    device: str
    device_bytes: int
    access: Access
    downloads: list[Download]
    memory: list[Memory]
    prompts: list[Group]
    tokens_known_by: str
    targets: "list[Target]"
    """The target tokens; none where the tokenizer is not here yet."""
    lake: LakeSize
    stages: list[StageTime]
    rate: float
    """Multiplications and additions a second in a large matrix product in the model's dtype, just measured."""
    problems: list[str]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"access": self.access._asdict()}


def make_plan(recipe: Recipe, *, measure: bool | None = None) -> StudyPlan:
    """The plan of a recipe on this machine.

    Args:
        measure: capture a sample to estimate rows and bytes; by default if everything is here and the model is small or on a GPU.
    Raises UserError for an unknown release or SAE, or a model whose size nothing says.
    """
    shape = read_shape(recipe.model)
    if shape is None:
        raise UserError(
            f"model: the size of {recipe.model.name} is not known here: "
            f"download its config.json first, for example with `hf download {recipe.model.id or 'ID'} config.json`"
        )
    access, saes, found = access_to(recipe.model), sae_sizes(recipe, shape), corpus(recipe)
    device, there = _device(recipe)
    is_here = bool(found.prompts) and access.state == "here" and all(one.file is not None for one in saes)
    if measure is None:
        measure = device != "cpu" or shape.n_parameters <= SMALL_MODEL
    needed, work = downloads(recipe, shape, saes), stage_work(recipe, found, shape)
    memory = memory_needs(recipe, shape, saes)
    classifier = next((one.n_bytes for one in needed if one.what == "classifier"), None)
    if classifier is not None:
        memory.append(Memory("classifier, where it judges", classifier))
    if device == "cpu" and shape.n_parameters <= SMALL_MODEL:
        memory.append(_peak(recipe, shape, saes, mean_length(found, [recipe.candidates.split])))
    n_threads = recipe.compute.threads
    rate = _rate(device, recipe.model.dtype, n_threads)
    encode_rate = rate if recipe.model.dtype == "float32" else _rate(device, "float32", n_threads)
    short = _shortage(recipe, shape, saes, there, device) or _no_room_for_classifier(recipe, memory[0], classifier, there, device)
    problems = [problem for problem in (access.problem, short) if problem]
    return StudyPlan(
        recipe=recipe.name,
        device=device,
        device_bytes=there,
        access=access,
        downloads=needed,
        memory=memory,
        prompts=found.groups,
        tokens_known_by=found.known_by,
        targets=_targets(recipe),
        lake=_lake(recipe, saes, found, measure=measure and is_here and not problems),
        stages=[
            _timed(one, recipe, shape, saes, found, (rate, encode_rate), device)
            for one in (*training_work(recipe, saes), *work, *judge_work(recipe, found, work))
        ],
        rate=rate,
        problems=problems,
    )


def _targets(recipe: Recipe) -> "list[Target]":
    from saelake.ingest.loading import read_targets

    return list(read_targets(recipe.model)) if tokenizer_is_here(recipe.model) else []


def memory_needs(recipe: Recipe, shape: ModelShape, saes: list[SaeSize]) -> list[Memory]:
    """What is on the device at once: model, the SAEs one by one or all, the residuals of a batch; and the least that suffices."""
    weight = weight_bytes(recipe.model.dtype)
    resid = recipe.capture.batch_tokens * shape.d_model * weight * len(saes)
    largest, model = max(one.n_bytes for one in saes), shape.n_parameters * weight
    rows = sum(min(SLICES * recipe.candidates.cap, one.width) * 8 * one.d_in for one in saes)
    a_pass = recipe.model.max_prompt_tokens * PASS_WIDTHS * shape.d_model * weight
    head = min(shape.d_vocab, UNEMBEDDED) * shape.d_model * 4
    batch = recipe.capture.batch_tokens * PASS_WIDTHS * shape.d_model * weight
    return [
        Memory("model", model),
        Memory("largest SAE (ingest streams them layer by layer)", largest),
        Memory("all SAEs, if they are kept", sum(one.n_bytes for one in saes)),
        Memory("residuals of a batch", resid),
        Memory("ingest needs, with one SAE after another", model + max(batch, ENCODED) + largest),
        Memory("ablation needs, with SAEs in main memory and the rows in use here", model + rows + a_pass + head),
    ]


def _peak(recipe: Recipe, shape: ModelShape, saes: list[SaeSize], length: float) -> Memory:
    """What a process that analyses takes of main memory: its libraries too, and the keys and values of a batch of answers."""
    weight, n_new = weight_bytes(recipe.model.dtype), recipe.generation.max_new_tokens
    n_rows = ANSWERED_TOKENS / length
    a_pass = ANSWERED_TOKENS * PASS_WIDTHS * shape.d_model * weight
    keys = n_rows * (length + n_new) * 2 * shape.n_layers * KEY_SHARE * shape.d_model * weight
    logits = n_rows * shape.d_vocab * 3 * 4
    weights = shape.n_parameters * weight + sum(one.n_bytes for one in saes)
    return Memory("analyze at its peak on this CPU, with its libraries", round(LIBRARIES + weights + a_pass + keys + logits))


def _shortage(recipe: Recipe, shape: ModelShape, saes: list[SaeSize], there: int, device: str) -> str | None:
    from saelake.ingest.preflight import shortage

    return shortage(shape, recipe.model.dtype, max(one.n_bytes for one in saes), there, device)


def _no_room_for_classifier(recipe: Recipe, model: Memory, classifier: int | None, there: int, device: str) -> str | None:
    """The sentence about an oracle that is in memory beside the model all the time, or None where both fit."""
    if recipe.verdicts.oracle != "harmbench" or classifier is None or model.n_bytes + classifier <= there:
        return None
    return (
        f"the model takes {model.n_bytes / 1e9:.1f} GB and the classifier {classifier / 1e9:.1f} GB beside it, but {device} has "
        f'{there / 1e9:.1f} GB free: ingest works, but for analyze set verdicts.oracle = "phrases" and leave harmbench out of '
        f"verdicts.judges; `saelake judge` can add it elsewhere"
    )


def _lake(recipe: Recipe, saes: list[SaeSize], found: Corpus, *, measure: bool) -> LakeSize:
    bytes_per_row = BYTES_PER_ROW["bfloat16" if recipe.capture.round == "bfloat16" else "float32"]
    rows_per_token = sum(one.declared_l0 or UNDECLARED_L0 for one in saes)
    known_by = "declared L0" if all(one.declared_l0 for one in saes) else f"a guess of L0 = {UNDECLARED_L0:g}"
    if any(one.to_be_trained for one in saes):
        known_by = "the L0 that train_saes aims at, first tokens apart"
    if measure:
        from saelake.ingest.plan.sample import measure as measured

        sample = measured(recipe, found.prompts, found.token_ids)
        rows_per_token, bytes_per_row = sample.rows_per_token, sample.bytes_per_row
        known_by = f"a sample of {sample.n_prompts} prompts"
    n_rows = round(found.n_tokens * rows_per_token)
    other = FEATURE_BYTES * sum(one.width for one in saes) + TOKEN_BYTES * found.n_tokens + PROMPT_BYTES * found.n_prompts
    return LakeSize(found.n_tokens, n_rows, round(n_rows * bytes_per_row) + other, known_by)


def _timed(
    work: StageWork,
    recipe: Recipe,
    shape: ModelShape,
    saes: list[SaeSize],
    found: Corpus,
    rates: tuple[float, float],
    device: str,
) -> StageTime:
    """Its time at the rates of products in the model's dtype, and in float32, which SAEs are encoded in."""
    rate, encode_rate = rates
    if work.stage == TRAIN_SAES:
        rate = encode_rate
    length = work.length or mean_length(found, [recipe.candidates.split] if work.stage != "ingest" else [])
    per_token = 2 * (work.n_parameters or shape.n_parameters - shape.d_vocab * shape.d_model) * work.share / rate
    if work.stage == "ingest":
        per_token += sum(2 * one.d_in * one.width for one in saes) / encode_rate

    # Another model that is run is a large one.
    wide = 1.0 if work.n_parameters else shape.d_model / (shape.d_model + NARROW.get(device, 0))

    def hours(passes: int, answers: int) -> float:
        prefill = (passes + answers) * length * per_token / (PREFILL_SHARE[device] * wide)
        decoded = answers * recipe.generation.max_new_tokens * 2 * shape.n_parameters
        return work.waits * (prefill + decoded / (rate * DECODE_SHARE[device] * wide)) / 3600

    return StageTime(work, hours(work.passes, work.answers), hours(*work.most) if work.most else None)


def _device(recipe: Recipe) -> tuple[str, int]:
    """The device that the recipe gets here, and its free memory."""
    from saelake.ingest.loading import resolve_device
    from saelake.ingest.saes.loader import free_bytes
    from saelake.warehouse.machine import host_bytes

    device = resolve_device(recipe.compute.device)
    return device.type, free_bytes(device) if device.type == "cuda" else host_bytes()


def _rate(device: str, dtype: str, n_threads: int | None) -> float:
    """Operations a second of a large matrix product, the best of a few.

    On a CPU of one thread by processor time, whoever else is at work, times the threads: more would wait for each other there.
    """
    import time

    import torch

    from saelake.ingest.torch_threads import torch_threads

    on_cpu, size = device == "cpu", 8192 if device == "cuda" else 768
    clock = time.process_time if on_cpu else time.perf_counter
    n_threads = (n_threads or torch.get_num_threads()) if on_cpu else 1
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    best = float("inf")
    with torch_threads(1):
        for _ in range(4):
            start = clock()
            (a @ a)[0, 0].item()
            best = min(best, clock() - start)
    return n_threads * 2 * size**3 / best
