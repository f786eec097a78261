"""The Croissant card of a shared set, croissant.json: every table as a record set, every column with its type and meaning.

    import mlcroissant

    mlcroissant.Dataset(jsonld="set/croissant.json").records("prompts")

Croissant is MLCommons' description of data sets for machines. Its files are those beside it: it holds wherever the set lies.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from saelake.warehouse.records import RunRecord
from saelake.warehouse.sharing.card import Part, licence_of, parts_of

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{
        name: f"cr:{name}"
        for name in (
            "column",
            "equivalentProperty",
            "extract",
            "field",
            "fileObject",
            "fileProperty",
            "fileSet",
            "format",
            "includes",
            "isLiveDataset",
            "jsonPath",
            "key",
            "md5",
            "parentField",
            "path",
            "recordSet",
            "references",
            "regex",
            "repeated",
            "replace",
            "samplingRate",
            "separator",
            "source",
            "subField",
            "transform",
            "citeAs",
        )
    },
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
}
TYPES = {"string": "sc:Text", "bool": "sc:Boolean", "float": "cr:Float32", "double": "cr:Float64"}
"""Arrow's types in Croissant's words; whole numbers are cr:Int16 and so on."""


def write_croissant(path: Path, records: Sequence[RunRecord]) -> None:
    """Writes the card of a set with these records."""
    parts = [part for part in parts_of(records) if part.n_rows]
    newest = max((record.finished for record in records), default="")
    content = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": "saelake-" + "-".join(sorted({record.recipe for record in records})),
        "description": "Activations of sparse autoencoders in a language model, and what was found in them, as tables.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "license": licence_of(records),
        "datePublished": _date(newest),
        "version": "1.0.0",
        "citeAs": "saelake",
        "distribution": [_files(part) for part in parts],
        "recordSet": [_record_set(part) for part in parts],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _date(finished: str) -> str:
    return datetime.fromisoformat(finished).date().isoformat() if finished else "1970-01-01"


def _files(part: Part) -> dict[str, Any]:
    name = part.table.name
    return {
        "@type": "cr:FileSet",
        "@id": f"{name}-files",
        "name": f"{name}-files",
        "description": f"The Parquet files of the table {name}.",
        "encodingFormat": "application/x-parquet",
        "includes": f"data/{name}/*.parquet",
    }


def _record_set(part: Part) -> dict[str, Any]:
    name = part.table.name
    fields = []
    for column in part.columns:
        is_list = pa.types.is_list(column.type)
        field = {
            "@type": "cr:Field",
            "@id": f"{name}/{column.name}",
            "name": f"{name}/{column.name}",
            "description": column.described,
            "dataType": _type(column.type.value_type if is_list else column.type),
            "source": {"fileSet": {"@id": f"{name}-files"}, "extract": {"column": column.name}},
        }
        fields.append(field | ({"repeated": True} if is_list else {}))
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "description": part.table.row, "field": fields}


def _type(kind: pa.DataType) -> str:
    return TYPES.get(str(kind)) or f"cr:{str(kind).capitalize()}"
