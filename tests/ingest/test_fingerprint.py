"""Fingerprints of models: they follow content and commit, not place."""

import json
from pathlib import Path

import pytest

from saelake.ingest.fingerprint import fingerprint
from saelake.ingest.recipe import ModelSpec
from saelake.warehouse.errors import UserError
from tests.ingest.tiny import as_hub_cache, save_model


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    here, there = save_model("llama", tmp_path / "a"), save_model("llama", tmp_path / "b")
    (there / "README.md").write_text("notes")
    first = fingerprint(ModelSpec(path=here))
    assert first.startswith("sha256:")
    assert fingerprint(ModelSpec(path=there)) == first
    config = json.loads((there / "config.json").read_text())
    (there / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}))
    assert fingerprint(ModelSpec(path=there)) != first


def test_fingerprint_of_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"model\.path: there are no \.safetensors weights in"):
        fingerprint(ModelSpec(path=tmp_path))


def test_hub_model_is_known_by_its_commit(offline_hub: Path) -> None:
    as_hub_cache(offline_hub, "acme/tiny-it", "b" * 40)
    for revision in (None, "main", "b" * 40):
        assert fingerprint(ModelSpec(id="acme/tiny-it", revision=revision)) == f"acme/tiny-it@{'b' * 40}"
    with pytest.raises(UserError, match=r"model\.id: acme/tiny-it with revision v2 is not in the local hub cache"):
        fingerprint(ModelSpec(id="acme/tiny-it", revision="v2"))
    with pytest.raises(UserError, match=r"model\.id: acme/none with revision main is not in the local hub cache"):
        fingerprint(ModelSpec(id="acme/none"))
