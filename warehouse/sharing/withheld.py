"""What a shared set leaves out by default: completions to all prompts but control ones, and the text of restricted prompt sets.

A completion that is left out is replaced by a short digest of it, so that questions about equal answers (does the ablation of
silent features change anything? R8, R13) keep their counts. Tokens of restricted text keep their place and lose token and id, in
what backends read of it too.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from saelake.warehouse.records import RunRecord, with_ancestors
from saelake.warehouse.sharing.marks import restricted_sets

PROMPTS = """
select
    prompt_id,
    "set" as prompt_set,
    list_contains($restricted, "set") as is_restricted,
    label_role = 'control' as is_control,
    list_contains($shared, run_id) as is_shared
from all_runs.prompts
order by prompt_id
"""

SPELT = ("token_id", "token", "piece")
"""What a token is."""
SAID = ("user", "system", "assistant")
"""Roles of tokens that hold what a prompt set says."""
QUOTED = "graph_prompts"
"""What a run's record says of prompts that another tool was given: they may be of any set."""


@dataclass(frozen=True)
class Withheld:
    """What is left out of every run of a set."""

    restricted: tuple[str, ...] = ()
    """Prompt sets whose text is left out, of those that the runs are about."""
    with_completions: bool = False
    """Keep the completions to all prompts."""
    answered: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Ids of the prompts whose completions are kept; a prompt that the lake does not know may be of any label."""
    hidden: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Ids of the prompts whose text is left out."""

    def columns(self, table: str) -> list[str]:
        """The columns of a table that are left out on some rows."""
        texts = {"prompts": ["text"], "messages": ["content"], "tokens": list(SPELT), "readings": ["token_id"]}
        return ((texts if len(self.hidden) else {}) | {"ablations": ["completion"], "answer_tokens": list(SPELT)}).get(table, [])

    def about(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """What a run's record tells, as it is shared."""
        return {name: value for name, value in told.items() if name != QUOTED or not len(self.hidden)}

    def apply(self, table: str, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows as they are shared."""
        if table == "ablations":
            is_out = pc.invert(_is_in(rows["prompt_id"], self.answered))
            left_out = rows.filter(is_out)
            digests = list(map(_digest, left_out["prompt_id"].to_pylist(), left_out["completion"].to_pylist()))
            return _with(rows, "completion", pc.replace_with_mask(rows["completion"], is_out, pa.array(digests, pa.string())))
        answers = table == "answer_tokens"
        is_out = pc.invert(_is_in(rows["prompt_id"], self.answered)) if answers else _is_in(rows["prompt_id"], self.hidden)
        if table == "tokens":
            is_out = pc.and_(is_out, pc.is_in(rows["role"], pa.array(SAID)))
        for name in set(self.columns(table)) & set(rows.schema.names):
            blank = pa.scalar("" if pa.types.is_string(rows[name].type) else 0, rows[name].type)
            rows = _with(rows, name, pc.if_else(is_out, blank, rows[name]))
        return rows


def find_withheld(
    con: duckdb.DuckDBPyConnection,
    records: Sequence[RunRecord],
    published: Mapping[str, RunRecord],
    restricted: tuple[str, ...],
    with_completions: bool,
) -> Withheld:
    """What to leave out of some runs of the lake that `con` shows.

    Restricted are the sets that any recipe of the lake marks so, and those named in `restricted`: the run that says it need not
    be among those that are shared.

    Args:
        published: run_id -> every record of the lake.
    """
    about = with_ancestors((record.run_id for record in records), published.get)
    names = {*restricted, *restricted_sets(record.about for record in published.values())}
    rows = con.execute(PROMPTS, {"restricted": sorted(names), "shared": list(about)}).fetchnumpy()
    is_restricted, is_control, is_shared = (np.asarray(rows[n], dtype=bool) for n in ("is_restricted", "is_control", "is_shared"))
    is_answered = ~is_restricted & (is_control | with_completions)
    told = {*restricted, *restricted_sets(record.about for record in about.values())}
    told |= names & set(rows["prompt_set"][is_shared])
    return Withheld(tuple(sorted(told)), with_completions, rows["prompt_id"][is_answered], rows["prompt_id"][is_restricted])


def _is_in(ids: pa.Array, known: np.ndarray) -> pa.Array:
    return pc.is_in(ids, pa.array(known, pa.int64()))


def _digest(prompt_id: int, completion: str) -> str:
    """Equal for equal completions to one prompt; nothing was generated where it is empty."""
    content = f"{prompt_id} {completion}".encode()
    return f"withheld:{hashlib.sha256(content).hexdigest()[:8]}" if completion else ""


def _with(rows: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    return rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)
