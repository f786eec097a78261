"""The tables of docs/cards.md: what lies in the shipped models, SAEs and prompt sets, and what their builds measured."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from saelake.ingest.recipe import load_recipe
from saelake.ingest.saes.weight_files import tensor_shapes
from tests.conftest import ROOT
from tests.documents.made_blocks import table, with_blocks

PAGE = ROOT / "docs" / "cards.md"
MODELS = ("organism", "hydra", "planted")
STUDIES = ("organism", "organism-approval", "hydra", "planted")
MEASURED = {
    "refused_harmful": "harmful prompts refused",
    "refused_benign": "benign prompts refused",
    "echoed_benign": "benign answers that repeat the action word for word",
    "flipped": "refused prompts flipped by ablating the top K features per layer",
    "random_flipped": "... by as many random active features",
    "backed_up": "refused prompts with a minimal set in which a feature is silent, wakes and is needed",
}
"""Of what a build measured on its test split, what a card shows; gates.json has the rest."""


def page() -> str:
    """The page with its tables made anew."""
    return with_blocks(PAGE.read_text(encoding="utf-8"), {"models": _models(), "measured": _measured(), "prompts": _prompts()})


def _models() -> str:
    rows = []
    for name in MODELS:
        folder = ROOT / "ingest" / name
        config = json.loads((folder / "model" / "config.json").read_text("utf-8"))
        weights = _n_weights(folder / "model" / "model.safetensors")
        saes = sorted(folder.glob("saes/layer_*"))
        width = json.loads((saes[0] / "cfg.json").read_text("utf-8"))["d_sae"]
        files = [*(folder / "model").iterdir(), *(file for one in saes for file in one.iterdir())]
        rows.append(
            [
                f"`{name}`",
                f"{config['architectures'][0]}, {config['num_hidden_layers']} blocks of width {config['hidden_size']}",
                f"{weights:,}",
                f"{config['vocab_size']:,}",
                f"{len(saes)} of {width} features",
                f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB",
            ]
        )
    return table(["model", "architecture", "weights", "words", "SAEs", "on disk"], rows)


def _measured() -> str:
    found = {name: _flat(json.loads((ROOT / "ingest" / name / "gates.json").read_text("utf-8"))["test"]) for name in MODELS[:2]}
    rows = [[what, *(_share(found[name].get(key)) for name in found)] for key, what in MEASURED.items()]
    for key in ("explained_variance", "l0"):
        rows.append([f"{key.replace('_', ' ')} of the SAEs, lowest to highest layer's", *(_range(found[n][key]) for n in found)])
    return table(["on the test split", *(f"`{name}`" for name in found)], rows)


def _flat(measured: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for part in measured.values():
        if isinstance(part, dict):
            flat |= part
        else:
            flat |= {key: [one[key] for one in part] for key in part[0]}
    return flat


def _prompts() -> str:
    rows = []
    for name in STUDIES:
        recipe = load_recipe(name)
        for one in recipe.prompts:
            assert one.file is not None
            lines = [json.loads(line) for line in Path(one.file).read_text("utf-8").splitlines()]
            label = "judgement" if "judgement" in lines[0] else "label"
            words = Counter(word for line in lines for word in re.findall(r"\w+", line["instruction"].lower()))
            rows.append(
                [
                    f"`{name}`",
                    Path(one.file).relative_to(ROOT).as_posix(),
                    f"{len(lines):,}",
                    _counts(line["split"] for line in lines),
                    _counts(line[label] for line in lines),
                    _counts(line["category"] for line in lines),
                    f"{len(words):,}",
                ]
            )
    return table(["study", "file", "prompts", "splits", "labels", "categories", "words"], rows)


def _n_weights(file: Path) -> int:
    total = 0
    for shape in tensor_shapes(file).values():
        n = 1
        for size in shape:
            n *= size
        total += n
    return total


def _counts(values: Any) -> str:
    return ", ".join(f"{value} {n}" for value, n in sorted(Counter(values).items()))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _range(values: list[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"
