"""Fingerprints: short strings that change when the content of a model or SAE changes, found without loading it (no torch).

A local folder is known by the hashes of the files that a loader reads, a hub repository by the commit that its revision
means now.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from saelake.warehouse.durable import sha256_file
from saelake.warehouse.errors import UserError

if TYPE_CHECKING:
    from saelake.ingest.recipe.sections import ModelSpec

MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.txt")
WEIGHTS = {".safetensors", ".npz", ".gguf"}
MAX_BYTES = 2**28
"""Of a file without weights; the largest tokenizers take a fifth."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
SAE_FILES = ("*.json", "*.safetensors", "*.npz")


def fingerprint(model: "ModelSpec") -> str:
    """What identifies the model of a recipe: `sha256:...` of its folder's files, or `id@commit` on the hub; then its adapter.

    Raises UserError when the folder has no model in it, or the hub's id or revision cannot be found.
    """
    adapter = "" if model.adapter is None else f"+sha256:{hash_folder(model.adapter, ADAPTER_FILES, 'model.adapter')}"
    if (folder := model.folder) is not None:
        return f"sha256:{hash_folder(folder, (*MODEL_FILES, model.gguf) if model.gguf else MODEL_FILES, 'model.path')}{adapter}"
    assert model.id is not None, "a ModelSpec has a folder or an id"
    return f"{model.id}@{hub_commit(model.id, model.revision, 'model.id')}{adapter}"


def hash_folder(folder: Path, patterns: Iterable[str], field: str) -> str:
    """sha256 over names and contents of the folder's files that match a pattern; independent of where the folder lies."""
    total = hashlib.sha256()
    for file in require_weights(folder, patterns, field):
        total.update(f"{file.name}\0{sha256_file(file)}\n".encode())
    return total.hexdigest()


def check_files(folder: Path, patterns: Iterable[str], field: str) -> list[Path]:
    """The folder's files that match a pattern, sorted; raises UserError where one is a pipe or a device, or far too large."""
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    if odd := next((file for file in files if not file.is_file()), None):
        raise UserError(f"{field}: {odd} is not a regular file: give a folder with the files themselves")
    if large := next((file for file in files if file.suffix not in WEIGHTS and file.stat().st_size > MAX_BYTES), None):
        raise UserError(f"{field}: {large} is larger than {MAX_BYTES:,} bytes, which no configuration or tokenizer is")
    return files


def require_weights(folder: Path, patterns: Iterable[str], field: str) -> list[Path]:
    """The same; raises UserError also where none has weights."""
    files = check_files(folder, patterns, field)
    if not any(file.suffix in WEIGHTS for file in files):
        raise UserError(
            f"{field}: there are no .safetensors weights in {folder} (pickled weights are not read): convert them first"
        )
    return files


def hub_commit(repo: str, revision: str | None, field: str) -> str:
    """The commit that a revision of a hub model repository means: asked from the hub, else read from the local hub cache."""
    from httpx import HTTPError
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    wanted = revision or constants.DEFAULT_REVISION
    cached = Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}")
    if (cached / "snapshots" / wanted).is_dir():
        return wanted
    try:
        if not constants.HF_HUB_OFFLINE:
            return str(HfApi().model_info(repo, revision=wanted, timeout=20).sha)
    except GatedRepoError as error:
        raise UserError(
            f"{field}: {repo} asks for a licence to be accepted: do so on the hub and log in with `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(
            f"{field}: the hub has no model {repo} with revision {wanted} (or it is private): "
            f"check both, or log in with `hf auth login`"
        ) from error
    except (HTTPError, OSError):
        pass  # no network: the cache decides
    pointer = cached / "refs" / wanted
    if pointer.is_file():
        return pointer.read_text("utf-8").strip()
    raise UserError(
        f"{field}: {repo} with revision {wanted} is not in the local hub cache and the hub cannot be reached: "
        f"run the same command where it can"
    )
