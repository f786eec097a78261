"""Folders of SAEs that are not what they say: each ends in one sentence that names what is wrong, before anything is loaded."""

import json
import os
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelake.ingest.saes.refs import list_saes
from saelake.ingest.saes.sae import load_sae
from saelake.warehouse.errors import UserError
from tests.ingest.saes import local, recipe_of
from tests.ingest.tiny import D_MODEL, save_sae

Spoil = Callable[[Path], object]
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


def text(content: str) -> Spoil:
    return lambda folder: (folder / CONFIG).write_text(content)


def fields(**changes: Any) -> Spoil:
    return lambda folder: (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | changes))


def topk(k: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        save_sae(folder, architecture="topk", k=k)

    return spoil


def without(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        del config[name]
        (folder / CONFIG).write_text(json.dumps(config))

    return spoil


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file(held, folder / WEIGHTS)

    return spoil


def header(change: Callable[[dict[str, Any]], object], length: int | None = None) -> Spoil:
    def spoil(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        (n,) = struct.unpack("<Q", content[:8])
        told = json.loads(content[8 : 8 + n])
        change(told)
        raw = json.dumps(told).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", length or len(raw)) + raw + content[8 + n :])

    return spoil


def in_place(name: str, make: Callable[[Path], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return spoil


HOSTILE: dict[str, tuple[Spoil, str]] = {
    "a list": (text("[1, 2]"), "not an object"),
    "a number": (text("7"), "holds 7, not an object"),
    "null": (text("null"), "holds null, not an object"),
    "nothing": (text(""), "cfg.json"),
    "text": (text("W_enc"), "cfg.json"),
    "brackets without end": (text("[" * 500_000), "cfg.json"),
    "a name twice": (text('{"d_in": 1, "d_in": 2}'), "'d_in' twice"),
    "NaN": (text('{"d_in": NaN}'), "NaN is not a number"),
    "a number past all": (text('{"d_in": 4, "d_sae": 8, "x": [1e400]}'), "too large"),
    "digits without end": (text(f'{{"d_in": {"9" * 10_000}}}'), "cfg.json"),
    "text that is not UTF-8": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe{"), "cfg.json"),
    "megabytes": (text(" " * (1 << 21)), "more than"),
    "no width": (without("d_sae"), "has no d_sae"),
    "a width of text": (fields(d_sae="many"), 'd_sae in the configuration of {folder} is "many"'),
    "a width of 0": (fields(d_sae=0), "is 0, not a number of 1 or more"),
    "a width that is true": (fields(d_in=True), "d_in in the configuration"),
    "a fractional width": (fields(d_in=32.5), "d_in in the configuration"),
    "a width of another file": (fields(d_sae=41), "W_enc of shape"),
    "an architecture that is a list": (fields(architecture=["jumprelu"]), "architecture in the configuration"),
    "metadata that is a list": (fields(metadata=[1]), "metadata in the configuration"),
    "a hook that is a number": (fields(metadata={"hook_name": 3}), "hook_name in the configuration"),
    "a version that is a number": (fields(metadata={"sae_lens_version": 6}), "sae_lens_version in the configuration"),
    "a flag that is text": (fields(apply_b_dec_to_input="no"), "apply_b_dec_to_input in the configuration"),
    "a norm that is an object": (fields(normalize_activations={}), "normalize_activations in the configuration"),
    "a scale below 0": (fields(metadata={"norm_scaling_factor": -1}), "norm_scaling_factor"),
    "k over the width": (topk(100), "k in the configuration of {folder} is 100: a TopK SAE of width 40"),
    "k of 0": (topk(0), "k in the configuration of {folder} is 0"),
    "k below 0": (topk(-3), "is -3"),
    "k of text": (topk("all"), 'is "all"'),
    "no k": (topk(None), "is null"),
    "a key missing": (tensors(lambda t: t.pop("threshold")), "lacks threshold, which a jumprelu SAE needs"),
    "keys missing": (tensors(lambda t: (t.pop("W_dec"), t.pop("b_enc"))), "lacks W_dec, b_enc"),
    "a threshold of another shape": (tensors(lambda t: t.update(threshold=torch.zeros(3))), "a threshold of shape (3)"),
    "matrices the other way round": (tensors(lambda t: t.update(W_enc=t["W_enc"].T.contiguous())), "W_enc of shape (40, "),
    "whole numbers": (tensors(lambda t: t.update(b_dec=torch.zeros(D_MODEL, dtype=torch.int32))), '"I32", not floating-point'),
    "a header that ends elsewhere": (header(lambda _: None, length=2**62), "its header has"),
    "a header that is none": (header(lambda h: h.clear(), length=3), "cannot be loaded"),
    "a tensor past the end": (
        header(lambda h: h["b_dec"].update(data_offsets=[10**9, 10**9 + 4 * D_MODEL])),
        "b_dec is not where",
    ),
    "a shape that does not fit": (header(lambda h: h["b_dec"].update(shape=[2**40])), "b_dec is not where"),
    "a negative shape": (header(lambda h: h["b_dec"].update(shape=[-1])), "b_dec has no shape"),
    "offsets that are none": (header(lambda h: h["b_dec"].update(data_offsets="x")), "cannot be loaded"),
    "weights that are cut": (lambda f: os.truncate(f / WEIGHTS, (f / WEIGHTS).stat().st_size - 4), "cut or damaged"),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), "cannot be loaded"),
    "weights that are a pipe": (in_place(WEIGHTS, os.mkfifo), "is not a regular file"),
    "a configuration that is a pipe": (in_place(CONFIG, os.mkfifo), "is not a regular file"),
    "a configuration without end": (in_place(CONFIG, lambda p: p.symlink_to("/dev/zero")), "is not a regular file"),
    "weights without end": (in_place(WEIGHTS, lambda p: p.symlink_to("/dev/zero")), "is not a regular file"),
    "a configuration that is a folder": (in_place(CONFIG, Path.mkdir), "is not a regular file"),
    "no configuration": (in_place(CONFIG, lambda _: None), "cfg.json: No such file"),
    "weights of another name": (lambda f: (f / WEIGHTS).rename(f / "w.safetensors"), "No such file"),
    "pickled weights": (lambda f: (f / WEIGHTS).rename(f / "sae_weights.pt"), "pickled weights are not read"),
    "an archive of numpy": (lambda f: (f / WEIGHTS).rename(f / "params.npz"), "No such file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_folder_that_is_not_what_it_says_is_refused(name: str, tmp_path: Path) -> None:
    spoil, says = HOSTILE[name]
    folder = save_sae(tmp_path / "layer_0")
    spoil(folder)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(UserError) as refused:
        local(tmp_path)
    assert says.format(folder=folder) in str(refused.value)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600
    assert time.monotonic() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


@pytest.mark.parametrize("tensor", ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_named(tensor: str, value: float, tmp_path: Path) -> None:
    folder = save_sae(tmp_path / "layer_0")
    tensors(lambda t: t[tensor].view(-1)[:1].fill_(value))(folder)
    (ref,) = local(tmp_path)
    with pytest.raises(UserError, match=f"values in {tensor} that are not finite"):
        load_sae(ref)


def test_a_name_that_is_too_long_ends_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"saes\.path: .*name too long"):
        list_saes(recipe_of(path=tmp_path / ("x" * 300) / "layer_{layer}", layers=[0]))
