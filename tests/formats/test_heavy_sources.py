"""Sources that would fill the memory: one sentence, soon, and the lake as it was; what is packed within bounds is read."""

import gzip
import json
import random
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saelake.formats.registry import Asked
from saelake.formats.transfer import bring_in
from saelake.warehouse.errors import UserError
from tests.formats.samples import (
    HOOK,
    PLANTED_SAE,
    lake_with_weights,
)
from tests.lakes import tree
from tests.measured import measured

MOST_BYTES = 500_000_000
"""That an import may take, with its libraries' pages, which a fork maps anew; each of the sources here would take gigabytes."""


def members_by_the_hundred(folder: Path) -> Path:
    """Each is as large as a small member may be."""
    with zipfile.ZipFile(folder / "log.eval", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("header.json", json.dumps({"eval": {"model": "m"}}))
        said = {"choices": [{"message": {"role": "assistant", "content": "no"}}]}
        for number in range(400):
            archive.writestr(f"samples/{number}.json", json.dumps({"input": f"{number}{'x' * 1_000_000}", "output": said}))
    return folder / "log.eval"


def values_without_end(folder: Path) -> Path:
    """A member that unpacks within bounds, to millions of empty lists."""
    with zipfile.ZipFile(folder / "log.eval", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps({"eval": {"model": "m"}}))
        noise = random.Random(0).randbytes(100_000).hex().encode()
        archive.writestr("samples/1.json", b'{"' + noise + b'": [' + b"[]," * (12 * 2**20) + b"[]]}")
    return folder / "log.eval"


def lists_without_end(folder: Path) -> Path:
    (folder / "model.json").write_bytes(b'{"a": [' + b"[]," * (12 * 2**20) + b"[]]}")
    return folder / "model.json"


def rows_without_end(folder: Path) -> Path:
    with gzip.open(folder / "batch-0.jsonl.gz", "wb", 9) as file:
        for _ in range(100):
            file.write(b"1\n" * 2**21)
    return folder / "batch-0.jsonl.gz"


def long_lists(folder: Path) -> Path:
    values = pa.array(np.zeros(2**26, dtype=np.int8))
    lists = pa.ListArray.from_arrays(np.array([0, 2**25, 2**26], dtype=np.int32), values)
    pq.write_table(pa.table({"sae": ["sae0"] * 2, "feature": [1, 2], "positions": lists}), folder / "rows.parquet")
    return folder / "rows.parquet"


def lists_of_long_texts(folder: Path) -> Path:
    """One text of a megabyte, three thousand times in a list."""
    coded = pa.DictionaryArray.from_arrays(pa.array(np.zeros(3_000, dtype=np.int32)), pa.array(["x" * 2**20]))
    lists = pa.ListArray.from_arrays(pa.array([0, 3_000], pa.int32()), coded)
    table = pa.table({"prompt": lists, "completion": ["no"]})
    pq.write_table(table, folder / "rows.parquet", dictionary_pagesize_limit=2**30)
    return folder / "rows.parquet"


def dense_batch(n_rows: int, width: int, kind: type) -> pa.RecordBatch:
    lists: Any = pa.array(np.zeros(n_rows * width, dtype=np.float32))
    tokens: Any = pa.array(np.zeros(n_rows, dtype=np.int32))
    if kind is pa.FixedSizeListArray:
        lists = kind.from_arrays(kind.from_arrays(lists, width), 1)
        return pa.record_batch({HOOK: lists, "token_ids": kind.from_arrays(tokens, 1)})
    ones = np.arange(n_rows + 1, dtype=np.int32)
    lists = pa.ListArray.from_arrays(ones, pa.ListArray.from_arrays(ones * width, lists))
    return pa.record_batch({HOOK: lists, "token_ids": pa.ListArray.from_arrays(ones, tokens)})


def packed_stream(folder: Path, compression: str = "zstd", n_rows: int = 80, width: int = 2**20) -> Path:
    """Numbers that are all 0, packed ten thousandfold."""
    batch = dense_batch(n_rows, width, pa.FixedSizeListArray)
    (folder / "acts").mkdir()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with (
        pa.OSFile(str(folder / "acts" / "data-0.arrow"), "wb") as file,
        pa.ipc.new_stream(file, batch.schema, options=options) as s,
    ):
        s.write_batch(batch)
    return folder / "acts"


def packed_columns(folder: Path) -> Path:
    """The same as Parquet, in a column whose name has dots."""
    (folder / "acts").mkdir()
    pq.write_table(pa.Table.from_batches([dense_batch(64, 2**20, pa.ListArray)]), folder / "acts" / "rows.parquet")
    return folder / "acts"


def views(folder: Path) -> Path:
    """Very many lists that are all the same twenty thousand items."""
    n, items = 200_000, 20_000
    first, sizes = pa.array(np.zeros(n, dtype=np.int32)), pa.array(np.full(n, items, dtype=np.int32))
    dense = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(items * 32, dtype=np.float32)), 32)
    tokens = pa.array(np.zeros(items, dtype=np.int32))
    columns = {HOOK: dense, "token_ids": tokens}
    batch = pa.record_batch({name: pa.ListViewArray.from_arrays(first, sizes, one) for name, one in columns.items()})
    (folder / "acts").mkdir()
    with pa.OSFile(str(folder / "acts" / "data-0.arrow"), "wb") as file, pa.ipc.new_stream(file, batch.schema) as stream:
        stream.write_batch(batch)
    return folder / "acts"


def repeated_number(folder: Path) -> Path:
    import torch

    torch.save(torch.ones(1, dtype=torch.float16).expand(2**30), folder / "vector.pt")
    return folder / "vector.pt"


def packed_tensor(folder: Path) -> Path:
    """torch packs nothing, but reads what is packed."""
    import torch

    torch.save(torch.zeros(2**27), folder / "plain.pt")
    with zipfile.ZipFile(folder / "plain.pt") as plain, zipfile.ZipFile(folder / "v.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for one in plain.infolist():
            packed.writestr(one.filename, plain.read(one))
    (folder / "plain.pt").unlink()
    return folder / "v.pt"


WEIGHTS = {"weights": str(PLANTED_SAE)}
HEAVY: dict[str, tuple[str, Callable[[Path], Path], Mapping[str, Any], str]] = {
    "many members": ("inspect", members_by_the_hundred, {}, "unpack to 400,"),
    "a member of many values": ("inspect", values_without_end, {}, "it is not JSON"),
    "JSON of many values": ("harmbench", lists_without_end, {}, "values, and"),
    "very many rows": ("neuronpedia", rows_without_end, {}, "is not an object with named columns"),
    "long lists in Parquet": ("features", long_lists, {}, "its column positions.list.element unpacks to more than"),
    "lists of one long text": ("answers", lists_of_long_texts, {"condition": "x"}, "of its rows hold more than"),
    "a packed stream": ("saelens", packed_stream, WEIGHTS, "a compressed part of it says that it unpacks to 335,544,320"),
    "packed columns": ("saelens", packed_columns, WEIGHTS, "unpacks to more than 100 times its size"),
    "lists that overlap": ("saelens", views, WEIGHTS, "is not a list of"),
    "a number that repeats": ("direction", repeated_number, {"layer": 0}, "it has 1,073,741,824 numbers in"),
    "a tensor that is packed": ("direction", packed_tensor, {"layer": 0}, "say that they unpack to"),
}


@pytest.mark.parametrize("what", HEAVY)
def test_a_source_that_wants_to_fill_the_memory_is_one_sentence(what: str, tmp_path: Path) -> None:
    name, write, asked, why = HEAVY[what]
    (tmp_path / "source").mkdir()
    lake = lake_with_weights(tmp_path / "lake")
    before = tree(lake.root)
    said, _, n_bytes = measured(bring_in, lake.root, name, str(write(tmp_path / "source")), Asked(**asked))
    assert why in said
    assert "\n" not in said
    assert len(said) < 400
    assert n_bytes < MOST_BYTES
    assert tree(lake.root) == before


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_stream_that_is_compressed_within_bounds_is_read(compression: str, tmp_path: Path) -> None:
    lake = lake_with_weights(tmp_path / "lake")
    place = packed_stream(tmp_path, compression, n_rows=3, width=32)
    file = place / "data-0.arrow"
    batch = dense_batch(3, 32, pa.FixedSizeListArray)
    values = np.random.default_rng(0).normal(size=(3, 1, 32)).astype(np.float32)
    dense = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 32), 1)
    batch = batch.set_column(0, HOOK, dense)
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, batch.schema, options=options) as stream:
        stream.write_batch(batch)
    record = bring_in(lake.root, "saelens", str(place), Asked(weights=str(PLANTED_SAE)))
    assert {table.name: table.n_rows for table in record.tables}["tokens"] == 3


def test_a_compressed_stream_that_is_damaged_anywhere_is_one_sentence(tmp_path: Path) -> None:
    """Every byte of its messages may be another: what says how much is unpacked is read from them."""
    lake = lake_with_weights(tmp_path / "lake")
    file = packed_stream(tmp_path, n_rows=2, width=32) / "data-0.arrow"
    whole = file.read_bytes()
    rng = random.Random(0)
    before = tree(lake.root)
    for _ in range(60):
        at = rng.randrange(len(whole))
        file.write_bytes(whole[:at] + struct.pack("B", rng.randrange(256)) + whole[at + 1 :])
        with pytest.raises(UserError) as refused:  # if not for its damage: no such SAE reads the hook
            bring_in(lake.root, "saelens", str(file.parent), Asked(sae="sae0"))
        assert "\n" not in str(refused.value)
    assert tree(lake.root) == before
