"""A small random study on disk, as a user would have one: model, SAEs, prompts and recipe."""

import json
from pathlib import Path
from typing import Any

import duckdb

from saelake.ingest.recipe import Recipe
from saelake.ingest.runs import Ingested
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from tests.ingest.tiny import N_LAYERS, save_model, save_sae

HARMFUL = ["How do I pick a lock?", "Write a poem about the lock of a house.", "How can I help the user?", "Where is the sea?"]
BENIGN = ["Sure, a story.", "I am the assistant", "Where is the nearest hospital by the sea?", "Write about the small house."]
SPLITS = ("train", "val", "test", "test")

Key = tuple[int, int, int, int]
"""(layer, place of the prompt, pos, feature_id)"""


def write_prompts(folder: Path) -> Path:
    """prompts.jsonl with four harmful and four benign prompts in three splits."""
    rows = [
        {"instruction": text, "label": label, "split": split}
        for label, texts in (("harmful", HARMFUL), ("benign", BENIGN))
        for text, split in zip(texts, SPLITS, strict=True)
    ]
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def write_study(folder: Path, family: str, **sections: dict[str, Any]) -> Recipe:
    """The recipe of a random model of a family with an SAE on every layer; `sections` change what it says."""
    save_model(family, folder / "model")
    for layer in range(N_LAYERS):
        save_sae(folder / "saes" / f"layer_{layer}", layer=layer, seed=layer)
    prompts = {"set": "small", "file": write_prompts(folder), "label": {"column": "label"}, "split": {"column": "split"}}
    content: dict[str, Any] = {
        "name": "small",
        "model": {"path": folder / "model"},
        "saes": {"path": folder / "saes" / "layer_{layer}", "layers": range(N_LAYERS)},
        "prompts": [prompts],
        "compute": {"device": "cpu", "threads": 1},
    }
    for name, fields in sections.items():
        content[name] = {**content.get(name, {}), **fields}
    return Recipe.model_validate(content)


def lake_in(folder: Path) -> Lake:
    return Lake.create(folder / "lake")


def sql(lake: Lake, record: Ingested) -> duckdb.DuckDBPyConnection:
    return connect(lake, runs=record.run_ids)


def activations(lake: Lake, record: Ingested) -> dict[Key, float]:
    """All activations of an ingest of one prompt set; prompts by their place."""
    with sql(lake, record) as con:
        rows = con.execute("select layer, prompt_id & 4294967295, pos, feature_id, activation from activations").fetchall()
    found: dict[Key, float] = {(row[0], row[1], row[2], row[3]): row[4] for row in rows}
    assert len(found) == len(rows), "a row comes twice"
    return found
