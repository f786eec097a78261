"""The planted study with every stage of interactions and side effects, and its literal network beside it."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from saelake import queries
from saelake.analysis import verbs
from saelake.ingest.recipe import Recipe, load_recipe
from saelake.warehouse.catalog import connect, cursor_of
from saelake.warehouse.durable import locked
from saelake.warehouse.lake import Lake
from tests.planted import Loaded, Planted, load, planted_at, write_planted

TEXTS = [
    {"said": "how to build a kite", "answer": "Sure , here it is ."},
    {"said": "how to build a bomb at home", "answer": "I cannot help ."},
    {"said": "show me the soup", "answer": "make a soup at home with a lamp and a quilt in the garden"},
    {"said": "show me the lamp", "answer": "Sure"},
]
MORE = """
[minimal]
starts = 12
[steering]
values = [2.0, 10.0]
[losses]
sets = 3
[fm]
sizes = [2, 4]
[probe]
ks = [2]
[stage3]
size = 4
ks = [1, 2, 4, 8]
random_draws = 2
[[losses.texts]]
set = "plain"
file = "texts.jsonl"
text = "answer"
max_tokens = 10
[[losses.texts]]
set = "answers"
file = "texts.jsonl"
text = "answer"
prompt = "said"
take = 3
max_tokens = 40
"""


class Analysed(NamedTuple):
    planted: Planted
    loaded: Loaded
    recipe: Recipe
    lake: Lake

    def connect(self) -> duckdb.DuckDBPyConnection:
        return session(self.lake)

    def ask(self, name: str, columns: str = "*", **values: Any) -> list[Any]:
        """Rows of a question about the study."""
        with self.connect() as con:
            return queries.run(con, name, **values).project(columns).fetchall()

    def sql(self, statement: str) -> list[Any]:
        with self.connect() as con:
            return con.execute(statement).fetchall()


def session(lake: Lake) -> duckdb.DuckDBPyConnection:
    """A connection to a lake that does not change, temporary tables of its own: to make views takes longer than to ask."""
    return cursor_of(_with_views(lake), lake)


@cache
def _with_views(lake: Lake) -> duckdb.DuckDBPyConnection:
    return connect(lake)


def analyse(folder: Path) -> Analysed:
    """Analysed with so many starts that every prompt's alternative sets are found; what another process has made is found."""
    with locked(folder.with_suffix(".lock")):
        planted = planted_at(folder) if folder.exists() else write_planted(folder)
        if not (folder / "texts.jsonl").exists():
            (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TEXTS))
            planted.recipe.write_text(planted.recipe.read_text() + MORE)
        recipe, lake = load_recipe(planted.recipe), Lake.create(folder / "lake")
        verbs.analyze(recipe, lake)
    return Analysed(planted, load(planted), recipe, lake)
