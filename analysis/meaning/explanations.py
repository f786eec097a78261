"""Explanations of a study's features as a run: from Neuronpedia, or from a file of one's own (R20).

They are keyed by the exact SAE. Where none is public for an SAE, its features stay without, and the lake's own top samples say
what they fire on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from saelake import queries
from saelake.analysis.meaning.neuronpedia import Client, Explanation, batches, of_batch, of_feature
from saelake.ingest.cells import as_text, is_missing
from saelake.ingest.inputs import hash_input
from saelake.ingest.recipe import Recipe
from saelake.ingest.rows import read_rows
from saelake.ingest.runs import ACTIVATIONS, OLDER
from saelake.ingest.saes.labels import Directory, read_directory
from saelake.warehouse.catalog import connect
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.literals import as_id, is_unicode
from saelake.warehouse.progress import Quiet
from saelake.warehouse.records import RunRecord, RunSpec
from saelake.warehouse.runs import Plan, Rows, ensure_run
from saelake.warehouse.schema import EXPLANATIONS

CODE_VERSION = 1
STAGE = "explanations"
API = "neuronpedia"
BULK = "neuronpedia-bulk"
SHARD_FEATURES = 50
"""Features that are asked for and landed together: what a stopped job asks for again at most."""
OWN_COLUMNS = ("sae_id", "feature_id", "description")
MORE_COLUMNS = ("method", "explainer")


@dataclass(frozen=True)
class KnownSae:
    """An SAE of the study, as its lake has it."""

    sae_id: str
    name: str
    layer: int
    width: int


@dataclass(frozen=True)
class Labelled:
    """An SAE that a Neuronpedia source describes."""

    sae: KnownSae
    source: str


def explain(
    recipe: Recipe,
    lake: Lake,
    source: str | Path,
    *,
    force: bool = False,
    progress: Quiet | None = None,
    client: Client | None = None,
) -> RunRecord:
    """The run with the explanations of a study that is in the lake: found, resumed or fetched.

    Args:
        source: "neuronpedia" (its API, for the features of the recipe's populations), "neuronpedia-bulk" (its bulk files, all
            features), or a .csv, .jsonl, .json or .parquet file with the columns sae_id, feature_id and description.
    Raises UserError where no source describes the study's exact SAEs, for answers about other features, and for a server that
    does not answer; what came until then is kept.
    """
    ingested = runs_of_saes(lake, recipe.name)
    with connect(lake, recipe.name) as con:
        saes = [
            KnownSae(*row) for row in con.execute("select sae_id, name, layer, width from saes order by layer, sae_id").fetchall()
        ]
        if source not in (API, BULK):
            return _ensure_own(recipe, lake, ingested, Path(source), saes, force, progress)
        directory = read_directory()
        labelled = labelled_saes(recipe, saes, directory)
        client = client or Client(recipe.explanations.requests_per_second)
        config = {"code": CODE_VERSION, "from": source, "sources": {one.sae.sae_id: one.source for one in labelled}}
        if source == BULK:
            spec = RunSpec(STAGE, recipe.name, config | {"url": recipe.explanations.bulk_url}, ingested)
            plan = _bulk_plan(labelled, recipe.explanations.bulk_url, client)
        else:
            populations = recipe.explanations.populations
            config |= {"url": recipe.explanations.base_url, "populations": list(populations)}
            parents = (*ingested, *current_runs(lake, recipe.name, "populations"))
            spec = RunSpec(STAGE, recipe.name, config, parents)
            plan = _api_plan(labelled, _asked(con, populations), recipe.explanations.base_url, directory, client)
    return ensure_run(lake, spec, plan, force=force, progress=progress)


def labelled_saes(recipe: Recipe, saes: Sequence[KnownSae], directory: Directory) -> list[Labelled]:
    """The SAEs that a source describes exactly, by the recipe or SAELens' directory; raises UserError if there are none."""
    named = recipe.explanations.sources
    if unknown := sorted(set(named) - {sae.layer for sae in saes}):
        raise UserError(f"explanations.sources names layer {unknown[0]}, but the study has no SAE there")
    labelled = []
    for sae in saes:
        source = named.get(sae.layer) or directory.source(sae.name)
        if source is None:
            continue
        if "/" not in source:
            raise UserError(f"explanations.sources: {source} is not a source: write it as model/source")
        directory.check(source, sae.name)
        labelled.append(Labelled(sae, source))
    if not labelled:
        raise UserError(
            f"no public explanations are known for the SAEs of {recipe.name} (such as {saes[0].name}): give a file of your own, "
            "or name sources in [explanations]; labels of other SAEs of the same layers would be wrong"
        )
    return labelled


def current_runs(lake: Lake, recipe: str, stage: str) -> tuple[str, ...]:
    """The current runs of a study's stage; raises UserError if it has none."""
    run_ids = lake.current().get((recipe, stage))
    if run_ids is None:
        raise UserError(f"the lake {lake} has no {stage} of {recipe} yet: `saelake analyze` with its recipe first")
    return run_ids


def runs_of_saes(lake: Lake, recipe: str) -> tuple[str, ...]:
    """Current runs that say which SAEs a study has, one of each: further prompt sets change nothing about them.

    Raises UserError if it has none.
    """
    older = lake.current().get((recipe, OLDER), ())
    if older and (recipe, ACTIVATIONS) not in lake.current():
        return older
    records = [record for run_id in current_runs(lake, recipe, ACTIVATIONS) if (record := lake.record(run_id))]
    first = {record.config["sae"]["sae_id"]: record.run_id for record in reversed(records)}
    return (*older, *sorted(first.values()))


def _asked(con: duckdb.DuckDBPyConnection, populations: Sequence[str]) -> Mapping[str, list[int]]:
    """sae_id -> the features of some populations."""
    return dict(con.execute(queries.step("population_features"), {"populations": list(populations)}).fetchall())


def _api_plan(
    labelled: Sequence[Labelled], asked: Mapping[str, list[int]], base_url: str, directory: Directory, client: Client
) -> Plan:
    shards = {
        f"sae-{number:03d}-{start:06d}": (one, features[start : start + SHARD_FEATURES])
        for number, one in enumerate(labelled)
        for features in [asked.get(one.sae.sae_id, [])]
        for start in range(0, len(features), SHARD_FEATURES)
    }
    if not shards:
        layers = ", ".join(str(one.sae.layer) for one in labelled)
        raise UserError(f"no feature of explanations.populations is in a layer with public labels ({layers})")

    def compute(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        for name in missing:
            one, features = shards[name]
            place = directory.place(one.sae.name)
            found = [e for f in features for e in of_feature(client, base_url, one.source, f, place, directory)]
            yield name, [explanation_rows(one.sae, found, f"Neuronpedia {one.source}")]

    return Plan(list(shards), compute, [EXPLANATIONS.name], f"shards of {SHARD_FEATURES} features")


def _bulk_plan(labelled: Sequence[Labelled], bulk_url: str, client: Client) -> Plan:
    shards = {f"sae-{number:03d}": one for number, one in enumerate(labelled)}

    def compute(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        for name in missing:
            one = shards[name]
            # A batch is not a range of features: explanations of one feature can stand in several.
            found = [e for key in batches(client, bulk_url, one.source) for e in of_batch(client, bulk_url, one.source, key)]
            yield name, [explanation_rows(one.sae, found, f"Neuronpedia {one.source}")]

    return Plan(list(shards), compute, [EXPLANATIONS.name], "SAEs")


def _ensure_own(
    recipe: Recipe,
    lake: Lake,
    ingested: tuple[str, ...],
    file: Path,
    saes: Sequence[KnownSae],
    force: bool,
    progress: Quiet | None,
) -> RunRecord:
    """The run of a file of one's own, which is read and checked before anything is written."""
    by_sae = read_own(file, saes)
    sha256 = hash_input(file, "explanations")
    spec = RunSpec(STAGE, recipe.name, {"code": CODE_VERSION, "from": "file", "sha256": sha256}, ingested)
    rows = [explanation_rows(sae, found, f"{file.name}@sha256:{sha256[:12]}") for sae, found in by_sae.items()]
    return ensure_run(lake, spec, Plan.of(rows, [EXPLANATIONS.name]), force=force, progress=progress)


def read_own(file: Path, saes: Sequence[KnownSae]) -> dict[KnownSae, list[Explanation]]:
    """The explanations in a file of one's own; raises UserError, which names the row that is wrong."""
    owner = "explanations"
    known = {key: sae for sae in saes for key in (sae.sae_id, sae.name)}
    found: dict[KnownSae, list[Explanation]] = {}
    for number, row in enumerate(read_rows(file, owner, (*OWN_COLUMNS, *MORE_COLUMNS)), start=1):
        if absent := [name for name in OWN_COLUMNS if name not in row]:
            raise UserError(
                f"{owner}: {file.name} has no column {absent[0]}: it needs {', '.join(OWN_COLUMNS)} (sae_id as in the table "
                "saes: a layer alone could mean another SAE), and may have method and explainer"
            )
        where = f"{owner}: {file.name}, row {number}"
        sae = known.get(str(row["sae_id"]))
        if sae is None:
            raise UserError(f"{where}: the study has no SAE {row['sae_id']!r}; it has {', '.join(s.sae_id for s in saes)}")
        index = as_text(row["feature_id"])
        feature_id = as_id(index)
        if feature_id is None or feature_id >= sae.width:
            raise UserError(f"{where}: {index[:40]!r} is not a feature of {sae.sae_id}, whose features are 0 to {sae.width - 1}")
        description = row["description"]
        if not isinstance(description, str) or is_missing(description):
            raise UserError(f"{where}: its description is not text")
        more = [None if is_missing(row.get(name)) else as_text(row[name]) for name in MORE_COLUMNS]
        if not all(is_unicode(text) for text in (description, *more) if text is not None):
            raise UserError(f"{where}: it holds half of a character, which is not Unicode text")
        found.setdefault(sae, []).append(Explanation(feature_id, description, *more))
    if not found:
        raise UserError(f"{owner}: {file.name} has no rows")
    return found


def explanation_rows(sae: KnownSae, found: Sequence[Explanation], source: str) -> Rows:
    """Rows of one SAE; raises UserError for a feature that it does not have."""
    counts: dict[int, int] = {}
    numbers = []
    for one in found:
        if one.feature_id >= sae.width:
            raise UserError(f"{source}: feature {one.feature_id} is past the width of {sae.name}, {sae.width}: it is another SAE")
        numbers.append(counts.get(one.feature_id, 0))
        counts[one.feature_id] = numbers[-1] + 1
    columns = {
        "sae_id": [sae.sae_id] * len(found),
        "layer": [sae.layer] * len(found),
        "feature_id": [one.feature_id for one in found],
        "number": numbers,
        "description": [one.description for one in found],
        "method": [one.method for one in found],
        "explainer": [one.explainer for one in found],
        "source": [source] * len(found),
    }
    return Rows.of(EXPLANATIONS, columns)
