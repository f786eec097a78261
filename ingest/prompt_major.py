"""The copy of the activations that lies prompt by prompt, of an ingest run that was computed without it: a run of its own.

Whether the recipe asks for the copy determines no content, so it is no part of the ingest run's identity, and nothing is captured
again.
"""

from collections.abc import Iterator, Sequence

import pyarrow.parquet as pq

from saelake.warehouse.files import DataFile, file_layer
from saelake.warehouse.progress import Quiet
from saelake.warehouse.records import Lake, RunRecord, RunSpec
from saelake.warehouse.runs import Plan, Rows, ensure_run
from saelake.warehouse.schema import ACTIVATIONS, ACTIVATIONS_BY_PROMPT

STAGE = "prompt_major"
CODE_VERSION = 1


def copy_spec(recipe: str, ingest: RunRecord) -> RunSpec | None:
    """Identity of the copy's run; None if the ingest run holds the copy itself."""
    if any(table.name == ACTIVATIONS_BY_PROMPT.name for table in ingest.tables):
        return None
    return RunSpec(STAGE, recipe, {"code": CODE_VERSION}, (ingest.run_id,))


def copy_by_prompt(recipe: str, ingest: RunRecord, lake: Lake, progress: Quiet | None = None) -> RunRecord | None:
    """The published copy: found, resumed or written; None if the ingest run holds it itself."""
    spec = copy_spec(recipe, ingest)
    if spec is None:
        return None
    files = {f"layer-{file_layer(f.path):02d}": f for f in ingest.files if f.table == ACTIVATIONS.name}

    def compute(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        for shard in missing:
            yield shard, [_activations(lake, files[shard])]

    return ensure_run(lake, spec, Plan(list(files), compute, (ACTIVATIONS_BY_PROMPT.name,)), progress=progress)


def _activations(lake: Lake, file: DataFile) -> Rows:
    names = [c.name for c in ACTIVATIONS.stored() if c.name != "run_id"]
    with lake.published.local(file.path) as path, pq.ParquetFile(path, page_checksum_verification=True) as parquet:
        held = [name for name in names if name in parquet.schema_arrow.names]
        return Rows.of(ACTIVATIONS, parquet.read(held), file_layer(file.path))
