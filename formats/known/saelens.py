"""Data sets of SAELens' CacheActivationsRunner: what is at a hook, dense, with the token ids, which an SAE encodes on the way.

A row is a context: a column by the hook's name, (tokens, width), and `token_ids`. Every SAE of the study that reads at the hook
encodes it, or the one that --sae names. Its weights are those of SAELens' release, or lie in the folder that --weights says, with
{layer} in its name where there are several; that they are the study's SAE shows in their hash.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from saelake.analysis.meaning.explanations import KnownSae
from saelake.extras import require
from saelake.formats.arrow_files import check_streams_whole, tables_of
from saelake.formats.contexts import Firings, check_firings, check_tokens, context_rows
from saelake.formats.joined import Joined
from saelake.formats.json_files import read_json
from saelake.formats.models import check_model
from saelake.formats.registry import Asked, Format, Found
from saelake.formats.spelling import spelling_of
from saelake.formats.weights import weights_of
from saelake.ingest.sites import Site
from saelake.warehouse.errors import UserError
from saelake.warehouse.statistics import FeatureStatistics

OWNER = "import saelens"
TOKENS, STATE = "token_ids", "state.json"
CONFIG = "cache_activations_runner_cfg.json"
"""What the runner puts beside a data set on the hub."""
HOOKS = "select sae_id, hook from saes"


class _Place(NamedTuple):
    """A column of the data set, and the SAEs that read what it holds."""

    column: str
    saes: list[KnownSae]


def _read(files: Sequence[Path], joined: Joined, asked: Asked) -> Found:
    require("compute", OWNER, "sae_lens")
    parts = [file for file in files if file.suffix in (".arrow", ".parquet")]
    if not parts:
        raise UserError(f"{OWNER}: {files[0].parent} has no data-*.arrow and no .parquet: give the folder that SAELens wrote")
    about = _about(files, parts, joined, asked)
    places = _places(parts, joined, asked)
    tokens, fired = _encoded(parts, places, asked.weights)
    for sae, firings in fired.items():
        check_firings(firings, tokens, sae, OWNER)
    spelling = spelling_of(joined, asked.tokenizer, tokens, OWNER)
    about |= {"hooks": [one.column for one in places], "saes": [sae.sae_id for sae in fired], "n_token_rows": len(tokens)}
    return Found(
        lambda first_id: context_rows(first_id, tokens, fired, joined, "saelens", spelling),
        about=about | {"n_nonzeros": sum(map(len, fired.values()))},
        summary=FeatureStatistics,
    )


def _about(files: Sequence[Path], parts: Sequence[Path], joined: Joined, asked: Asked) -> dict[str, Any]:
    """What stands beside the data: which files it has, and which model it is of."""
    about: dict[str, Any] = {}
    for file in files:
        told = read_json(file, OWNER) if file.suffix == ".json" else None
        if told is not None and not isinstance(told, dict):
            raise UserError(f"{OWNER}: {file.name} is not an object")
        if file.name == STATE and told is not None:
            listed = [str(one.get("filename")) for one in told.get("_data_files") or [] if isinstance(one, dict)]
            if absent := sorted(set(listed) - {part.name for part in parts}):
                raise UserError(f"{OWNER}: the data set is not whole: {absent[0]} is missing")
        if file.name == CONFIG and told is not None:
            check_model(str(told.get("model_name") or ""), joined, asked, OWNER)
            about |= {name: told[name] for name in ("model_name", "dataset_path", "hook_name", "context_size") if name in told}
    return about


def _places(parts: Sequence[Path], joined: Joined, asked: Asked) -> list[_Place]:
    """The columns that SAEs of the study read."""
    first = next(tables_of(parts[0], OWNER), None)
    names = [] if first is None else [name for name in first.column_names if name != TOKENS]
    if first is None or TOKENS not in first.column_names:
        raise UserError(f"{OWNER}: {parts[0].name} has no column {TOKENS}, without which nobody knows where a feature fires")
    hooks = {sae_id: _site(hook) for sae_id, hook in joined.ask(HOOKS)}
    wanted = joined.saes if asked.sae is None else [joined.named(asked.sae, "--sae")]
    found = [_Place(name, [sae for sae in wanted if hooks[sae.sae_id] == _site(name)]) for name in names]
    found = [one for one in found if one.saes]
    if not found:
        told = ", ".join(f"{sae.sae_id} {hooks[sae.sae_id]}" for sae in wanted)
        raise UserError(f"{OWNER}: it holds what is at {', '.join(names) or 'no hook'}, where no SAE of it reads: {told}")
    return found


def _site(hook: str) -> str:
    """A hook by one of its names."""
    with suppress(UserError):
        return Site.parse(hook).hook
    return hook


def _encoded(parts: Sequence[Path], places: Sequence[_Place], weights: str | None) -> tuple[np.ndarray, dict[KnownSae, Firings]]:
    """(rows, positions) token ids, and what fires, SAE by SAE."""
    import torch

    from saelake.ingest.capture import nonzeros
    from saelake.ingest.loading import resolve_device
    from saelake.ingest.shards import check_l0

    device = resolve_device("auto")
    saes = {sae: weights_of(sae, weights, device, OWNER) for place in places for sae in place.saes}
    tokens: list[np.ndarray] = []
    found: dict[KnownSae, list[Firings]] = {sae: [] for sae in saes}
    n_rows = 0
    for part in parts:
        check_streams_whole(part, OWNER)
        for table in tables_of(part, OWNER):
            where = f"{OWNER}: {part.name}"
            own = check_tokens(_array(table, TOKENS, 2, where), where)
            if tokens and own.shape[1] != tokens[0].shape[1]:
                raise UserError(f"{where}: it has rows of {own.shape[1]} tokens, and before of {tokens[0].shape[1]}")
            for place in places:
                dense = _array(table, place.column, 3, where)
                if dense.shape[:2] != own.shape or dense.dtype.kind != "f":
                    raise UserError(f"{where}: {place.column} has the shape {dense.shape}, its tokens {own.shape}")
                if not np.isfinite(dense).all():
                    raise UserError(f"{where}: {place.column} has values that are not finite numbers")
                if others := [sae for sae in place.saes if saes[sae].d_in != dense.shape[2]]:
                    raise UserError(
                        f"{where}: {place.column} is {dense.shape[2]} wide, and {others[0].sae_id} reads {saes[others[0]].d_in}: "
                        "it is another model's"
                    )
                flat = torch.from_numpy(dense.reshape(-1, dense.shape[2]).astype(np.float32))
                for sae in place.saes:
                    fired = nonzeros(saes[sae], flat.to(device))
                    row, pos = np.divmod(fired.token, own.shape[1])
                    found[sae].append(Firings(row + n_rows, pos, fired.feature_id, fired.activation))
            tokens.append(own)
            n_rows += len(own)
    for sae, some in found.items():
        check_l0(saes[sae], sum(map(len, some)) / sum(map(np.size, tokens)))
    return np.concatenate(tokens), {sae: Firings.joined(some) for sae, some in found.items()}


def _array(table: Any, column: str, n_dims: int, where: str) -> np.ndarray:
    """A column of lists as one array; raises UserError where they are not all as long."""
    if column not in table.column_names:
        raise UserError(f"{where}: it has no column {column}, which the first file has")
    values: Any = table[column].combine_chunks()
    values = getattr(values, "storage", values)
    shape = [len(values)]
    for _ in range(n_dims - 1):
        is_fixed = pa.types.is_fixed_size_list(values.type)
        if not (is_fixed or pa.types.is_list(values.type) or pa.types.is_large_list(values.type)) or values.null_count:
            raise UserError(f"{where}: {column} is not a list of {n_dims - 1} dimensions")  # views are none: they may overlap
        lengths = (
            [values.type.list_size] if is_fixed else np.unique(values.value_lengths().to_numpy(zero_copy_only=False)).tolist()
        )
        if len(lengths) != 1:
            raise UserError(f"{where}: {column} has lists of {lengths[:2]} items: they are to be as long as one another")
        shape.append(int(lengths[0]))
        values = values.flatten()
    if values.null_count or not hasattr(values, "to_numpy") or str(values.type) in ("string", "bool", "large_string", "binary"):
        raise UserError(f"{where}: {column} holds no numbers, or none in places")
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)


FORMAT = Format(
    what="data sets of SAELens' CacheActivationsRunner: dense activations at a hook, encoded on the way",
    read=_read,
    files=("data-*.arrow", STATE, "*.parquet", "data/*.parquet", CONFIG),
    reads=frozenset({"sae", "weights", "tokenizer", "model"}),
)
