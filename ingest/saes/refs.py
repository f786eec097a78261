"""Which SAEs a recipe names, exactly, without loading them: no torch, so that `saelake plan` can say.

SAELens' directory of releases is read from the file that sae-lens installs, because importing sae_lens imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from saelake.ingest.fingerprint import SAE_FILES, hash_folder, hub_commit, require_weights
from saelake.ingest.recipe import Recipe, SaesSpec
from saelake.ingest.recipe.errors import nearest
from saelake.ingest.saes.folder import check_folder
from saelake.warehouse.durable import sha256_text
from saelake.warehouse.errors import UserError


@dataclass(frozen=True)
class SaeRef:
    """One exact SAE."""

    sae_id: str
    """Short key in tables, e.g. layer_03-1f2e3d4c: the layer and the start of `content_hash`."""
    name: str
    """The SAE in full: release/id@commit, or folder@sha256:hash."""
    layer: int
    """The block at one of whose sites it reads, counted from 0."""
    content_hash: str
    """sha256 of the folder's files, or of release, id and commit; in hex."""
    declared_l0: float | None
    """Mean number of active latents a token that the recipe, or else SAELens' directory, declares."""
    path: Path | None
    release: str | None
    release_id: str | None
    published_threshold: bool = False
    """Llama Scope only: the threshold as published, where SAELens multiplies it by the scale of the input."""

    @property
    def location(self) -> str:
        """Where it is loaded from: a folder, or release/id; of one that was given as an object its sae_id."""
        if self.path is not None:
            return str(self.path)
        return self.sae_id if self.release is None else f"{self.release}/{self.release_id}"


def list_saes(recipe: Recipe) -> list[SaeRef]:
    """The SAEs of a recipe, group by group in the order of their layers.

    Raises UserError for a folder without weights or with others than it declares, an unknown release or id, a hub repository
    that cannot be reached or is at another commit than the recipe asserts.
    """
    refs = [ref for spec in recipe.sae_groups for ref in (_local(spec) if spec.path is not None else _released(spec))]
    known: dict[str, SaeRef] = {}
    for ref in refs:
        first = known.setdefault(ref.sae_id, ref)
        if first is not ref and first.location == ref.location:
            raise UserError(f"saes: {ref.location} is named twice for layer {ref.layer}")
        if first is not ref:
            raise UserError(f"saes: {first.location} and {ref.location} are one SAE, and both are named for layer {ref.layer}")
    return refs


NEXT_OF_LAYER = 1000


def numbered(refs: Sequence[SaeRef]) -> dict[int, SaeRef]:
    """The SAEs of a study by the numbers that arrays hold: an SAE's layer, and for the n-th further one of a layer n * 1000 more.

    So a number stays what it is when SAEs of other layers are added.
    """
    found: dict[int, SaeRef] = {}
    for ref in refs:
        number = ref.layer
        while number in found:
            number += NEXT_OF_LAYER
        found[number] = ref
    return found


def layer_of(number: Any) -> Any:
    """The layer of the SAE with a number, or of those of an array of numbers."""
    return number % NEXT_OF_LAYER


def sae_id_of(layer: int, content_hash: str) -> str:
    """The short key of an SAE in tables."""
    return f"layer_{layer:02d}-{content_hash[:8]}"


def _local(spec: SaesSpec) -> list[SaeRef]:
    refs = []
    for layer in spec.layers:
        folder = Path(spec.fill(str(spec.path), layer))
        try:
            is_there = folder.is_dir()
        except OSError as error:
            raise UserError(f"saes.path: {str(folder)[:200]}... cannot be read ({error.strerror})") from error
        if not is_there:
            raise UserError(f"saes.path: there is no SAE folder {folder} for layer {layer}: `saelake train-saes` makes them")
        field = f"saes.path, layer {layer}"
        require_weights(folder, SAE_FILES, field)
        check_folder(folder)
        content_hash = hash_folder(folder, SAE_FILES, field)
        name = f"{folder.name}@sha256:{content_hash}"
        key = sae_id_of(layer, content_hash)
        refs.append(SaeRef(key, name, layer, content_hash, spec.declared_l0(layer), folder, None, None))
    return refs


@dataclass(frozen=True)
class Listed:
    """What SAELens' directory says about the SAEs of a release that a recipe names."""

    repository: str
    conversion: str
    """Which of SAELens' loaders reads it."""
    ids: list[str]
    folders: list[str]
    """Where in the repository each lies."""
    l0s: list[float | None]


def listed_saes(spec: SaesSpec) -> Listed:
    """The released SAEs of a recipe, in the order of its layers; raises UserError for an unknown release or id. No network."""
    assert spec.release is not None, "no release"
    assert spec.id is not None, "no id"
    listed = _release(spec.release)
    ids = [spec.fill(spec.id, layer) for layer in spec.layers]
    if listed is None:
        return Listed(spec.release, "sae_lens", ids, ids, [None] * len(ids))
    known = {str(entry["id"]): entry for entry in listed["saes"]}
    for release_id in ids:
        if release_id not in known:
            raise UserError(f"saes.id: release {spec.release} has no SAE {release_id!r}{nearest(release_id, known)}")
    folders = [str(known[release_id]["path"]) for release_id in ids]
    l0s = [known[release_id].get("l0") or None for release_id in ids]
    return Listed(str(listed["repo_id"]), str(listed.get("conversion_func") or "sae_lens"), ids, folders, l0s)


def _released(spec: SaesSpec) -> list[SaeRef]:
    listed = listed_saes(spec)
    commit = hub_commit(listed.repository, None, "saes.release")
    if spec.revision not in (None, commit):
        raise UserError(
            f"saes.revision is {spec.revision}, but {listed.repository} is at commit {commit}, which SAELens would load"
        )
    refs = []
    published = spec.threshold == "published"
    for layer, release_id, l0 in zip(spec.layers, listed.ids, listed.l0s, strict=True):
        name = f"{spec.release}/{release_id}@{commit}" + (" (threshold as published)" if published else "")
        content_hash = sha256_text(name)
        declared = spec.declared_l0(layer)
        key = sae_id_of(layer, content_hash)
        declared = l0 if declared is None else declared
        refs.append(SaeRef(key, name, layer, content_hash, declared, None, spec.release, release_id, published))
    return refs


def _release(name: str) -> dict[str, Any] | None:
    """SAELens' entry of a release; None for a hub repository that SAELens does not list. Raises UserError when it is neither."""
    text = directory_file().read_text("utf-8")
    # The file has 50,000 lines: only the entry itself is parsed. Entries start in the first column.
    start = text.find(f"\n{name}:\n") + 1
    if text.startswith(f"{name}:\n"):
        entry = text
    elif start:
        entry = text[start:]
    elif "/" in name:
        return None
    else:
        releases = [line[:-1] for line in text.splitlines() if line.endswith(":") and not line.startswith((" ", "-"))]
        raise UserError(f"saes.release: SAELens knows no release {name!r}{nearest(name, releases)}")
    lines = entry.splitlines(keepends=True)
    body = next((n for n, line in enumerate(lines[1:], start=1) if not line.startswith((" ", "-", "\n"))), len(lines))
    parsed: dict[str, dict[str, Any]] = yaml.safe_load("".join(lines[:body]))
    return parsed[name]


def directory_file() -> Path:
    package = find_spec("sae_lens")
    assert package is not None, "sae-lens is a dependency"
    assert package.submodule_search_locations, "sae-lens is a package"
    return Path(package.submodule_search_locations[0], "pretrained_saes.yaml")
