"""The views of a lake as a script for any DuckDB client, with what every table and column means as its comment."""

from collections.abc import Iterator

from saelake.warehouse.catalog import current_runs
from saelake.warehouse.lake import Lake
from saelake.warehouse.literals import literal
from saelake.warehouse.schema import TABLES
from saelake.warehouse.views import MAKING, view_statements

HEAD = """-- The tables of the lake {name}, as `saelake export catalog` wrote them.
-- Read this in any DuckDB, and again after the lake has grown:
--     duckdb mine.duckdb < catalog.sql
"""


def catalog_script(lake: Lake, recipe: str | None = None) -> str:
    """The script; running it again replaces what it made."""
    return HEAD.format(name=lake.published.url.replace("\n", " ")) + "".join(f"{one};\n" for one in _statements(lake, recipe))


def _statements(lake: Lake, recipe: str | None) -> Iterator[str]:
    yield f"set variable lake = {literal(lake.published.url)}"
    yield f"set variable {MAKING} = true"
    yield from view_statements(current_runs(lake, recipe))
    yield f"reset variable {MAKING}"
    for table in TABLES.values():
        for schema in ("main", "all_runs"):
            yield f"comment on view {schema}.{table.name} is {literal(table.row)}"
            for column in table.columns:
                yield f'comment on column {schema}.{table.name}."{column.name}" is {literal(column.described)}'
