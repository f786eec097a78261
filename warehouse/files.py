"""The files of a run: their names, and how a run record lists them."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class DataFile:
    """A published file as its run record lists it: `path` relative to the lake, and what it must still hold."""

    table: str
    path: str
    n_rows: int
    n_bytes: int
    sha256: str

    def below(self, folder: str) -> "DataFile":
        """The file of a run's folder as a file of the lake, where that folder is `folder`."""
        return replace(self, path=f"{folder}/{self.path}")


def file_name(table: str, layer: int | None) -> str:
    """Where a table's rows lie in the folder of a shard or of a published run."""
    return f"{table}/{table}.parquet" if layer is None else f"{table}/layer-{layer:02d}.parquet"


def file_layer(path: str) -> int:
    """The layer whose rows a file holds, of a table that lies by layer: the inverse of `file_name`."""
    return int(path.rpartition("/")[2].removesuffix(".parquet").removeprefix("layer-"))
