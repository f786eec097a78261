"""docs/protocol.md from warehouse/schema/: the protocol as a page. `make pages` writes it, a test keeps it in step."""

import re

import pyarrow as pa

from saelake.warehouse import schema
from saelake.warehouse.schema import TABLES, Column, Table
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "protocol.md"
HEAD = """# The protocol

Every table of a lake, every column with its type and meaning. This page is made from
[warehouse/schema/](../warehouse/schema/) by `make pages`; where it differs, the schema is right.

"""
VERSIONS = """ A run keeps the version that it was written with, in its record, and every older
one can be read, queried, checked, shared, added and built on: a later column (since) reads as null in older files, or as the
column says; one that is no longer written (until) stays in the views. `saelake.json` names the newest version that
anything in the lake was written with, so that an older saelake refuses what it does not know.
"""
IDENTITY = """
The life of a run. A run is computed, published, shared and deleted as a whole, and never changes. Its id is a hash of what
determines its content: its stage with the version of its code, its part of the recipe, the hashes of model, SAEs and prompts, the
kind of device, the seed, and the ids of the runs that it is computed from. The protocol's version, the recipe's name, the sizes
of shards and batches and the copy by prompt are not in it. A run that an older version published with the content that the recipe
asks for is found and built on, and `saelake status` says so; a field of a recipe that came later counts only where it is not at
its default.

A lake grows. `ingest` makes a run `prompts` of every prompt set and a run `activations` of every prompt set and SAE, so that a
study with one more set or SAE computes that alone, and studies share what they have in common. Each run has its own rows of
`saes` and `features`, whose statistics are over its prompts; plain table names show one row of each SAE and feature, over all
that is shown, and all_runs.NAME the runs' own. The parents of a later stage are the runs that it reads. Version 1 had one run
`ingest` for a whole study, which stands for these. The copy by prompt of activations that were computed without it is a run of
its own, `prompt_major`.
"""
LAYOUT = """
All files are plain Parquet: zstd, page checksums, page index, no hive keys, no nested types but lists of numbers. `run_id`,
`sae_id` and `layer` are real columns in every file that has them. A reader needs nothing but the files that a run record lists:

```text
lake/
  saelake.json                    marks the folder as a lake, with the newest version of the protocol in it
  runs/<run_id>.json              the record of a published run, written last: configuration, parents, versions, files, hashes
  data/<run_id>/<table>/*.parquet the files that the record lists; one per layer where the table is cut by layer
  current/<recipe>/<stage>        which runs of a recipe's stage are current, one per line
  catalog.duckdb                  views for any DuckDB client: plain names for current runs, all_runs.NAME for every run
```

The table `runs` has one row per run record, with the columns """


def page() -> str:
    """The whole page."""
    introduction = (schema.__doc__ or "").split("\n\n", 1)[1].strip()
    columns = ", ".join(f"`{name}`" for name in schema.RUNS_STRUCTURE)
    parts = [
        HEAD
        + introduction
        + f"\n\nThe protocol's version is {schema.SCHEMA_VERSION}."
        + VERSIONS
        + IDENTITY
        + LAYOUT
        + columns
        + ".\n"
    ]
    for table in TABLES.values():
        key = ", ".join(f"`{name}`" for name in table.key)
        order = ", ".join(f"`{name}`" for name in table.order)
        files = "One file per layer" if table.by_layer else "One file"
        rows = [f"| `{c.name}` | {_type(c)} | {_meaning(table, c)} |" for c in table.columns]
        parts.append(
            f"\n## {table.name}\n\nA row is {table.row}. Unique: {key}. {files}, ordered by {order}.\n\n"
            "| column | type | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    return "".join(parts)


def _type(column: Column) -> str:
    """In words where Arrow's own name has angle brackets, which a page takes for HTML."""
    return f"list of {column.type.value_type}" if pa.types.is_list(column.type) else str(column.type)


def _meaning(table: Table, column: Column) -> str:
    later = f"since version {column.since}" if column.since > 1 else f"until version {column.until}" if column.until else ""
    elsewhere = f"{later}, in other files {_elsewhere(table, column)}" if later else ""
    is_told = column.at_least is None or any(words in column.meaning for words in ("from 0", "from 1", "above 0"))
    least = "" if is_told else f"at least {column.at_least:g}"
    limits = " and ".join(part for part in (least, f"at most {column.at_most:g}" if column.at_most is not None else "") if part)
    choices = "" if all(one in column.meaning for one in column.choices) else f"one of {', '.join(column.choices)}"
    others = {c.name for c in table.columns if c.table not in (None, table.name)}
    limit = column.limit if column.limit and column.limit.by in others else None
    bound = f"{'' if limit.is_equal else 'below '}`{limit.fact}` of what `{limit.by}` points to" if limit else ""
    points = f"points to `{column.refers}`" if column.name in others else ""
    null = f"null: {column.null}" if column.null else ""
    return "; ".join(
        part for part in (column.meaning, choices, limits, bound, points, column.encoding or "", null, elsewhere) if part
    )


def _elsewhere(table: Table, column: Column) -> str:
    """What a column reads as in files that do not hold it; where that is long, what it is read from."""
    told = column.elsewhere or "null"
    if len(told) <= 60:
        return told
    words = set(re.findall(r"\w+", re.sub("'[^']*'", "", told)))
    return "from " + ", ".join(f"`{c.name}`" for c in table.columns if c.name in words)
