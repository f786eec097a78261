"""What a table of the protocol is made of, and the columns that many tables share."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

DELTA, BYTE_STREAM, PLAIN = "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT", "PLAIN"
"""Encodings of sorted ids, of measured values, and of a number that is the same in all rows of a file, which is
written twice as fast as with a dictionary. DuckDB reads byte streams of floats only: `pos` takes a dictionary, 2% more bytes."""
MADE_ELSEWHERE = "made elsewhere: not measured here"
"""Why a value of imported rows is missing."""
ABOVE_0 = 2.0**-149
"""The smallest float32 above 0."""
SCHEMA_VERSION = 2
"""What runs are written with. Runs of every older version are read; what is newer is refused."""


@dataclass(frozen=True)
class Limit:
    """What holds between a value and the row that another column of its own row points to."""

    by: str
    """That other column."""
    fact: str
    """The column of the row that is pointed to; the value must be below what it holds."""
    otherwise: str
    """What is said of a value that is not."""
    is_equal: bool = False
    """The value must be equal to that, instead of below it."""


@dataclass(frozen=True)
class Column:
    """One column: its name, Arrow type and meaning (with the unit); `null` says what a missing value means."""

    name: str
    type: pa.DataType
    meaning: str
    null: str | None = None
    null_since: int = 1
    """The schema's version from which on it may be missing."""
    refers: str | None = None
    """TABLE.COLUMN: the row that it points to; in that table itself, what its rows are known by."""
    limit: Limit | None = None
    """What holds between it and what its row points to."""
    at_least: float | None = None
    at_most: float | None = None
    choices: tuple[str, ...] = ()
    """All that a text may be; anything if none are given."""
    encoding: str | None = None
    """How its values lie in Parquet, if not by a dictionary."""
    is_repeated: bool = False
    """Few texts come again and again: the writer gets an Arrow dictionary, which it writes faster; the file is the same."""
    is_ranged: bool = True
    """Row groups can be skipped by its range, which is written; not where a file has one value, or each row group nearly all."""
    is_private: bool = False
    """It holds what models answered, even to target prompts: only their owner can read the table's files."""
    since: int = 1
    """The schema's version from which on files hold it."""
    until: int | None = None
    """The last version whose files hold it; the views show it all the same."""
    over_runs: str | None = None
    """SQL for its value over the rows of several runs, where the table is `summed`; by default the smallest."""
    elsewhere: str | None = None
    """What it reads as where the file does not hold it: SQL over the columns that the file has. Null if that is not said."""

    @property
    def table(self) -> str | None:
        """The table that it points to."""
        return self.refers.partition(".")[0] if self.refers else None

    @property
    def identity(self) -> str:
        """The id that it holds."""
        return self.refers.partition(".")[2] if self.refers else self.name

    @property
    def described(self) -> str:
        """What it holds, in a line: its meaning, what a missing value means, and all that a text may be."""
        parts = [
            self.meaning,
            f"null: {self.null}" if self.null else "",
            f"one of {', '.join(self.choices)}" if self.choices else "",
        ]
        return "; ".join(part for part in parts if part)

    def is_in(self, version: int) -> bool:
        """Whether files of that version of the schema hold it."""
        return self.since <= version <= (self.until or version)


@dataclass(frozen=True)
class Table:
    """One table: what a row is, its columns, its unique key, the order of its rows in a file, and how it is split into files."""

    name: str
    row: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    order: tuple[str, ...]
    by_layer: bool = False
    owns: str | None = None
    """The id column that this table's runs number; it is landed as a content hash and published as a dense id."""
    copies: str | None = None
    """The table whose rows it holds in another order; it is never landed, but written from that table's shards."""
    summed: tuple[str, ...] = ()
    """What names the thing that a row is about, where each run has a row of it: plain table names show one for all runs."""
    orders: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """version -> the order of rows in files of up to that version, where it was another."""

    @property
    def unique(self) -> list[str]:
        """The columns whose order the rows of a file follow; no two rows of a run are equal in them."""
        return self.unique_at(SCHEMA_VERSION)

    @property
    def schema(self) -> pa.Schema:
        """What its files hold that are written now."""
        return self.schema_at(SCHEMA_VERSION)

    @property
    def shown(self) -> pa.Schema:
        """What the views show: columns of every version."""
        return pa.schema([pa.field(c.name, c.type) for c in self.columns])

    def stored(self, version: int = SCHEMA_VERSION) -> list[Column]:
        """The columns that files of a version hold, in their order."""
        return [c for c in self.columns if c.is_in(version)]

    def schema_at(self, version: int) -> pa.Schema:
        """What files of a version hold."""
        return pa.schema(
            [pa.field(c.name, c.type, nullable=c.null is not None and version >= c.null_since) for c in self.stored(version)]
        )

    def unique_at(self, version: int) -> list[str]:
        """`unique` for files of a version."""
        order = next((self.orders[last] for last in sorted(self.orders) if version <= last), self.order)
        return [name for name in dict.fromkeys(order + self.key) if self.column(name).is_in(version)]

    def column(self, name: str) -> Column:
        return next(c for c in self.columns if c.name == name)


def of_layer(by: str) -> Limit:
    """That it is the layer of the SAE that another column names."""
    return Limit(by, "layer", "is not the SAE's", is_equal=True)


def of_width(by: str) -> Limit:
    """That it is below the width of the SAE that another column names."""
    return Limit(by, "width", "is past the SAE's width")


RUN_ID = Column(
    "run_id",
    pa.string(),
    "the run that wrote the row",
    is_repeated=True,
    over_runs="case when count(*) = 1 then min(run_id) end",
)
PROMPT_ID = Column("prompt_id", pa.int64(), "the prompt", encoding=DELTA, refers="prompts.prompt_id")
POS = Column(
    "pos",
    pa.int16(),
    "token position in the templated prompt, from 0",
    at_least=0,
    limit=Limit("prompt_id", "n_tokens", "is past the prompt's end"),
)
SAE_ID = Column("sae_id", pa.string(), "the SAE; unique for its exact weights", is_repeated=True, refers="saes.sae_id")
LAYER = Column(
    "layer",
    pa.int16(),
    "block at which the SAE reads, most often the residual stream after it; from 0",
    at_least=0,
    limit=of_layer("sae_id"),
)
FEATURE_ID = Column(
    "feature_id",
    pa.int32(),
    "latent index in its SAE, from 0",
    at_least=0,
    encoding=DELTA,
    limit=of_width("sae_id"),
)
SET_ID = Column("set_id", pa.int64(), "the feature set", encoding=DELTA, refers="feature_sets.set_id")
VECTOR = pa.list_(pa.field("element", pa.float32(), nullable=False))
ABLATION_ID = Column("ablation_id", pa.int64(), "the ablation", encoding=DELTA, refers="ablations.ablation_id")
