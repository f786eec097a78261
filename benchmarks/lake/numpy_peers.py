"""The peers whose users read arrays: delphi's latent cache, by its own package, and SciPy's compressed rows, memory-mapped.

Each answers from its files with the quickest NumPy and SciPy that its format allows.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import sparse

from benchmarks.lake.answers import Cofiring, Firings, Samples, Statistics, cofiring, summed, top_samples
from benchmarks.lake.captured import Captured

N_SPLITS = 5
"""delphi's own default"""


class Delphi:
    """delphi's LatentCache: uint16 locations and float16 activations in safetensors, split by latent.

    Args:
        own_loader: read by delphi's TensorBuffer; else the same files are memory-mapped, which is faster.
    """

    def __init__(self, captured: Captured, folder: Path, own_loader: bool) -> None:
        self._captured, self._folder, self._own_loader = captured, folder, own_loader
        self._cache: object = None

    def take(self) -> None:
        """Fills the cache's memory with the rows, as its `add` leaves them after the last batch."""
        import torch
        from delphi.latents.cache import LatentCache

        shape = self._captured.shape
        cache = LatentCache(None, {}, batch_size=64)  # the model has run
        cache.width = shape.width
        tokens = torch.zeros(shape.n_prompts, shape.tokens_per_prompt, dtype=torch.int64)
        for number, layer in enumerate(self._captured.layers):
            prompt, pos = np.divmod(layer.token, shape.tokens_per_prompt)
            name = f"model.layers.{number}"
            cache.cache.latent_locations[name] = torch.from_numpy(np.stack([prompt, pos, layer.feature_id], 1).astype(np.int64))
            cache.cache.latent_activations[name] = torch.from_numpy(layer.activation)
            cache.cache.tokens[name] = tokens
        self._cache = cache

    def write(self) -> None:
        """`save_splits`, as delphi's own pipeline does."""
        self._cache.save_splits(N_SPLITS, self._folder)  # type: ignore[attr-defined]

    def share(self, other: "Delphi") -> None:
        """Writes from the memory of another one."""
        self._cache = other._cache

    def forget(self) -> None:
        """Lets go of the cache's memory."""
        self._cache = None

    def statistics(self) -> Statistics:
        shape = self._captured.shape
        layers = []
        for number in range(shape.n_layers):
            parts = [self._read(path, None) for path in self._files(number)]
            feature, token, activation = (np.concatenate(column) for column in zip(*parts, strict=True))
            layers.append(_by_feature(feature, token, activation, shape.width))
        return summed(layers, shape.tokens_per_prompt, self._captured.harmful)

    def top_samples(self, features: dict[int, np.ndarray], n: int) -> Samples:
        return top_samples(self._rows_of(features), self._captured.shape.tokens_per_prompt, n)

    def cofiring(self, features: dict[int, np.ndarray]) -> Cofiring:
        return cofiring(self._rows_of(features), features, self._captured.shape)

    def prompt(self, prompt: int) -> int:
        """Everything of one prompt; returns the number of rows."""
        length = self._captured.shape.tokens_per_prompt
        n = 0
        for number in range(self._captured.shape.n_layers):
            for path in self._files(number):
                if self._own_loader:
                    feature_id, token, activation = self._read(path, None)
                    mine = token // length == prompt
                    n += len((feature_id[mine], token[mine], activation[mine])[0])
                else:
                    locations, activations, _ = _mapped(path)
                    # Rows lie in the order of the capture, so a prompt's are found by bisection.
                    first, last = np.searchsorted(locations[:, 0], [prompt, prompt + 1])
                    n += len((locations[first:last].copy(), activations[first:last].copy())[0])
        return n

    def _files(self, number: int) -> list[Path]:
        return sorted((self._folder / f"model.layers.{number}").glob("*.safetensors"), key=_first_latent)

    def _rows_of(self, features: dict[int, np.ndarray]) -> Iterator[tuple[int, Firings]]:
        for number, ids in features.items():
            parts = [self._read(path, ids) for path in self._files(number)]
            yield number, Firings(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _read(self, path: Path, ids: np.ndarray | None) -> Firings:
        length, first = self._captured.shape.tokens_per_prompt, _first_latent(path)
        if self._own_loader:
            import torch
            from delphi.latents.loader import TensorBuffer

            latents = None if ids is None else torch.from_numpy(ids)
            locations, activations, _ = TensorBuffer(str(path), path.parent.name, latents).load()
            found = locations.numpy()
            return Firings(
                found[:, 2].astype(np.int32), (found[:, 0] * length + found[:, 1]).astype(np.int32), activations.float().numpy()
            )
        found, activation, width = _mapped(path)
        if ids is not None:
            wanted = np.zeros(width, dtype=bool)
            wanted[ids[(ids >= first) & (ids < first + width)] - first] = True
            rows = np.flatnonzero(wanted[found[:, 2]])
            found, activation = found[rows], activation[rows]
        token = found[:, 0] * np.int32(length) + found[:, 1]
        return Firings(found[:, 2] + np.int32(first), token, activation.astype(np.float32))


class Mapped(NamedTuple):
    """One split, memory-mapped."""

    locations: np.ndarray
    """(nnz, 3) uint16: prompt, pos, latent within the split"""
    activations: np.ndarray
    """(nnz,) float16"""
    width: int


def _mapped(path: Path) -> Mapped:
    with path.open("rb") as file:
        n_header = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(n_header))

    def column(name: str, dtype: str) -> np.ndarray:
        start = 8 + n_header + header[name]["data_offsets"][0]
        return np.memmap(path, dtype, "r", start, tuple(header[name]["shape"]))

    first, last = map(int, path.stem.split("_"))
    return Mapped(column("locations", "<u2"), column("activations", "<f2"), last - first + 1)


def _first_latent(path: Path) -> int:
    return int(path.stem.split("_")[0])


class Csr:
    """A SciPy CSR matrix a layer (tokens x features, int32 and float32) in .npy files, memory-mapped."""

    def __init__(self, captured: Captured, folder: Path) -> None:
        self._captured, self._folder = captured, folder

    def write(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        n_tokens = self._captured.n_tokens
        for number, layer in enumerate(self._captured.layers):
            indptr = np.searchsorted(layer.token, np.arange(n_tokens + 1)).astype(np.int32)
            for name, values in (("indptr", indptr), ("indices", layer.feature_id), ("data", layer.activation)):
                np.save(self._folder / f"{number}.{name}.npy", values)

    def statistics(self) -> Statistics:
        """By SciPy's methods."""
        shape, harmful = self._captured.shape, self._captured.harmful
        token = np.arange(self._captured.n_tokens)
        prompt, _ = np.divmod(token[token % shape.tokens_per_prompt > 0], shape.tokens_per_prompt)
        in_prompt = sparse.csr_array((np.ones(len(prompt), np.int32), (prompt, np.arange(len(prompt)))))
        found = []
        for number in range(shape.n_layers):
            fires = self._matrix(number)[token[token % shape.tokens_per_prompt > 0]]
            n_tokens = fires.count_nonzero(axis=0)
            on_prompts = in_prompt @ fires.astype(bool).astype(np.int32)
            counts = [n_tokens, on_prompts.count_nonzero(axis=0), on_prompts[harmful].count_nonzero(axis=0)]
            mean = fires.sum(axis=0, dtype=np.float64) / np.maximum(n_tokens, 1)
            found.append([*counts, mean.astype(np.float32), fires.max(axis=0).toarray().ravel()])
        return Statistics(*(np.stack(column) for column in zip(*found, strict=True)))

    def statistics_by_hand(self) -> Statistics:
        """By SciPy's counting sort and NumPy's reductions, which is faster."""
        shape = self._captured.shape
        layers = []
        for number in range(shape.n_layers):
            columns = self._matrix(number).tocsc()
            layers.append((columns.indptr, columns.indices, columns.data))
        return summed(layers, shape.tokens_per_prompt, self._captured.harmful)

    def top_samples(self, features: dict[int, np.ndarray], n: int) -> Samples:
        return top_samples(self._rows_of(features), self._captured.shape.tokens_per_prompt, n)

    def cofiring(self, features: dict[int, np.ndarray]) -> Cofiring:
        return cofiring(self._rows_of(features), features, self._captured.shape)

    def prompt(self, prompt: int) -> int:
        """Everything of one prompt; returns the number of rows."""
        length = self._captured.shape.tokens_per_prompt
        slices = [self._matrix(n)[prompt * length : (prompt + 1) * length] for n in range(self._captured.shape.n_layers)]
        return sum(part.nnz for part in slices)

    def _matrix(self, number: int) -> sparse.csr_array:
        parts = (np.load(self._folder / f"{number}.{name}.npy", mmap_mode="r") for name in ("data", "indices", "indptr"))
        return sparse.csr_array(tuple(parts), shape=(self._captured.n_tokens, self._captured.shape.width), copy=False)

    def _rows_of(self, features: dict[int, np.ndarray]) -> Iterator[tuple[int, Firings]]:
        for number, ids in features.items():
            matrix = self._matrix(number)
            wanted = np.zeros(self._captured.shape.width, dtype=bool)
            wanted[ids] = True
            places = np.flatnonzero(wanted[matrix.indices])
            token = np.searchsorted(matrix.indptr, places, side="right") - 1
            yield number, Firings(matrix.indices[places], token.astype(np.int32), matrix.data[places])


def _by_feature(feature_id: np.ndarray, token: np.ndarray, activation: np.ndarray, width: int) -> tuple[np.ndarray, ...]:
    """Rows sorted by feature, then token: SciPy's counting sort."""
    grouped = sparse.coo_array((activation, (feature_id, token)), shape=(width, int(token.max(initial=0)) + 1)).tocsr()
    return grouped.indptr, grouped.indices, grouped.data
