"""The hand-made lake of tests/lakes.py with categories, populations and explanations, and a browser to look at its pages."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, sync_playwright

from saelake.analysis.meaning.explanations import explain
from saelake.analysis.meaning.taxonomy import taxonomy
from saelake.ingest.recipe import Recipe, load_recipe
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunSpec
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import CONCEPTS, POPULATIONS, TAXONOMY
from tests.lakes import build_lake, publish

FOUND = (("candidates", 0, 1, 2), ("candidates", 0, 2, 1), ("critical", 0, 1, 2), ("stage3", 1, 0, 3), ("stage3_new", 1, 0, 3))
"""population, layer, feature_id, n_prompts"""
PATTERNS = (("harm", r"\bbomb"), ("harm", "weapon"), ("punctuation", "comma|period"))
EXPLAINED = (
    (0, 1, "References to bombs and the bombs' makers"),
    (0, 1, "a second reading: weapons"),
    (1, 0, "periods, and the related"),
)
CHROMIUM = os.environ.get("SAELAKE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync")


def build_meaning_lake(root: Path, explained: Sequence[tuple[int, int, str]] = EXPLAINED) -> Lake:
    """The hand-made lake, as if its study had been analysed."""
    lake = build_lake(root)
    (ingest,) = lake.current()["small", "ingest"]

    def add(stage: str, rows: Rows) -> None:
        publish(lake, RunSpec(stage, "small", {"device": "cpu"}, (ingest,)), [rows])

    with connect(lake) as con:
        add("taxonomy", Rows.of(TAXONOMY, taxonomy(con, "harmful", ())))
    population, layer, feature_id, n_prompts = zip(*FOUND, strict=True)
    columns = {"population": population, "sae_id": [f"sae{n}" for n in layer], "layer": layer, "feature_id": feature_id}
    add("populations", Rows.of(POPULATIONS, columns | {"n_prompts": n_prompts}))
    concept, pattern = zip(*PATTERNS, strict=True)
    ranks = [("harm", "punctuation").index(one) for one in concept]
    add("concepts", Rows.of(CONCEPTS, {"rank": ranks, "concept": concept, "pattern": pattern}))
    explain_by_hand(lake, explained)
    return lake


def explain_by_hand(lake: Lake, explained: Sequence[tuple[int, int, str]]) -> None:
    """Explanations from a file of one's own."""
    layer, feature_id, description = zip(*explained, strict=True)
    rows = pa.table({"sae_id": [f"sae{n}" for n in layer], "feature_id": feature_id, "description": description})
    file = lake.root.parent / "own.parquet"
    pq.write_table(rows, file)
    explain(small_recipe(), lake, str(file))


def small_recipe() -> Recipe:
    """A recipe of the hand-made lake's study, for stages that need one: the organism's under its name."""
    return load_recipe("organism").model_copy(update={"name": "small"})


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without a window; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium, or name it in SAELAKE_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()
