"""Whether rows come in the order of their table, each one once."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class RowOrder:
    """Counts rows that are equal to their predecessor in `columns`, or should have come before it (nulls come last)."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._last: pa.RecordBatch | None = None
        self.n_repeated = 0
        self.n_misplaced = 0

    def update(self, batch: pa.RecordBatch) -> None:
        """Looks at the next rows."""
        if not batch.num_rows:
            return
        batch = batch.select(self._columns)
        if self._last is not None:
            self._count(pa.concat_batches([self._last, batch.slice(0, 1)]))
        self._count(batch)
        self._last = batch.slice(batch.num_rows - 1)

    def _count(self, batch: pa.RecordBatch) -> None:
        steps = np.zeros(batch.num_rows - 1, dtype=np.int8)
        for column in batch.columns:
            if steps.all():
                break
            steps = np.where(steps == 0, _steps(column), steps)
        self.n_repeated += int((steps == 0).sum())
        self.n_misplaced += int((steps == -1).sum())


def _steps(column: pa.Array) -> np.ndarray:
    """(n_rows - 1,) int8: 1 where a value is greater than the one before it, 0 where equal, -1 where less."""
    if column.null_count:
        missing = column.is_null().to_numpy(zero_copy_only=False).astype(np.int8)
        values = pc.fill_null(column, "" if pa.types.is_string(column.type) else 0)
        return np.where(np.diff(missing) != 0, np.diff(missing), _steps(values))
    if pa.types.is_string(column.type):
        later, earlier = column[1:], column[:-1]
        greater, less = (compare(later, earlier).to_numpy(zero_copy_only=False) for compare in (pc.greater, pc.less))
    else:
        values = column.to_numpy(zero_copy_only=False)
        greater, less = values[1:] > values[:-1], values[1:] < values[:-1]
    return greater.astype(np.int8) - less.astype(np.int8)
