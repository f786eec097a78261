"""Where rows lie in a set's Parquet files, so that a page asks for their bytes without reading footers first.

A footer lists every column of every row group, in hundreds of kilobytes for a large file. What a page needs of it is little: of
each row group its number of rows, the range of the id by which it is looked up, and where its columns lie.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq


class Lookup(NamedTuple):
    """How a page finds rows of a table, and what it reads of them."""

    key: str
    """The column whose range in each row group is told."""
    columns: tuple[str, ...]


LOOKUPS = {
    "activations": Lookup("feature_id", ("sae_id", "feature_id", "prompt_id", "pos", "activation")),
    "feature_logits": Lookup("feature_id", ("sae_id", "feature_id", "promotes", "rank", "token", "logit")),
    "tokens": Lookup("prompt_id", ("prompt_id", "pos", "token", "role")),
}


def file_index(
    folder: Path, path: str, key: str | None, columns: Sequence[str] = (), sae_id: str | None = None
) -> dict[str, Any]:
    """What a page knows of one Parquet file of a set before it reads from it.

    Args:
        path: below the folder.
        key: the column whose range is told; its file must be sorted by it, or hold its statistics.
        columns: those that are read, of all that the file has; all by default.
        sae_id: row groups that hold nothing of this SAE are left out.
    Returns path; columns as [name, physical type, is text, may be null], from the first to the last that is read; and row groups
    as [rows, lowest key, highest key, first byte, bytes of each column]: columns follow each other. Keys past 2^53 are texts.
    """
    with pq.ParquetFile(folder / path) as parquet:
        metadata, schema = parquet.metadata, parquet.schema
    names = [schema.column(i).path for i in range(len(schema))]
    wanted = [names.index(name) for name in columns or names]
    read = range(min(wanted), max(wanted) + 1)
    groups = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if sae_id is not None and not _may_hold(group.column(names.index("sae_id")), sae_id):
            continue
        chunks = [group.column(i) for i in read]
        first = _first_byte(chunks[0])
        sizes = [chunk.total_compressed_size for chunk in chunks]
        assert [_first_byte(chunk) for chunk in chunks] == [first + sum(sizes[:i]) for i in range(len(sizes))], path
        groups.append([group.num_rows, *_range(group, names, key), first, *sizes])
    told = [
        [c.path, c.physical_type, str(c.logical_type) == "String", c.max_definition_level > 0]
        for c in (schema.column(i) for i in read)
    ]
    return {"path": path, "columns": told, "groups": groups}


def _first_byte(chunk: pq.ColumnChunkMetaData) -> int:
    return int(chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset)


def _may_hold(chunk: pq.ColumnChunkMetaData, value: str) -> bool:
    found = chunk.statistics
    return found is None or not found.has_min_max or bool(found.min <= value <= found.max)


def _range(group: pq.RowGroupMetaData, names: Sequence[str], key: str | None) -> list[Any]:
    if key is None:
        return [None, None]
    found = group.column(names.index(key)).statistics
    if found is None or not found.has_min_max:  # a file may have been written without: then any row may be there
        return [None, None]
    return [str(value) if abs(value) >= 2**53 else value for value in (found.min, found.max)]
