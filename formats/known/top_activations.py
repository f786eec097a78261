"""Data sets of top activations, as the hub has them: one row per text, with the columns feature, activation, token and context.

`sae` (an sae_id, a name or a layer) says which SAE a row is about; without that column --sae does. The folder that is written is
a data set for `datasets.load_dataset`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from saelake.formats.examples import Example, example_rows, number, position, text_of
from saelake.formats.joined import Joined, as_name, feature_of, saes_of
from saelake.formats.registry import Asked, Format, Found
from saelake.formats.top_texts import Tops
from saelake.ingest.cells import as_text, is_missing
from saelake.ingest.rows import read_rows
from saelake.warehouse.errors import UserError

if TYPE_CHECKING:
    from saelake.lake import OpenLake

OWNER = "import top_activations"
COLUMNS = ("feature", "activation", "token", "context")
WRITTEN = pa.schema(
    [
        ("sae", pa.string()),
        ("layer", pa.int32()),
        ("feature", pa.int64()),
        ("rank", pa.int32()),
        ("activation", pa.float32()),
        ("token", pa.string()),
        ("position", pa.int32()),
        ("context", pa.string()),
    ]
)


def _read(files: Sequence[Path], joined: Joined, asked: Asked) -> Found:
    found: list[Example] = []
    for file in files:
        for place, row in enumerate(read_rows(file, OWNER, (*COLUMNS, "sae", "position")), start=1):
            where = f"{OWNER}: {file.name}, row {place}"
            if absent := [name for name in COLUMNS if name not in row]:
                raise UserError(f"{OWNER}: {file.name} has no column {absent[0]}: its columns are {', '.join(row)}")
            if asked.sae is not None and not is_missing(row.get("sae")):
                raise UserError(f"--sae says nothing about {file.name}, whose rows name their SAE: leave it out")
            told = asked.sae if is_missing(row.get("sae")) else as_text(row["sae"])
            sae = joined.sae(told, f"{OWNER}: {file.name}") if told == asked.sae else joined.named(str(told), where)
            feature_id = feature_of(sae, as_text(row["feature"]), where)
            token = None if row["token"] is None else text_of(row["token"], "token", where)
            pos = None if is_missing(row.get("position")) else position(row["position"], where)
            found.append(
                Example(sae, feature_id, number(row["activation"], where), text_of(row["context"], "context", where), token, pos)
            )
    saes = list(dict.fromkeys(one.sae for one in found))
    return Found(
        lambda _: [example_rows(found, {sae.sae_id: files[0].name for sae in saes})],
        joined.run_of(saes),
        {"n_features": len({one[:2] for one in found})},
    )


def _write(opened: "OpenLake", folder: Path, asked: Asked) -> Mapping[str, int]:
    written, tops = {}, Tops(opened)
    for sae in saes_of(opened, asked.sae):
        rows = [
            {
                "sae": sae.sae_id,
                "layer": sae.layer,
                "feature": top.feature_id,
                "rank": top.number,
                "activation": top.activation,
                "token": top.tokens[top.pos],
                "position": top.pos,
                "context": top.context,
            }
            for top in tops.of(sae)
        ]
        if rows:
            name = f"data/{as_name(sae.sae_id)}.parquet"
            (folder / "data").mkdir(exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows, WRITTEN), folder / name, compression="zstd")
            written[name] = len(rows)
    return written


FORMAT = Format(
    what="data sets of top activations, as on the hub: feature, activation, token, context",
    read=_read,
    write=_write,
    files=("*.parquet", "data/*.parquet", "*.jsonl", "*.csv"),
    reads=frozenset({"sae"}),
    writes=frozenset({"sae"}),
)
