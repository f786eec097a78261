"""Judges the folder of an SAE before anything believes it: the shape of cfg.json, and that the weights are what it declares.

Only cfg.json and the header of the weights file are read, both small, and only from regular files: a pipe is not waited for.
No torch.
"""

import json
import math
import os
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saelake.warehouse.durable import UNWAITING
from saelake.warehouse.errors import UserError, one_line

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
LARGEST_JSON = 1 << 20
"""Bytes of a configuration, or of the header of a weights file; an SAE has a few tensors."""
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
COMMON = ("W_enc", "W_dec", "b_dec")
NEEDED = {
    "standard": (*COMMON, "b_enc"),
    "topk": (*COMMON, "b_enc"),
    "jumprelu": (*COMMON, "b_enc", "threshold"),
    "gated": (*COMMON, "b_gate", "b_mag", "r_mag"),
    "transcoder": (*COMMON, "b_enc"),
    "skip_transcoder": (*COMMON, "b_enc", "W_skip"),
    "jumprelu_transcoder": (*COMMON, "b_enc", "threshold"),
    "jumprelu_skip_transcoder": (*COMMON, "b_enc", "threshold", "W_skip"),
}
"""Tensors that SAELens reads, by architecture."""
BOOLEANS = ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "finetuning_scaling_factor", "prepend_bos")
TEXTS = (
    "architecture",
    "dtype",
    "device",
    "sae_lens_version",
    "hook_point",
    "hook_name",
    "hf_hook_name",
    "hook_name_out",
    "hf_hook_name_out",
    "reshape_activations",
)


def check_folder(folder: Path) -> None:
    """Raises UserError unless cfg.json is one of an SAE and the weights file holds the tensors and sizes that it declares."""
    config = read_config(folder / CONFIG)
    check_config(config, str(folder))
    tensors = read_header(folder / WEIGHTS)
    architecture = str(config.get("architecture") or "standard")
    if "activation_fn_kwargs" in config and "k" in (config["activation_fn_kwargs"] or {}):
        architecture = "topk"
    needed = NEEDED.get(architecture, ())
    if absent := [name for name in needed if name not in tensors]:
        raise UserError(f"saes: {folder / WEIGHTS} lacks {', '.join(absent)}, which a {architecture} SAE needs: save it again")
    d_in, d_sae = config["d_in"], config["d_sae"]
    d_out = config.get("d_out") or d_in
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,), "W_skip": (d_out, d_in)}
    for name in needed:
        declared = shapes.get(name, (d_sae,))
        if tensors[name] != declared:
            raise UserError(
                f"saes: {folder / WEIGHTS} has a {name} of shape {_shape(tensors[name])}, and by d_in = {d_in}, d_sae = {d_sae} "
                f"in {CONFIG} it has {_shape(declared)}: one of the files belongs to another SAE"
            )


def check_config(config: Mapping[str, Any], location: str) -> None:
    """Raises UserError for a field of an SAE's configuration that is not what it should be; names of fields are SAELens'."""
    for name in ("d_in", "d_sae"):
        if name not in config:
            raise UserError(f"saes: the configuration of {location} has no {name}: it is not one of an SAE that SAELens saved")
        if not _is_count(config[name]):
            raise UserError(
                f"saes: {name} in the configuration of {location} is {_as_json(config[name])}, not a number of 1 or more"
            )
    metadata = config.get("metadata")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise UserError(f"saes: metadata in the configuration of {location} is {_as_json(metadata)}, not an object")
    kwargs = config.get("activation_fn_kwargs")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise UserError(f"saes: activation_fn_kwargs in the configuration of {location} is {_as_json(kwargs)}, not an object")
    fields = {**config, **(kwargs or {}), **(metadata or {})}
    for names, kind, word in ((BOOLEANS, bool, "neither true nor false"), (TEXTS, str, "no text")):
        for name in names:
            if fields.get(name) is not None and not isinstance(fields[name], kind):
                raise UserError(f"saes: {name} in the configuration of {location} is {_as_json(fields[name])}, {word}")
    if not isinstance(config.get("normalize_activations", "none"), str | bool | None):
        raise UserError(
            f"saes: normalize_activations in the configuration of {location} is {_as_json(config['normalize_activations'])}"
        )
    scale = fields.get("norm_scaling_factor")
    if scale is not None and not (isinstance(scale, int | float) and not isinstance(scale, bool) and 0 < scale < math.inf):
        raise UserError(
            f"saes: norm_scaling_factor in the configuration of {location} is {_as_json(scale)}, not a number above 0"
        )
    k = {"k": config.get("k"), **(kwargs or {})}["k"]
    is_topk = config.get("architecture") == "topk" or "k" in (kwargs or {})
    if is_topk and not (_is_count(k) and k <= config["d_sae"]):
        raise UserError(
            f"saes: k in the configuration of {location} is {_as_json(k)}: a TopK SAE of width {config['d_sae']} keeps from 1 to "
            f"{config['d_sae']} latents a token"
        )


def read_config(file: Path) -> dict[str, Any]:
    """A cfg.json as it stands; raises UserError for what is not a regular file, or not a JSON object with every name once."""
    where = f"saes: the configuration of {file.parent} cannot be read"
    try:
        config = json.loads(_bytes_of(file, 0, LARGEST_JSON), object_pairs_hook=_once, parse_constant=_refuse_constant)
        if not isinstance(config, dict):
            raise ValueError(f"it holds {_as_json(config)}, not an object")
        if not all(math.isfinite(number) for number in _floats(config)):
            raise ValueError("it has a number that is too large")
    except (OSError, ValueError, RecursionError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
        raise UserError(f"{where} ({file.name}: {reason})") from error
    return config


def read_header(file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors in a safetensors file; raises UserError unless they are numbers that lie in the file."""
    try:
        (length,) = struct.unpack("<Q", _bytes_of(file, 0, 8, whole=False))
        if length > LARGEST_JSON:
            raise ValueError(f"its header has {length:,} bytes, those of SAEs have less than {LARGEST_JSON:,}")
        header = json.loads(_bytes_of(file, 8, length, whole=False), object_pairs_hook=_once)
        if not isinstance(header, dict):
            raise ValueError("its header is not an object")
        n_bytes = file.stat().st_size - 8 - length
        return {name: _tensor(name, entry, n_bytes) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, TypeError, KeyError, RecursionError, struct.error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
        raise UserError(f"saes: {file.parent} cannot be loaded ({file.name}: {reason})") from error


def _tensor(name: str, entry: Mapping[str, Any], n_bytes: int) -> tuple[int, ...]:
    shape = tuple(entry["shape"])
    if entry["dtype"] not in ITEM_BYTES:
        raise ValueError(f"{name} holds {_as_json(entry['dtype'])}, not floating-point numbers")
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"{name} has no shape")
    first, last = entry["data_offsets"]
    if not 0 <= first <= last <= n_bytes or last - first != math.prod(shape) * ITEM_BYTES[entry["dtype"]]:
        raise ValueError(f"{name} is not where its header says: the file is cut or damaged")
    return shape


def _bytes_of(file: Path, start: int, most: int, whole: bool = True) -> bytes:
    """Up to `most` bytes of a regular file; raises ValueError for anything else, or where the `whole` rest is longer."""
    with os.fdopen(os.open(file, os.O_RDONLY | UNWAITING), "rb") as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise ValueError("it is not a regular file")
        opened.seek(start)
        content = opened.read(most + whole)
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return content


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None:
        raise ValueError(f"it has {twice!r} twice")
    return dict(pairs)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _floats(item)


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _as_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _shape(shape: Sequence[int]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
