"""Backends side by side: readings of the same texts by several libraries as rows, and the first place where two of them diverge.

    print(*saelake.compare(subject, {"bridge": bridge}, ["how to steal a violin", "hello"]), sep="\\n")

The recipe path (`saelake compare`) stores the same rows as runs, one per backend; the question `backends` is asked of both.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import torch

from saelake import queries
from saelake.analysis.stage import Stage, Work, searched_split, single_shard
from saelake.analysis.stage_list import specs
from saelake.analysis.study_context import StudyContext
from saelake.analysis.verbs import ensure_stage
from saelake.ingest.backends.backend import LOG_PROBS, Backend, Place, Read, depth, site_of, sketch
from saelake.ingest.backends.opening import REFERENCE, identity_of, open_backend, wrapped
from saelake.ingest.backends.ours import Transformers
from saelake.ingest.job import ingest_study
from saelake.ingest.study import Study
from saelake.ingest.subject import Subject
from saelake.warehouse import arguments
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.progress import Quiet
from saelake.warehouse.records import RunRecord
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import READINGS

N_PROMPTS = 8
"""Prompts of a study that are compared, from the shortest to the longest."""


class Parting(NamedTuple):
    """Where a backend diverges from the reference; of one that does not, how near it comes."""

    backend: str
    parts: bool
    """Whether it diverges: past what rounding explains, or in its token ids."""
    layer: int | None
    """None: it does not diverge, or does so in its token ids."""
    site: str | None
    """A kind of site, log_probs, or token ids."""
    prompt: int | None
    pos: int | None
    token_id: int | None
    reference_token_id: int | None
    difference: float | None
    """Distance of the two vectors, as a share of the reference's length."""
    floor: float | None
    """What rounding explains there."""
    n_parted: int
    """Readings that diverge, of n_compared."""
    n_compared: int
    """Readings, one at each place and position."""

    def __str__(self) -> str:
        if not self.parts:
            return f"{self.backend} reads what transformers reads, up to rounding, at {self.n_compared:,} places and positions"
        at = f"position {self.pos} of prompt {self.prompt}"
        if self.layer is None:
            theirs, ours = ("nothing" if one is None else f"token {one}" for one in (self.token_id, self.reference_token_id))
            return f"{self.backend} diverges from transformers in its token ids, at {at}: {theirs} in place of {ours}"
        where = "the log-probabilities" if self.site == LOG_PROBS else site_of((self.layer, str(self.site))).hook
        return (
            f"{self.backend} diverges from transformers at {where}, {at}: by {self.difference:.2g} of the length there, "
            f"where rounding explains {self.floor:.1g}"
        )


def compare(subject: Subject, backends: Mapping[str, Any], texts: Sequence[str]) -> list[Parting]:
    """Reads texts with a subject and with other libraries, and says of each of these where it first diverges.

    Texts go through the template of each library's own tokenizer, unless the subject was given another than its tokenizer's.

    Args:
        backends: name -> a HookedTransformer or TransformerBridge, an nnsight model, a vllm.LLM, another Subject, or an object
            with read(texts, places), as `ingest.backends.backend.Backend` describes it.
    Raises UserError for what is not a text or not a backend.
    """
    if not isinstance(subject, Subject):
        raise UserError(f"a {type(subject).__name__} is not a Subject: give saelake.Subject(model, tokenizer)")
    given = [arguments.text(f"prompt {n}", one) for n, one in enumerate(arguments.listed("texts", texts, "a list of texts"))]
    named = arguments.mapping("backends", backends, "{name: model}")
    if not given or not named:
        raise UserError(f"there is nothing to compare: {'texts' if not given else 'backends'} is empty")
    if REFERENCE in named:
        raise UserError(f"the backend {REFERENCE} is the subject: give yours another name")
    reference = Transformers(subject)
    compared: dict[str, Backend] = {REFERENCE: reference}
    compared |= {name: wrapped(arguments.text("a backend's name", name), one, subject) for name, one in named.items()}
    with arguments.without_recipe():
        tables = [readings(name, one, reference, given, range(len(given))) for name, one in compared.items()]
    with duckdb.connect() as con:
        con.register("readings", pa.concat_tables(pa.table(one, READINGS.schema.remove(0)) for one in tables))
        return partings(queries.run(con, "backends"))


def partings(found: duckdb.DuckDBPyRelation) -> list[Parting]:
    """The rows of the question `backends`."""
    return [Parting(*row) for row in found.fetchall()]


def readings(
    name: str, backend: Backend, reference: Transformers, texts: Sequence[str], prompt_ids: Sequence[int]
) -> dict[str, list[Any]]:
    """What the backend of a name reads of some texts, as columns of `readings`; of the reference with its noise."""
    places = reference.places()
    read = backend.read(texts, places)
    noise = _noise(reference, read, texts, places) if isinstance(backend, Transformers) else {}
    columns: dict[str, list[Any]] = {name: [] for name in READINGS.schema.names if name != "run_id"}
    for place in sorted(read.values, key=depth):
        for number, values_td in enumerate(read.values[place]):
            ids, norms = read.token_ids[number], values_td.float().norm(dim=-1).tolist()
            assert len(ids) == len(norms), f"{name} reads {len(norms)} tokens of {len(ids)}"
            columns["backend"] += [name] * len(ids)
            columns["prompt_id"] += [prompt_ids[number]] * len(ids)
            columns["layer"] += [place[0]] * len(ids)
            columns["site"] += [place[1]] * len(ids)
            columns["pos"] += range(len(ids))
            columns["token_id"] += ids
            columns["norm"] += [norm if np.isfinite(norm) else None for norm in norms]
            columns["sketch"] += sketch(values_td).tolist()
            columns["noise"] += noise[place][number] if noise else [None] * len(ids)
    return columns


def _noise(
    reference: Transformers, read: Read, texts: Sequence[str], places: Sequence[Place]
) -> Mapping[Place, list[list[float]]]:
    """place -> of each text's positions, the farthest that two sound passes lie apart, of the vector's length.

    One step of the model's dtype at least, which no value is known better than.
    """
    step = torch.finfo(reference.subject.dtype).eps
    passes = [read, *reference.noisy(texts, places)]
    found: dict[Place, list[list[float]]] = {}
    for place in places:
        found[place] = []
        for number in range(len(texts)):
            x_ptd = [one.values[place][number].float() for one in passes]
            length_t = x_ptd[0].norm(dim=-1).clamp_min(np.finfo(np.float32).tiny)
            apart_t = [(a - b).norm(dim=-1) / length_t for a, b in combinations(x_ptd, 2)]
            found[place].append(torch.stack(apart_t).amax(0).clamp_min(step).tolist())
    return found


def compared_prompts(study: Study, n: int = N_PROMPTS) -> list[int]:
    """Prompts of the analysis, by their numbers: of lengths from the shortest to the longest, evenly. Chats are left out, which
    each library would template in its own way."""
    prompts = sorted(study.prompts_of(study.recipe.candidates.split), key=lambda i: (len(study.prompts[i].text), i))
    prompts = [i for i in prompts if study.prompts[i].messages is None]
    if not prompts:
        raise UserError(
            f"candidates.split: no prompt but chats is in the split {study.recipe.candidates.split}, so there is none to read"
        )
    places = np.unique(np.linspace(0, len(prompts) - 1, min(n, len(prompts))).round().astype(int))
    return sorted(prompts[place] for place in places)


def compare_study(
    study: Study, lake: Lake, names: Sequence[str], n_prompts: int, *, force: bool = False, progress: Quiet | None = None
) -> list[RunRecord]:
    """Readings of the reference and of the named backends, each as a run; ingests if needed.

    Raises UserError for a backend that there is not, or that cannot be loaded.
    """
    compared_prompts(study, n_prompts)
    context, model = StudyContext(study, lake), study.recipe.model
    ingest_study(study, lake, progress=progress, loaded=context.loaded)
    asked = [
        stage(name, partial(open_backend, name, model), identity_of(name, model), n_prompts)
        for name in dict.fromkeys((REFERENCE, *names))
    ]
    known = specs(study, asked, lake)
    return [ensure_stage(one, known, context, force=force, progress=progress) for one in asked]


Opened = Callable[[Subject], Backend]


def stage(name: str, opened: Opened, identity: Mapping[str, Any], n_prompts: int) -> Stage:
    """The stage of one backend's readings."""
    return Stage(
        name=f"readings_{name}",
        parents=("prompts",),
        splits=searched_split,
        sections=(),
        tables=("readings",),
        shards=single_shard,
        compute=partial(_compute, name, opened, n_prompts),
        identity=lambda study: {"backend": name, "n_prompts": n_prompts, "split": study.recipe.candidates.split, **identity},
    )


def _compute(
    backend: str, opened: Opened, n_prompts: int, work: Work, missing: Sequence[str]
) -> Iterator[tuple[str, list[Rows]]]:
    context = work.context
    prompts = compared_prompts(context.study, n_prompts)
    texts = [context.study.prompts[i].text for i in prompts]
    subject, prompt_ids = context.subject, context.prompt_ids[prompts].tolist()
    found = readings(backend, opened(subject), Transformers(subject), texts, prompt_ids)
    for name in missing:
        yield name, [Rows.of(READINGS, found)]
