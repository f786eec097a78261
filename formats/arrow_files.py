"""Arrow streams and Parquet files that a stranger wrote, a part at a time, each checked before anything of it is used."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from saelake.warehouse.errors import UserError, first_line

END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""What a finished stream ends with: without it a file that was cut off between two parts would pass for a whole one."""
BATCH_ROWS = 256


def tables_of(file: Path, owner: str) -> Iterator[pa.Table]:
    """The rows of a file, part by part; raises UserError for one that is damaged."""
    try:
        if file.suffix == ".parquet":
            with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                for batch in parquet.iter_batches(BATCH_ROWS):
                    yield _checked(batch)
        else:
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
                for batch in stream:
                    yield _checked(batch)
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, EOFError, MemoryError) as error:
        raise UserError(f"{owner}: {file.name} cannot be read ({first_line(error)})") from error


def check_streams_whole(file: Path, owner: str) -> None:
    """Raises UserError for an Arrow stream that does not end as a finished one does."""
    if file.suffix == ".parquet":
        return
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - len(END)))
        if content.read() != END:
            raise UserError(f"{owner}: {file.name} is cut off: it does not end as a finished stream does")


def _checked(batch: pa.RecordBatch) -> pa.Table:
    batch.validate(full=True)
    return pa.Table.from_batches([batch])
