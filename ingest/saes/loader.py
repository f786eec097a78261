"""The SAEs of a study at work: all on the device where they fit beside the model, else in main memory, or in mapped files.

Ablation needs the rows in use and copies them alone to the device. What needs whole SAEs goes from one to the next: one is on the
device at a time.
"""

import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from saelake.ingest.saes.description import SaeDescription
from saelake.ingest.saes.sae import Sae, Weights, load_sae, moved, replaced
from saelake.warehouse.errors import UserError
from saelake.warehouse.machine import host_bytes

WORKING_SHARE = 0.75
"""Of what is free, SAEs may take this much: the rest is for forward passes and pre-activations."""
HOST_SHARE = 0.25
"""Of main memory, residuals that wait for their SAE may take this much."""
KEPT_SHARE = 0.5
"""Of main memory, SAEs that are not on the device may take this much: beyond it they lie in files, of which the system keeps in
memory what is used."""
SMALL = 1 << 20
"""Bytes of a tensor that is not worth a file."""


class SaeLoader(Mapping[int, Sae]):
    """SAEs by their numbers in the study, loaded when their weights are asked for, once.

    Raises UserError when not even the largest fits.
    """

    def __init__(self, descriptions: Mapping[int, SaeDescription], device: torch.device) -> None:
        self._descriptions = descriptions
        self._device = device
        self._held: dict[int, Weights] = {}
        self._whole: tuple[int, Sae] | None = None
        self._n_bytes = sum(one.n_bytes for one in descriptions.values())
        room = WORKING_SHARE * free_bytes(device)
        largest = max(descriptions.values(), key=lambda one: one.n_bytes, default=None)
        if largest and largest.n_bytes > room:
            raise UserError(
                f"saes: {largest.ref.location} needs {largest.n_bytes / 1e9:.1f} GB, but beside the model there is room for "
                f"{room / 1e9:.1f} GB on {device.type}: use a device with more memory, or narrower SAEs"
            )
        self.all_fit = self._n_bytes <= room
        """Whether they all stay on the device; if not, who needs them whole should use one for as much as possible."""
        self._saes = {n: Sae(one, partial(self._weights, n), not self.all_fit) for n, one in descriptions.items()}

    def __getitem__(self, number: int) -> Sae:
        return self._saes[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._saes)

    def __len__(self) -> int:
        return len(self._saes)

    def whole(self, number: int) -> Sae:
        """An SAE with all its weights on the device. Where they do not all fit, the one that was there before is given up."""
        if self.all_fit:
            return self._saes[number]
        if self._whole is None or self._whole[0] != number:
            self._whole = None  # before the next one comes
            kept = self._held.get(number)
            one = self._descriptions[number]
            sae = load_sae(one.ref, self._device) if kept is None else Sae.of(one, moved(kept, self._device))
            self._whole = number, sae
        return self._whole[1]

    def _weights(self, number: int) -> Weights:
        self._whole = None  # rows are read now: the device has room for passes
        if number not in self._held:
            where = self._device if self.all_fit else torch.device("cpu")
            weights = load_sae(self._descriptions[number].ref, where).load()
            self._held[number] = weights if self.all_fit else self._laid_by(weights)
        return self._held[number]

    def _laid_by(self, weights: Weights) -> Weights:
        """For rows to be read one by one: an encoder's in one piece each, in page-locked memory beside CUDA, or in a file."""
        in_memory = self._n_bytes <= KEPT_SHARE * host_bytes()
        pinned = in_memory and self._device.type == "cuda"

        def laid(one: Tensor) -> Tensor:
            if one.numel() * one.element_size() < SMALL:
                return one
            across = one.shape == weights.W_enc.shape and one.shape[0] < one.shape[1]
            rows = one.T if across else one
            kept = _in_memory(rows, pinned) if in_memory else _in_a_file(rows)
            return kept.T if across else kept

        return replaced(weights, laid, torch.device("cpu"))


def _in_memory(rows: Tensor, pinned: bool) -> Tensor:
    return rows.contiguous().pin_memory() if pinned else rows.contiguous()


def _in_a_file(rows: Tensor) -> Tensor:
    """The same in a file that is gone when nobody holds the tensor any more."""
    with tempfile.TemporaryDirectory(prefix="saelake-") as folder:
        file = str(Path(folder, "rows"))
        kept = torch.from_file(file, shared=True, size=rows.numel(), dtype=rows.dtype).view(rows.shape)
    return kept.copy_(rows)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a CUDA device, or half of main memory where the model shares it."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return host_bytes() // 2
