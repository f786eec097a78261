"""The shipped hydra: its second path sleeps, wakes when the first is ablated, and refuses; its page has its figures."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from saelake.ingest.hydra import build
from saelake.ingest.hydra.backups import Lab, measure_backups, measure_writing
from saelake.ingest.hydra.paths import FIRST, N_LAYERS, Paths, path_of
from saelake.ingest.hydra.world import make_prompts
from saelake.ingest.organism.ablation import ranked
from saelake.ingest.organism.build import load_model, load_saes, model_figures, sae_figures, split_prompts
from saelake.ingest.organism.corpus import Prompt
from saelake.ingest.organism.measure import REFUSAL_TOKEN, greedy, same_length
from saelake.ingest.organism.train import projected_out, refusal_directions
from saelake.ingest.torch_threads import torch_threads
from tests.conftest import ROOT

FOLDER = ROOT / "ingest" / "hydra"
N_HELD_OUT = 24
"""Of the 240 held-out prompts, so many are asked again here; `make hydra` asked all."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


@pytest.fixture(scope="module")
def prompts() -> dict[Any, list[Prompt]]:
    return split_prompts(make_prompts(0))


@pytest.fixture(scope="module")
def subject() -> tuple[Any, Any]:
    return load_model(FOLDER / "model")


@pytest.fixture(scope="module")
def directions_ld(subject: tuple[Any, Any], prompts: dict[Any, list[Prompt]]) -> Tensor:
    return refusal_directions(*subject, prompts["train"])


@pytest.fixture(scope="module")
def gates() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "gates.json").read_text())
    return found


def test_files_are_small_and_name_no_machine() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file() and path.suffix in (".json", ".jsonl", ".safetensors")]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 10
    for path in weights:
        with safe_open(path, "pt") as tensors:
            exact = torch.float32 if path.name == build.PATHS else torch.float16
            assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {exact}, path  # noqa: SIM118
    for path in set(files) - set(weights):
        assert not [place for place in ("/work", "/tmp", "/home/") if place in path.read_text()], path


def test_prompts_are_those_of_its_world(prompts: dict[Any, list[Prompt]]) -> None:
    rows = [json.loads(line) for line in (FOLDER / "prompts.jsonl").read_text().splitlines()]
    made = [row._asdict() for row in make_prompts(0)]
    assert rows == [{key: row[key] for key in ("instruction", "label", "category", "split", "wording")} for row in made]
    assert len({row["wording"] for row in rows}) == 32, "families are requests that are worded alike, in a frame or not"
    assert Counter(path_of(prompt) for prompt in prompts["test"]) == {"first": 87, "second": 33, None: 120}


def test_the_report_of_the_embedded_study_has_the_hydras_beside_it_and_yours_stands_alone() -> None:
    def asked(*settings: str) -> list[str]:
        words = ["make", "-n", "report", "LAKE=here", *settings]
        lines = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
        return [line.partition(" ")[2] for line in lines if "/saelake " in line]

    study = ["analyze recipes/organism.toml --lake here"]
    backups = ["analyze hydra --lake here-hydra", "report --lake here-hydra --output backups.html"]
    assert asked() == [*study, *backups, "report --lake here --output report.html"]
    assert asked("RECIPE=my.toml") == ["analyze my.toml --lake here", "report --lake here --output report.html"]


def test_all_gates_hold_and_the_page_has_their_figures(gates: dict[str, Any]) -> None:
    assert gates["bounds"] == {
        split: {name: list(bounds) for name, bounds in found.items()}
        for split, found in (("val", build.HYDRA.val_gates), ("test", build.HYDRA.gates))
    }
    page = (FOLDER / "hydra.md").read_text()
    for split in ("val", "test"):
        figures = figures_of(gates[split])
        for name, (low, high) in gates["bounds"][split].items():
            assert all(low <= value <= high for value in figures[name]), (split, name)
    cells = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    rows = {row[0].strip("`"): row[4] for row in cells if len(row) == 5}
    figures = figures_of(gates["test"])
    assert set(rows) >= set(gates["bounds"]["test"])
    for name, held_out in rows.items():
        stated = [float(value) for value in held_out.split(" to ")]
        assert stated == [round(value, 3) for value in sorted({min(figures[name]), max(figures[name])})], name


def figures_of(found: dict[str, Any]) -> dict[str, list[float]]:
    """A split's figures by name: one value, or one for each layer."""
    return {
        name: [row[name] for row in (part if isinstance(part, list) else [part])]
        for part in found.values()
        for name in (part[0] if isinstance(part, list) else part)
    }


def test_held_out_prompts_are_refused_if_harmful_and_explained(prompts: dict[Any, list[Prompt]]) -> None:
    asked = prompts["test"][:N_HELD_OUT]
    found = model_figures(FOLDER / "model", asked)
    assert found["refused_harmful"] >= 0.95
    assert found["refused_benign"] <= 0.05
    assert found["echoed_benign"] >= 0.8
    for layer in sae_figures(FOLDER / "model", FOLDER / "saes", asked):
        assert layer["explained_variance"] >= 0.95
        assert 8 <= layer["l0"] <= 24


def test_the_second_path_sleeps_while_the_first_works_and_refuses_when_it_is_ablated(
    subject: tuple[Any, Any], prompts: dict[Any, list[Prompt]]
) -> None:
    paths = Paths(load_file(FOLDER / build.PATHS)["basis_cd"])
    torch.testing.assert_close(paths.basis_cd @ paths.basis_cd.T, torch.eye(11), atol=1e-5, rtol=0)
    found = measure_writing(*subject, paths, [prompt for prompt in prompts["test"] if prompt.label == "harmful"])
    assert found.first > 0.8
    assert abs(found.second) < 0.15
    assert found.second_woken > 0.6
    assert found.refused_woken >= 0.95


@pytest.mark.parametrize("layer", [FIRST, FIRST + 1])
def test_a_direction_of_middle_depth_flips_if_every_block_loses_it_but_not_if_early_ones_do(
    layer: int, subject: tuple[Any, Any], prompts: dict[Any, list[Prompt]], directions_ld: Tensor
) -> None:
    harmful = [prompt for prompt in prompts["test"] if prompt.label == "harmful"]
    assert share_refused(subject, harmful, directions_ld[layer].expand(N_LAYERS, -1)) <= 0.05
    assert share_refused(subject, harmful, directions_ld[layer].expand(FIRST + 2, -1)) >= 0.95


def test_minimal_sets_of_held_out_prompts_have_features_that_sleep_wake_and_are_needed(
    subject: tuple[Any, Any], prompts: dict[Any, list[Prompt]], directions_ld: Tensor
) -> None:
    saes = load_saes(FOLDER / "saes")
    unframed = [prompt for prompt in prompts["test"] if path_of(prompt) == "first"]
    groups = same_length(subject[1], [prompt.instruction for prompt in unframed])
    alike, _ = max(groups, key=lambda group: len(group[0]))  # of one length: one pass for all
    asked = [unframed[index] for index in alike[:8]]
    found = measure_backups(Lab(*subject, saes, asked), ranked(saes, directions_ld), build.LAYERS)
    assert found.backed_up >= 0.25
    assert found.large_pools >= 0.5
    assert max(found.last_flipped, found.read_out_flipped) <= 0.2


def share_refused(subject: tuple[Any, Any], prompts: list[Prompt], directions_ld: Tensor) -> float:
    """Of the prompts, those that begin with the refusal's token while the first blocks lose their direction."""
    model, tokenizer = subject
    first_ids: list[Tensor] = []
    for indices, input_ids in same_length(tokenizer, [prompt.instruction for prompt in prompts]):
        with projected_out(model, directions_ld, torch.ones(len(indices))):
            first_ids.append(greedy(model, input_ids, 1)[1][:, 0])
    return (torch.cat(first_ids) == tokenizer.convert_tokens_to_ids(REFUSAL_TOKEN)).float().mean().item()
