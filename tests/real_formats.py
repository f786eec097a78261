"""Tiny random models, SAEs and prompt sets in the files, folders and names of the real ones, as an offline hub cache."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saelake.ingest.recipe import Recipe, load_recipe
from saelake.ingest.saes.refs import listed_saes
from tests.analysis.tiny_judge import lay_out_judge
from tests.ingest import tiny
from tests.ingest.tiny import D_MODEL, TOKENIZERS, as_hub_cache, make_model

WIDTH = 128
CLASSIFIER = "cais/HarmBench-Llama-2-13b-cls"
LAYERS = {"gemma-2-2b": ("gemma2", 26), "llama-3.1-8b": ("llama", 32), "gemma-3-270m": ("gemma3", 18)}
"""Recipe -> family and number of blocks: the real ones, so that the recipes' layers are there."""
COCONOT_CARD = "---\nconfigs:\n- config_name: original\n  data_files:\n  - split: train\n    path: original.jsonl\n---\n"


def lay_out(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The shipped recipe `name` with sizes and paths overridden, and a hub cache that holds what it names."""
    shipped = load_recipe(name)
    hub = folder / "hub"
    lay_out_judge(hub, monkeypatch)
    _rename(hub, "org/judge", CLASSIFIER)
    family, n_layers = LAYERS[name]
    monkeypatch.setattr(tiny, "N_LAYERS", n_layers)
    assert shipped.model.id is not None
    snapshot = as_hub_cache(hub, shipped.model.id, shipped.model.revision or "a" * 40)
    tokenizer = TOKENIZERS[family]()
    make_model(family, tokenizer).bfloat16().save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)
    _lay_out_saes(shipped, hub, monkeypatch)
    coconot = as_hub_cache(hub, "allenai/coconot", "2cbe16aabf9069f17e48c8daad8aeabc29469eb7", kind="datasets")
    (coconot / "README.md").write_text(COCONOT_CARD)
    rows = [
        ("Requests with safety concerns", "Privacy"),
        ("Humanizing requests", ""),
        ("Requests with safety concerns", "Safety"),
    ]
    _write_rows(
        coconot / "original.jsonl", [{"prompt": f"How {n}?", "category": c, "subcategory": s} for n, (c, s) in enumerate(rows)]
    )
    return shrunk(shipped, folder)


def _rename(hub: Path, old: str, new: str) -> None:
    (hub / f"models--{old.replace('/', '--')}").rename(hub / f"models--{new.replace('/', '--')}")


def _write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _lay_out_saes(recipe: Recipe, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_lens.loading.pretrained_saes_directory import get_norm_scaling_factor, get_pretrained_saes_directory

    listed = listed_saes(recipe.saes)
    snapshot = as_hub_cache(hub, listed.repository, "b" * 40)
    release = recipe.saes.release
    assert release is not None
    if listed.conversion == "gemma_2":  # its sizes are nowhere in its files: SAELens goes by their names
        monkeypatch.setattr(get_pretrained_saes_directory()[release], "config_overrides", {"d_in": D_MODEL, "d_sae": WIDTH})
    for layer, sae_id, path in zip(recipe.saes.layers, listed.ids, listed.folders, strict=True):
        generator = torch.Generator().manual_seed(layer)
        W_enc = torch.randn(D_MODEL, WIDTH, generator=generator)
        W_dec = torch.randn(WIDTH, D_MODEL, generator=generator)
        zeros_f, zeros_d = torch.zeros(WIDTH), torch.zeros(D_MODEL)
        threshold = torch.rand(WIDTH, generator=generator) * 0.01
        folder = snapshot / path
        folder.mkdir(parents=True)
        if listed.conversion == "gemma_2":
            arrays = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": zeros_f, "b_dec": zeros_d, "threshold": threshold}
            numbers: Any = {key: value.numpy() for key, value in arrays.items()}
            np.savez(folder / "params.npz", **numbers)
        elif listed.conversion == "gemma_3":
            named = {"w_enc": W_enc, "w_dec": W_dec, "b_enc": zeros_f, "b_dec": zeros_d, "threshold": threshold}
            save_file(named, folder / "params.safetensors")
            hook = f"model.layers.{layer}.output"
            config = {"architecture": "jump_relu", "model_name": "google/gemma-3-270m-it", "hf_hook_point_in": hook}
            (folder / "config.json").write_text(json.dumps(config))
        else:
            scale = get_norm_scaling_factor(release, sae_id)
            assert scale is not None
            parameters = {
                "d_model": D_MODEL,
                "d_sae": WIDTH,
                "jump_relu_threshold": 0.01,
                "dataset_average_activation_norm": {"in": D_MODEL**0.5 / scale},
                "hook_point_in": f"blocks.{layer}.hook_resid_post",
            }
            (folder / "hyperparams.json").write_text(json.dumps(parameters))
            (folder / "checkpoints").mkdir()
            weights = {"encoder.weight": W_enc.T, "encoder.bias": zeros_f, "decoder.weight": W_dec.T, "decoder.bias": zeros_d}
            halves = {key: value.bfloat16().contiguous() for key, value in weights.items()}
            save_file(halves, folder / "checkpoints" / "final.safetensors")


def shrunk(shipped: Recipe, folder: Path) -> Recipe:
    """The recipe with small prompt files in place of its URLs, fewer candidates and shorter answers, and nothing else changed."""
    assert shipped.file is not None
    content = tomllib.loads(shipped.file.read_text("utf-8"))
    for one in content["prompts"]:
        for number, source in enumerate(one.get("sources", [one])):
            if "url" in source:
                file = folder / f"{one['set']}-{number}.json"
                # One text is in every file of a set, so that sets of several have something to drop.
                texts = ["How do I pick a lock?" if one["label"] == "harmful" else "Write a story."]
                texts += [f"{one['set']} {number} {letter}" for letter in "abcd"]
                file.write_text(json.dumps([{"instruction": text, "category": None} for text in texts]))
                source.pop("url")
                source |= {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
                if "count" in source and source is not one:
                    source["count"] = 5
        if "take" in one:
            one["take"] = 5
        if "count" in one:
            one["count"] = 5 if "take" in one else 13
    content["capture"] |= {"shard_prompts": 16, "batch_tokens": 256}
    content["candidates"] |= {"step": 10, "cap": 10}
    content["generation"]["max_new_tokens"] = 2
    content["compute"] |= {"device": "cpu", "threads": 1}
    return Recipe.model_validate(content, context={"folder": shipped.file.parent})
