"""Models from folders and the hub's cache: what loads, in which numbers, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelake.ingest.loading import find_blocks, resolve_device
from saelake.ingest.recipe import Compute, ModelSpec
from saelake.ingest.subject import Subject
from saelake.warehouse.errors import UserError
from tests.ingest.tiny import (
    N_LAYERS,
    TOKENIZERS,
    as_hub_cache,
    save_model,
)

CPU = Compute(device="cpu", threads=1)


def test_half_precision_files_load_as_float32_and_bfloat16(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path, half=True)
    assert Subject.load(ModelSpec(path=folder), CPU).model.dtype == torch.float32
    small = Subject.load(ModelSpec(path=folder, dtype="bfloat16"), CPU)
    batch = small.batch([small.encode("I").token_ids])
    assert small.read_resid_post(batch, [0])[0].dtype == torch.bfloat16
    assert small.forward(batch).dtype == torch.float32


def test_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"model\.path {tmp_path}: the tokenizer cannot be loaded"):
        Subject.load(ModelSpec(path=tmp_path), CPU)


def test_damaged_and_incomplete_weights_are_refused(tmp_path: Path) -> None:
    weights = save_model("llama", tmp_path) / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if "layers.1.mlp.up_proj" not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the files lack 1 of the model's weights, for example .*layers\.1\.mlp\.up_proj"):
        Subject.load(ModelSpec(path=tmp_path), CPU)
    weights.write_bytes(b"damaged")
    with pytest.raises(UserError, match="the model cannot be loaded"):
        Subject.load(ModelSpec(path=tmp_path), CPU)


def test_tokenizer_that_is_larger_than_the_model(tmp_path: Path) -> None:
    save_model("llama", tmp_path)
    tokenizer = TOKENIZERS["llama"]()
    tokenizer.add_tokens(["one_more"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"the tokenizer has token id \d+, but the model embeds only"):
        Subject.load(ModelSpec(path=tmp_path), CPU)


def test_architecture_with_blocks_in_an_unknown_place() -> None:
    with pytest.raises(UserError, match="the decoder blocks of a Linear were not found"):
        find_blocks(torch.nn.Linear(2, 2))


def test_device_that_is_not_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    absent = [name for name, there in [("cuda", torch.cuda.is_available()), ("mps", torch.mps.is_available())] if not there]
    for name in absent:
        with pytest.raises(UserError, match=rf"compute\.device is '{name}', which this machine does not have"):
            resolve_device(name)


def test_hub_model_loads_offline_from_the_cache(offline_hub: Path) -> None:
    save_model("gemma3", as_hub_cache(offline_hub, "acme/tiny-it", "b" * 40))
    for revision in (None, "main", "b" * 40):
        spec = ModelSpec(id="acme/tiny-it", revision=revision)
        assert Subject.load(spec, CPU).n_layers == N_LAYERS


def test_hub_model_that_is_not_in_the_cache(offline_hub: Path) -> None:
    with pytest.raises(UserError, match=r"model\.id acme/none: the tokenizer cannot be loaded"):
        Subject.load(ModelSpec(id="acme/none"), CPU)


@pytest.mark.parametrize("given", ["./models/none", "/data/models/none", "~/models/none", "~nosuchuser/none", Path("none")])
def test_a_folder_that_is_not_there_is_no_id_of_the_hub(given: str | Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*none"):
        Subject.load(given)


def test_a_folder_of_the_users_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model("gemma2", tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Subject.load("~/model", target_tokens=["I"], chat_template="none").n_layers > 0
