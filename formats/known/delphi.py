"""delphi's latent cache: a folder for each SAE with START_END.safetensors, the features of a range, and config.json.

Each file holds `locations` (row, position, feature less START), `activations` and, as a rule, `tokens`, the same in all. Prompts
of a study have lengths of their own: rows that are written are padded to the longest with token 0, on which nothing fires.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saelake.analysis.meaning.explanations import KnownSae
from saelake.extras import require
from saelake.formats.contexts import Firings, check_firings, check_tokens, context_rows
from saelake.formats.joined import Joined, as_name, saes_of
from saelake.formats.json_files import read_json
from saelake.formats.models import check_model, hashes_of, model_hashes, model_of
from saelake.formats.registry import Asked, Format, Found
from saelake.formats.spelling import spelling_of
from saelake.formats.tensors import read_tensors
from saelake.formats.top_texts import restricted_sets
from saelake.warehouse.errors import UserError
from saelake.warehouse.literals import is_unicode
from saelake.warehouse.statistics import FeatureStatistics

if TYPE_CHECKING:
    from saelake.lake import OpenLake

OWNER = "import delphi"
RANGE = re.compile(r"(\d{1,9})_(\d{1,9})")
LAYER = re.compile(r"(?<!\d)\d+(?!\d)")
CONFIG, PIECES = "config.json", "tokens.json"
IDENTITY = "saelake"
"""Where in config.json saelake says which model and SAE its cache is of, by their hashes; PIECES has its tokens' spelling."""
SHOWN = 'semi join (from prompts where not list_contains($restricted, "set")) using (prompt_id)'
"""Prompts of sets that their recipe calls restricted are left out, as in what is shared."""
N_SPLITS = 5
"""delphi's own default."""


def _read(files: Sequence[Path], joined: Joined, asked: Asked) -> Found:
    parts = sorted((file for file in files if file.suffix == ".safetensors"), key=lambda f: (len(f.stem), f.stem))
    if not parts:
        raise UserError(f"{OWNER}: {files[0].parent} has no START_END.safetensors: give the folder of one SAE of a cache")
    sae = _sae(parts[0].parent.name, joined, asked)
    about: dict[str, Any] = {"module": parts[0].parent.name, "sae": sae.sae_id}
    pieces: dict[int, str] | None = None
    for config in (file for file in files if file.suffix == ".json"):
        told = read_json(config, OWNER)
        if not isinstance(told, dict):
            raise UserError(f"{OWNER}: {config.name} is not an object")
        if config.name == PIECES:
            pieces = _pieces(told)
            continue
        _check_identity(told.get(IDENTITY), sae, joined)
        check_model(str(told.get("model_name") or ""), joined, asked, OWNER)
        about |= {name: told[name] for name in ("model_name", "dataset_repo", "dataset_split", "ctx_len") if name in told}
    tokens, firings = _cache(parts, sae)
    spelling = spelling_of(joined, asked.tokenizer, tokens, OWNER, pieces)
    return Found(
        lambda first_id: context_rows(first_id, tokens, {sae: firings}, joined, "delphi", spelling),
        about=about | {"n_token_rows": len(tokens), "n_nonzeros": len(firings)},
        summary=FeatureStatistics,
    )


def _pieces(told: Mapping[str, Any]) -> dict[int, str]:
    """Token id -> piece, as saelake has written them."""
    for key, piece in told.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 11 and isinstance(piece, str) and is_unicode(piece)):
            raise UserError(f"{OWNER}: {PIECES} is not {{token id: piece}}")
    return {int(key): piece for key, piece in told.items()}


def _check_identity(told: Any, sae: KnownSae, joined: Joined) -> None:
    """Raises UserError where saelake has written the cache from another model or SAE than the study's, by their hashes."""
    if not isinstance(told, dict):
        return
    if told.get("sae") not in (None, sae.name):
        raise UserError(f"{OWNER}: it is of the SAE {str(told['sae'])[:80]}, and {sae.sae_id} is {sae.name[:80]}: it is another")
    hashes, given = model_hashes(joined), told.get("model_hash") or []
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise UserError(f"{OWNER}: {CONFIG} says no list of hashes of its model")
    if hashes and given and not set(given) & set(hashes):
        raise UserError(f"{OWNER}: it is of a model of another hash than that of {joined.name}: it is another model's")


def _sae(module: str, joined: Joined, asked: Asked) -> KnownSae:
    """The SAE of a folder: as said, else by the one number in its name, which is its layer."""
    numbers = LAYER.findall(module)
    if asked.sae is None and module in [sae.sae_id for sae in joined.saes]:
        return joined.named(module, OWNER)
    if asked.sae is None and len(numbers) == 1:
        return joined.named(str(int(numbers[0])), f"{OWNER}: {module}")
    return joined.sae(asked.sae, f"{OWNER}: the folder {module}")


def _cache(parts: Sequence[Path], sae: KnownSae) -> tuple[np.ndarray, Firings]:
    """Tokens and non-zeros of all files, which are one for each range of features and cover the SAE."""
    tokens: np.ndarray | None = None
    found: list[Firings] = []
    ranges = []
    for file in parts:
        where = f"{OWNER}: {file.name}"
        span = RANGE.fullmatch(file.stem)
        if span is None:
            raise UserError(f"{where}: its name is not START_END, the features that it holds")
        first, last = int(span[1]), int(span[2])
        ranges.append((first, last))
        content = read_tensors(file, OWNER)
        if absent := [name for name in ("locations", "activations", "tokens") if name not in content]:
            raise UserError(f"{where}: it has no {absent[0]}")
        own = check_tokens(content["tokens"], where)
        if tokens is not None and not np.array_equal(tokens, own):
            raise UserError(f"{where}: its tokens are not those of {parts[0].name}: they are of two caches")
        tokens = own
        locations, activations = content["locations"], content["activations"]
        if (
            activations.ndim != 1
            or locations.shape != (len(activations), 3)
            or locations.dtype.kind not in "iu"
            or activations.dtype.kind != "f"
        ):
            raise UserError(f"{where}: locations and activations do not fit together")
        for name, values, limit in zip(("row", "position", "feature"), locations.T, (*own.shape, last - first + 1), strict=True):
            if len(values) and (values.min() < 0 or values.max() >= limit):  # of their own type: casts would wrap
                wrong = int(values.max() if values.max() >= limit else values.min())
                if name == "feature":
                    raise UserError(f"{where}: it has feature {wrong + first}, which is past its range")
                raise UserError(f"{where}: there is no {name} {wrong}: the tokens are {own.shape}")
        row, pos, feature = locations.astype(np.int64).T.astype(np.int32)
        with np.errstate(over="ignore"):
            found.append(Firings(row, pos, feature + np.int32(first), activations.astype(np.float32)))
    assert tokens is not None, "there is a file"
    ranges.sort()
    reached = 0
    for first, last in ranges:
        if first != reached or last < first:
            raise UserError(f"{OWNER}: no file has feature {reached}, or two have it: the cache is not whole")
        reached = last + 1
    if reached != sae.width:
        raise UserError(f"{OWNER}: the cache is of an SAE of {reached} features, and {sae.sae_id} has {sae.width}: it is another")
    firings = Firings.joined(found)
    check_firings(firings, tokens, sae, OWNER)
    return tokens, firings


def _write(opened: "OpenLake", folder: Path, asked: Asked) -> Mapping[str, int]:
    require("compute", "export delphi", "safetensors")
    hooks = dict(opened.sql("select sae_id, hook from saes").fetchall())
    layers, restricted = [sae.layer for sae in saes_of(opened)], restricted_sets(opened)
    ids, tokens = _token_rows(opened, restricted)
    written = {}
    for sae in saes_of(opened, asked.sae):
        is_plain = hooks[sae.sae_id].endswith("resid_post") and layers.count(sae.layer) == 1
        module = f"layers.{sae.layer}" if is_plain else as_name(sae.sae_id)
        written[module] = _write_module(opened, folder / module, sae, ids, tokens, restricted)
    return written


def _token_rows(opened: "OpenLake", restricted: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) prompt_ids, and (n, longest) int64 token ids, padded with 0."""
    select = f"select prompt_id, pos, token_id from tokens {SHOWN} order by prompt_id, pos"
    found = opened.sql(select, {"restricted": restricted}).fetchnumpy()
    if not len(found["pos"]):
        raise UserError("export delphi: the study has no tokens, or none but those of restricted prompt sets")
    ids, row = np.unique(np.asarray(found["prompt_id"]), return_inverse=True)
    tokens = np.zeros((len(ids), int(found["pos"].max()) + 1), dtype=np.int64)
    tokens[row, np.asarray(found["pos"])] = np.asarray(found["token_id"])
    return ids, tokens


def _write_module(
    opened: "OpenLake", folder: Path, sae: KnownSae, ids: np.ndarray, tokens: np.ndarray, restricted: list[str]
) -> int:
    from safetensors.numpy import save_file

    folder.mkdir()
    n_splits, n_rows = min(N_SPLITS, sae.width), 0
    asked = {"restricted": restricted, "layer": sae.layer, "sae_id": sae.sae_id}
    bounds = [sae.width * i // n_splits for i in range(n_splits + 1)]
    for first, after in pairwise(bounds):
        found = opened.sql(
            f"select prompt_id, pos, feature_id, activation from activations {SHOWN} where layer = $layer and sae_id = $sae_id "
            "and feature_id between $first and $last order by prompt_id, pos, feature_id",
            {**asked, "first": first, "last": after - 1},
        ).fetchnumpy()
        row = np.searchsorted(ids, np.asarray(found["prompt_id"]))
        place = np.stack([row, np.asarray(found["pos"]), np.asarray(found["feature_id"]) - first], 1)
        small = len(ids) < 2**16 and after - first < 2**16
        split = {
            "locations": place.astype(np.uint16 if small else np.uint32),
            "activations": np.asarray(found["activation"], dtype=np.float32),
            "tokens": tokens,
        }
        save_file(split, folder / f"{first}_{after - 1}.safetensors")
        n_rows += len(row)
    config = {
        "dataset_repo": opened.studies[0],
        "dataset_split": "train",
        "dataset_name": "",
        "dataset_column": "text",
        "batch_size": 32,
        "ctx_len": tokens.shape[1],
        "n_tokens": tokens.size,
        "n_splits": n_splits,
        "model_name": model_of(opened),
        IDENTITY: {"sae": sae.name, "model_hash": hashes_of(opened)},
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    pieces = opened.sql(
        f"select token_id, min(piece) from tokens {SHOWN} where piece is not null group by token_id order by token_id",
        {"restricted": restricted},
    ).fetchall()
    (folder / PIECES).write_text(json.dumps({str(i): piece for i, piece in pieces}, ensure_ascii=False) + "\n", encoding="utf-8")
    return n_rows


FORMAT = Format(
    what="delphi's latent cache: the folder of one SAE, START_END.safetensors and config.json",
    read=_read,
    write=_write,
    files=("*.safetensors", CONFIG, PIECES),
    reads=frozenset({"sae", "tokenizer", "model"}),
    writes=frozenset({"sae"}),
)
