"""Lists of features: Neuronpedia's JSON, layer:feature as text, and rows that say at which value and where each is held.

A list becomes one set of the table `feature_sets`; what `saelake ablate --features` takes is written out the same way.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelake.analysis.meaning.explanations import KnownSae
from saelake.formats.joined import Joined, feature_of, saes_of
from saelake.formats.models import model_of
from saelake.formats.registry import Asked, Format, Found
from saelake.formats.sources import Sources, sources_of
from saelake.ingest.cells import as_text
from saelake.ingest.inputs import read_text
from saelake.ingest.rows import Row, read_rows, rows_suffix
from saelake.queries import QueryError
from saelake.queries.features import LISTED
from saelake.warehouse.errors import UserError
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import FEATURE_SETS

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from saelake.analysis.search.edit_sets import EditSet
    from saelake.lake import OpenLake

OWNER = "import features"
NEURONPEDIA = ("modelId", "layer", "index")


def _read(files: Sequence[Path], joined: Joined, asked: Asked) -> Found:
    (file,) = files
    try:
        edits, saes = _edits(joined.tables, _listed(file, joined, asked), joined.saes)
    except QueryError as error:
        raise UserError(f"{OWNER}: {file.name}: {error}") from error
    numbers = [int(n) for n in edits.rows["sae"]]
    columns: dict[str, Any] = {
        "set_id": [edits.key] * len(edits),
        "sae_id": [saes[n].sae_id for n in numbers],
        "layer": [saes[n].layer for n in numbers],
        "feature_id": edits.rows["feature_id"],
        "value": edits.rows["value"],
        "positions": edits.places,
    }
    used = [sae for sae in joined.saes if sae.sae_id in columns["sae_id"]]
    return Found(lambda _: [Rows.of(FEATURE_SETS, columns)], joined.run_of(used))


def _listed(file: Path, joined: Joined, asked: Asked) -> str:
    """The list as `saelake ablate --features` takes it."""
    if rows_suffix(file.name) is None:
        parts = read_text(file, OWNER).replace(",", " ").split()
        said = None if asked.sae is None else joined.named(asked.sae, "--sae").sae_id
        if said is not None and all(":" in part for part in parts):
            raise UserError(f"--sae says nothing about {file.name}, whose features name their SAEs: leave it out")
        text = ",".join(part if ":" in part or said is None else f"{said}:{part}" for part in parts)
        if wrong := next((part for part in text.split(",") if not _is_feature(part)), None):
            raise UserError(f"{OWNER}: {file.name} holds {wrong[:60]!r}, which is not of the form LAYER:FEATURE")
        return text
    rows = read_rows(file, OWNER)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{OWNER}: {file.name} has no rows")
    if not {"modelId", "index"} <= first.keys():
        if asked.sae is not None:
            raise UserError(f"--sae says nothing about {file.name}, whose rows name their SAEs: leave it out")
        return str(file)
    return ",".join(_neuronpedia(chain([first], rows), file, joined, asked))


def _is_feature(part: str) -> bool:
    return LISTED.fullmatch(part) is not None


def _neuronpedia(rows: "chain[Row]", file: Path, joined: Joined, asked: Asked) -> list[str]:
    found, sources = [], Sources(joined, asked)
    for number, row in enumerate(rows, start=1):
        where = f"{OWNER}: {file.name}, row {number}"
        if absent := [name for name in NEURONPEDIA if row.get(name) is None]:
            raise UserError(f"{where}: it has no {absent[0]}")
        sae = sources.sae(str(row["modelId"]), str(row["layer"]), where)
        found.append(f"{sae.sae_id}:{feature_of(sae, as_text(row['index']), where)}")
    return found


def _edits(con: "DuckDBPyConnection", features: str, saes: Sequence[KnownSae]) -> "tuple[EditSet, Mapping[int, KnownSae]]":
    """What is listed, with the SAEs by the numbers that it holds."""
    from saelake.analysis.search.edit_sets import listed_edits
    from saelake.ingest.saes.refs import SaeRef, numbered

    refs = [SaeRef(sae.sae_id, sae.name, sae.layer, "", None, None, None, None) for sae in saes]
    known = numbered(refs)
    by_id = {sae.sae_id: sae for sae in saes}
    return listed_edits(con, known, features), {n: by_id[ref.sae_id] for n, ref in known.items()}


def _write(opened: "OpenLake", folder: Path, asked: Asked) -> Mapping[str, int]:
    if asked.features is None:
        raise UserError("say which features: --features LAYER:ID,..., a file of rows, or a select")
    edits, saes = _edits(opened.connection, asked.features, saes_of(opened))
    model = model_of(opened)
    held = [
        (saes[int(n)], int(i), float(value), place)
        for (n, i, value), place in zip(edits.rows[["sae", "feature_id", "value"]].tolist(), edits.places, strict=True)
    ]
    sources = sources_of(dict.fromkeys(sae for sae, *_ in held), model)
    listed: list[dict[str, Any]] = [
        {"modelId": sources[sae.sae_id][0], "layer": sources[sae.sae_id][1], "index": str(i)} for sae, i, *_ in held
    ]
    (folder / "features.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    alone = [sae.layer for sae in saes.values()]
    names = [f"{sae.layer if alone.count(sae.layer) == 1 else sae.sae_id}:{i}" for sae, i, *_ in held]
    (folder / "features.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    with (folder / "features.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["sae", "feature", "value", "positions"])
        table.writerows([sae.sae_id, i, f"{value:.9g}", place or ""] for sae, i, value, place in held)
    return dict.fromkeys(("features.json", "features.txt", "features.csv"), len(held))


FORMAT = Format(
    what="lists of features: Neuronpedia's [{modelId, layer, index}], layer:feature as text, rows with value and positions",
    read=_read,
    write=_write,
    reads=frozenset({"sae", "model"}),
    writes=frozenset({"features"}),
)
