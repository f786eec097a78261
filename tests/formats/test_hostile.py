"""Sources that would fill the memory, or whose values no column holds: one sentence, soon, and the lake as it was."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from saelake.formats.joined import as_name
from saelake.formats.registry import Asked
from saelake.formats.transfer import bring_in
from saelake.warehouse.lake import Lake
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import share
from tests.formats.files import as_json, as_lines
from tests.formats.samples import BULK, EDITS, GRAPH, JAILBREAKS, LIST, OWN, STRONG, TOPS, cache, pipeline
from tests.formats.test_formats import refusal
from tests.lakes import build_lake

LONG = "9" * 5_000
HALF = "\ud800"
WRONG: dict[str, tuple[str, Callable[[Path], Path], Asked, str]] = {
    "a feature of many digits": ("features", as_json("x.json", [{**LIST[0], "index": LONG}]), Asked(), "is not a feature"),
    "a feature of text": ("features", as_lines("x.jsonl", [{**EDITS[0], "feature": LONG}]), Asked(), "feature is a whole number"),
    "a feature in a list": ("features", lambda f: as_json("x.json", 0)(f).rename(f / "x.txt"), Asked(), "not of the form"),
    "an SAE of many digits": ("features", as_lines("x.jsonl", [{**EDITS[0], "sae": LONG}]), Asked(), "no SAE"),
    "a layer past 32 bits": (
        "features",
        as_lines("x.jsonl", [{**EDITS[0], "sae": 2**31}]),
        Asked(),
        "no SAE with layer 2147483648",
    ),
    "half of an SAE": ("features", as_lines("x.jsonl", [{**EDITS[0], "sae": HALF}]), Asked(), "half of a character"),
    "a value past float32": ("features", as_lines("x.jsonl", [{**EDITS[0], "value": 1e39}]), Asked(), "is a finite number"),
    "a value of many digits": ("features", as_lines("x.jsonl", [{**EDITS[0], "value": 10**400}]), Asked(), "is a finite number"),
    "a position of many digits": (
        "features",
        as_lines("x.jsonl", [{**EDITS[0], "positions": LONG}]),
        Asked(),
        "neither a position",
    ),
    "a row of many digits": (
        "neuronpedia",
        as_lines("x.jsonl", [{**BULK["explanations"][0], "index": LONG}]),
        Asked(),
        "no feature",
    ),
    "a weight of many digits": (
        "circuit_tracer",
        as_json("x.json", GRAPH | {"links": [{"source": "0_1_2", "target": "1_3_2", "weight": 10**400}]}),
        Asked(),
        "is not a finite number",
    ),
    "a position that is a part": (
        "top_activations",
        as_lines("x.jsonl", [{**TOPS[0], "position": 1.5}]),
        Asked(sae="sae0"),
        "is not a position",
    ),
    "a position past 32 bits": (
        "top_activations",
        as_lines("x.jsonl", [{**TOPS[0], "position": 2**31}]),
        Asked(sae="sae0"),
        "is not a position",
    ),
    "a score of many digits": (
        "strongreject",
        as_lines("x.jsonl", [{**STRONG[0], "score": 10**400}]),
        Asked(),
        "not a number from 0 to 1",
    ),
    "half of a category": (
        "strongreject",
        as_lines("x.jsonl", [{**STRONG[0], "category": HALF}]),
        Asked(),
        "half of a character",
    ),
    "half of an answer": (
        "answers",
        as_lines("x.jsonl", [{**OWN[1], "completion": HALF}]),
        Asked(condition="x"),
        "half of a char",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_value_that_no_column_holds_is_one_sentence(what: str, tmp_path: Path) -> None:
    name, write, asked, why = WRONG[what]
    said = refusal(build_lake(tmp_path / "lake"), name, write(tmp_path), asked)
    assert why in said
    assert len(said) < 400


@pytest.mark.parametrize("told", [{"pos": -1, "layer": 1.5}, {"pos": "-1", "layer": 2}, {"pos": True, "layer": 2}, [-1, 2], {}])
def test_the_place_of_a_direction_is_two_whole_numbers(told: object, tmp_path: Path) -> None:
    run = pipeline(tmp_path)
    (run / "direction_metadata.json").write_text(json.dumps(told))
    assert "of whole numbers" in refusal(build_lake(tmp_path / "lake"), "direction", run)


@pytest.mark.parametrize("dtype", ["complex64", "bool"])
def test_a_tensor_of_no_real_numbers_is_no_direction(dtype: str, tmp_path: Path) -> None:
    import torch

    torch.save(torch.ones(8, dtype=getattr(torch, dtype)), tmp_path / "vector.pt")
    assert f"it holds torch.{dtype}" in refusal(
        build_lake(tmp_path / "lake"), "direction", tmp_path / "vector.pt", Asked(layer=0)
    )


@pytest.mark.parametrize(
    ("place", "dtype", "why"),
    [
        ((2**32, 1, 0), np.int64, f"there is no row {2**32}"),
        ((0, 2**32 + 1, 0), np.int64, f"there is no position {2**32 + 1}"),
        ((0, 1, -1), np.int64, "it has feature 1, which is past its range"),
        ((0, 1, 2**64 - 1), np.uint64, "which is past its range"),
    ],
)
def test_places_of_a_cache_do_not_wrap(place: tuple[int, int, int], dtype: type, why: str, tmp_path: Path) -> None:
    import safetensors.numpy

    module = cache(tmp_path)
    split = safetensors.numpy.load_file(module / "2_3.safetensors")
    changed = {"locations": np.array([place], dtype=dtype), "activations": np.array([1.0], dtype=np.float32)}
    safetensors.numpy.save_file(split | changed, module / "2_3.safetensors")
    assert why in refusal(build_lake(tmp_path / "lake"), "delphi", module)


@pytest.mark.parametrize("told", [5, "x", [{}], [None]])
def test_hashes_of_a_cache_that_are_none_are_one_sentence(told: object, tmp_path: Path) -> None:
    module = cache(tmp_path)
    (module / "config.json").write_text(json.dumps({"saelake": {"model_hash": told}}))
    assert "no list of hashes" in refusal(build_lake(tmp_path / "lake"), "delphi", module)


@pytest.mark.parametrize("told", ["..", ".", "", "../../x", "/etc/x", "a/b", "a\\b", "a\0b", "gemma-2.5", "\u00e9"])
def test_a_name_is_that_of_one_file(told: str, tmp_path: Path) -> None:
    place = tmp_path / as_name(told)
    place.touch()
    assert list(tmp_path.iterdir()) == [place]
    assert as_name("gemma-2.5") == "gemma-2.5"


def test_what_a_source_says_of_itself_does_not_fill_the_record(tmp_path: Path) -> None:
    """Nobody could add a set that holds such a run."""
    parameters = {"model": "m", "attack": "y" * 5_000_000}
    (tmp_path / "x.json").write_text(json.dumps(JAILBREAKS | {"parameters": parameters}))
    record = bring_in(tmp_path / "lake", "jailbreakbench", str(tmp_path / "x.json"), Asked(recipe="mine"))
    assert record.about["parameters"] == "5,000,028 characters, left out"
    share(Lake.existing(tmp_path / "lake"), tmp_path / "set")
    assert add(Lake.create(tmp_path / "theirs"), tmp_path / "set")


def test_an_sae_goes_by_its_name_in_a_list_of_features(tmp_path: Path) -> None:
    lake = build_lake(tmp_path / "lake")
    (tmp_path / "list.txt").write_text("1 3")
    assert bring_in(lake.root, "features", str(tmp_path / "list.txt"), Asked(sae="hand/1")).tables[0].n_rows == 2
