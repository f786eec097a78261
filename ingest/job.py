"""The ingest job: prompts through the model and its SAEs into a lake, shard by shard; only what the lake does not hold yet."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from saelake.ingest.pieces import PROMPTS_SHARD, SAE_SHARD, Piece, pieces
from saelake.ingest.prompt_major import STAGE as COPY
from saelake.ingest.prompt_major import copy_by_prompt
from saelake.ingest.recipe import Recipe
from saelake.ingest.runs import STAGES, Ingested, SetRuns, ingest_runs
from saelake.ingest.study import Study, open_study
from saelake.warehouse.lake import Lake
from saelake.warehouse.landing import with_others
from saelake.warehouse.progress import Quiet
from saelake.warehouse.runs import JointCompute, Plan, Planned, Rows, ensure_runs, make_current, published
from saelake.warehouse.sharing.marks import restrict, restricted_sets
from saelake.warehouse.statistics import FeatureStatistics

if TYPE_CHECKING:
    from saelake.ingest.loaded import Loaded
    from saelake.ingest.shards import ShardMaker

STATISTICS_READ = {"prompts": ["prompt_id", "label"], "tokens": ["prompt_id", "role"]}
"""The columns that the statistics of activations need of their prompts."""
Item = TypeVar("Item")
ReadTable = Callable[[str], pa.Table]


def ingest(recipe: Recipe, lake: Lake, *, force: bool = False, progress: Quiet | None = None) -> Ingested:
    """The published runs of a recipe's prompts and activations: found, resumed or computed.

    Raises UserError for anything wrong with recipe, model, SAEs or prompts, before a forward pass is spent on it, with two
    exceptions: that an SAE is far less or far more active than declared is seen on the first prompts, and damage to an SAE that
    does not fit on the device beside the others is seen only when it is loaded.
    """
    return ingest_study(open_study(recipe), lake, force=force, progress=progress)


def ingest_study(
    study: Study,
    lake: Lake,
    *,
    force: bool = False,
    progress: Quiet | None = None,
    compute: JointCompute | None = None,
    loaded: "Loaded | None" = None,
) -> Ingested:
    """`ingest` for a study that is opened already.

    Args:
        compute: makes the shards outside this process.
        loaded: the subject and SAEs, to be shared with what follows in this process.
    """
    sets, name = ingest_runs(study, lake), study.recipe.name
    planned = plans(study, lake, sets)
    ensure_runs(lake, planned, compute or computed_here(study, sets, loaded), what="ingest", force=force, progress=progress)
    _keep_marks(lake, sets, progress or Quiet())
    found = Ingested(tuple(published(lake, run_id) for run_id in dict.fromkeys(i for one in sets for i in one.run_ids)))
    copies = copy_by_prompt(name, found.records, lake, asked=study.recipe.capture.prompt_major, progress=progress)
    current = {stage: [record for record in found.records if record.stage == stage] for stage in STAGES}
    make_current(lake, name, current | {COPY: copies})
    return found


def _keep_marks(lake: Lake, sets: Sequence[SetRuns], progress: Quiet) -> None:
    """Records in the lake which sets are restricted, even where their runs were published before the recipe said so."""
    marked = restricted_sets(one.prompts.about for one in sets)
    restrict(lake, {one.name: one.prompts.run_id for one in sets if one.name in marked})
    for one in sets:
        if one.name not in marked and one.name in restricted_sets([published(lake, one.prompts.run_id).about]):
            progress.say(
                f"prompt set {one.name} stays restricted, as a recipe marked it before: its text is shared only if its run "
                f"{one.prompts.run_id} is dropped and computed again"
            )


def plans(study: Study, lake: Lake, sets: Sequence[SetRuns]) -> list[Planned]:
    """How each run is computed, parents first; runs that an older version published are not computed again."""
    tables = ("saes", "features", "activations", *(("activations_by_prompt",) if study.recipe.capture.prompt_major else ()))
    found: list[Planned] = []
    for one in sets:
        if one.prompts.known_as is None:
            has_chats = any(study.prompts[i].messages for i in one.prompt_numbers)
            kept = ("prompts", "tokens", *(("messages",) if has_chats else ()))
            found.append((one.prompts, Plan([PROMPTS_SHARD], with_others, kept)))
        shards = [*one.shards(study.recipe.capture.shard_prompts), SAE_SHARD]
        of_prompts = cache(partial(_of_prompts, study, lake, one))
        for spec in one.activations.values():
            if spec.known_as is None:
                summary = partial(_statistics, of_prompts)
                found.append((spec, Plan(shards, with_others, tables, summary=summary)))
    return found


def _statistics(of_prompts: ReadTable, landed: ReadTable) -> FeatureStatistics:
    return FeatureStatistics(lambda table: of_prompts(table) if table in STATISTICS_READ else landed(table))


def _of_prompts(study: Study, lake: Lake, one: SetRuns, table: str) -> pa.Table:
    """What the statistics need of the published prompts of a set."""
    parts = []
    for file in (f for f in published(lake, one.prompts.run_id).files if f.table == table):
        with lake.published.local(file.path) as path:
            parts.append(pq.read_table(path, columns=STATISTICS_READ[table]))
    rows = pa.concat_tables(parts)
    last = one.first_id + len(one.prompt_numbers) - 1
    rows = rows.filter(pc.and_(pc.greater_equal(rows["prompt_id"], one.first_id), pc.less_equal(rows["prompt_id"], last)))
    if table != "prompts":
        return rows
    roles = [study.recipe.labels.role(label) for label in rows["label"].to_pylist()]  # version 1 did not write them
    return rows.append_column("label_role", pa.array(roles, pa.string()))


def computed_here(study: Study, sets: Sequence[SetRuns], loaded: "Loaded | None" = None) -> JointCompute:
    """Computes shards in this process; the subject and the SAEs that are needed are loaded for the first of them."""

    def compute(missing: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, list[Rows]]]:
        # torch is imported when there is work for it, so that finding finished runs stays quick.
        from saelake.ingest.shards import ShardMaker

        asked = list(pieces(study, sets, missing))
        yield from shards_of(asked, ShardMaker(study, sets, [piece for piece, _ in asked], loaded))

    return compute


def shards_of(asked: Sequence[tuple[Piece, list[str]]], maker: "ShardMaker") -> Iterator[tuple[str, str, list[Rows]]]:
    """run_id, shard and rows of what is to be computed, one piece at a time: while one is written, the next is computed."""
    for (piece, run_ids), parts in zip(asked, one_ahead(maker.rows([piece for piece, _ in asked])), strict=True):
        for run_id, rows in zip(run_ids, parts, strict=True):
            yield run_id, piece.shard, rows


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; while one is written, a thread computes the next."""
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = worker.submit(next, items, None)
            yield item
