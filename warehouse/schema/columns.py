"""What a table of the protocol is made of, and the columns that many tables share."""

from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Column:
    """One column: its name, Arrow type and meaning (with the unit); `null` says what a missing value means."""

    name: str
    type: pa.DataType
    meaning: str
    null: str | None = None
    refers: str | None = None
    """The id that it holds, if its own name is not that id's."""

    @property
    def identity(self) -> str:
        return self.refers or self.name


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

    @property
    def unique(self) -> list[str]:
        """The columns whose order the rows of a file follow; no two rows of a run are equal in them."""
        return list(dict.fromkeys(self.order + self.key))

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(c.name, c.type, nullable=c.null is not None) for c in self.columns])

    def column(self, name: str) -> Column:
        return next(c for c in self.columns if c.name == name)


RUN_ID = Column("run_id", pa.string(), "the run that wrote the row")
PROMPT_ID = Column("prompt_id", pa.int64(), "the prompt")
POS = Column("pos", pa.int16(), "token position in the templated prompt, from 0")
SAE_ID = Column("sae_id", pa.string(), "the SAE; unique for its exact weights")
LAYER = Column("layer", pa.int16(), "block after which resid_post is read, from 0")
FEATURE_ID = Column("feature_id", pa.int32(), "latent index in its SAE, from 0")
SET_ID = Column("set_id", pa.int64(), "the feature set")
VECTOR = pa.list_(pa.field("element", pa.float32(), nullable=False))
ABLATION_ID = Column("ablation_id", pa.int64(), "the ablation")
