"""The weights of an SAE that a lake knows by its name, for imports that encode on the way."""

from pathlib import Path
from typing import TYPE_CHECKING

from saelake.analysis.meaning.explanations import KnownSae
from saelake.ingest.fingerprint import SAE_FILES, hash_folder, hub_commit
from saelake.ingest.saes.labels import read_directory
from saelake.ingest.saes.refs import SaeRef
from saelake.warehouse.errors import UserError

if TYPE_CHECKING:
    import torch

    from saelake.ingest.saes.sae import Sae

HASHED = "@sha256:"
AS_PUBLISHED = " (threshold as published)"


def weights_of(sae: KnownSae, folder: str | None, device: "torch.device", owner: str) -> "Sae":
    """The SAE itself, on a device.

    Args:
        folder: where a person says that its weights are, with {layer} in its name where there are several.
    Raises UserError where that holds another SAE, by its hash, or where it is not said and no release is known to have it.
    """
    from saelake.ingest.saes.sae import load_sae

    return load_sae(_released(sae, owner) if folder is None else _in_folder(sae, folder), device)


def _in_folder(sae: KnownSae, folder: str) -> SaeRef:
    place = Path(folder.replace("{layer}", str(sae.layer)))
    if not place.is_dir():
        raise UserError(f"--weights: there is no folder {place}")
    _, is_hashed, wanted = sae.name.partition(HASHED)
    if not is_hashed:
        raise UserError(f"--weights says nothing about {sae.sae_id}, which SAELens loads as {sae.name}: leave it out")
    found = hash_folder(place, SAE_FILES, "--weights")
    if found != wanted:
        raise UserError(
            f"--weights: {place} holds another SAE than {sae.sae_id}: its files have the sha256 {found[:12]}..., "
            f"and the study's {wanted[:12]}..."
        )
    return SaeRef(sae.sae_id, sae.name, sae.layer, found, None, place, None, None)


def _released(sae: KnownSae, owner: str) -> SaeRef:
    known, _, commit = sae.name.removesuffix(AS_PUBLISHED).partition("@")
    if HASHED in sae.name or known not in read_directory().places:
        raise UserError(f"{owner}: say where the weights of {sae.sae_id} ({sae.name[:80]}) are: --weights FOLDER")
    place = read_directory().places[known]
    if (now := hub_commit(place.repository, None, owner)) != commit:
        raise UserError(f"{owner}: {place.repository} is at commit {now[:12]}, and the study has {sae.sae_id} of {commit[:12]}")
    release, _, release_id = known.partition("/")
    return SaeRef(sae.sae_id, sae.name, sae.layer, commit, None, None, release, release_id, sae.name.endswith(AS_PUBLISHED))
