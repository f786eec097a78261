"""The SAEs of a study at work: all kept on the device where they fit beside the model, else one at a time."""

import os
from collections.abc import Mapping

import torch

from saelake.ingest.saes.facts import SaeFacts
from saelake.ingest.saes.sae import Sae, load_sae
from saelake.warehouse.errors import UserError

WORKING_SHARE = 0.75
"""Of what is free, SAEs may take this much: the rest is for forward passes and pre-activations."""
HOST_SHARE = 0.25
"""Of main memory, residuals that wait for their SAE may take this much."""


class Shelf:
    """SAEs by their numbers in the study, loaded when they are asked for.

    Raises UserError when not even the largest fits.
    """

    def __init__(self, facts: Mapping[int, SaeFacts], device: torch.device) -> None:
        self._facts = facts
        self._device = device
        self._held: dict[int, Sae] = {}
        room = WORKING_SHARE * free_bytes(device)
        largest = max(facts.values(), key=lambda one: one.n_bytes)
        if largest.n_bytes > room:
            raise UserError(
                f"saes: {largest.ref.location} needs {largest.n_bytes / 1e9:.1f} GB, but beside the model there is room for "
                f"{room / 1e9:.1f} GB on {device.type}: use a device with more memory, or narrower SAEs"
            )
        self.all_fit = sum(one.n_bytes for one in facts.values()) <= room
        """Whether they all stay loaded; if not, whoever asks should use one SAE for as much as possible."""

    @property
    def numbers(self) -> list[int]:
        """In the order of the recipe."""
        return list(self._facts)

    def __getitem__(self, number: int) -> Sae:
        """An SAE. Where they do not all fit, the one held before is given up first."""
        if number not in self._held:
            if not self.all_fit:
                self._held.clear()
            self._held[number] = load_sae(self._facts[number].ref, self._device)
        return self._held[number]


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a CUDA device, or half of main memory where the model shares it."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return host_bytes() // 2


def host_bytes() -> int:
    """Size of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
