"""The copy of the activations that lies prompt by prompt, of runs that were computed without it: a run of its own for each.

Whether the recipe asks for the copy determines no content, so it is not part of the identity of what it is a copy of, and nothing
is captured again.
"""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow.parquet as pq

from saelake.warehouse.files import DataFile, file_layer
from saelake.warehouse.lake import Lake
from saelake.warehouse.landing import with_others
from saelake.warehouse.progress import Quiet
from saelake.warehouse.records import RunRecord, RunSpec
from saelake.warehouse.runs import Plan, Rows, ensure_runs, whole_run
from saelake.warehouse.schema import ACTIVATIONS, ACTIVATIONS_BY_PROMPT

STAGE = "prompt_major"
CODE_VERSION = 1


def copy_spec(recipe: str, of: RunRecord) -> RunSpec | None:
    """Identity of the copy's run; None if the run has no activations, or holds the copy itself."""
    tables = {table.name for table in of.tables}
    if ACTIVATIONS.name not in tables or ACTIVATIONS_BY_PROMPT.name in tables:
        return None
    return RunSpec(STAGE, recipe, {"code": CODE_VERSION}, (of.run_id,))


def copy_by_prompt(
    recipe: str, records: Sequence[RunRecord], lake: Lake, *, asked: bool, progress: Quiet | None = None
) -> list[RunRecord]:
    """The published copies: found, resumed or written; those that are there already, if they are not asked for."""
    found = [(spec, one) for one in records if (spec := copy_spec(recipe, one))]
    if not asked:
        return [copy for spec, _ in found if (copy := whole_run(lake, spec.run_id))]
    files = {
        spec.run_id: {f"layer-{file_layer(f.path):02d}": f for f in one.files if f.table == ACTIVATIONS.name}
        for spec, one in found
    }

    def compute(missing: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, list[Rows]]]:
        for run_id, shards in missing.items():
            for shard in shards:
                yield run_id, shard, [_activations(lake, files[run_id][shard])]

    planned = [(spec, Plan(list(files[spec.run_id]), with_others, (ACTIVATIONS_BY_PROMPT.name,))) for spec, _ in found]
    return ensure_runs(lake, planned, compute, what=STAGE, progress=progress)


def _activations(lake: Lake, file: DataFile) -> Rows:
    names = [c.name for c in ACTIVATIONS.stored() if c.name != "run_id"]
    with lake.published.local(file.path) as path, pq.ParquetFile(path, page_checksum_verification=True) as parquet:
        held = [name for name in names if name in parquet.schema_arrow.names]
        return Rows.of(ACTIVATIONS, parquet.read(held), file_layer(file.path))
