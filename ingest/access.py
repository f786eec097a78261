"""Whether a model may be downloaded: a few are gated behind a licence that a person accepts on the hub. No torch."""

from typing import NamedTuple

from saelake.ingest.model_shape import cached_file
from saelake.ingest.recipe.sections import ModelSpec
from saelake.warehouse.errors import UserError

GATED = {
    "google/gemma-2-": "the Gemma licence",
    "google/gemma-3-": "the Gemma licence",
    "meta-llama/": "the Llama licence",
}
"""How the names of known gated repositories begin; Gemma Scope and Llama Scope are open."""


class Access(NamedTuple):
    """How a model can be had."""

    repository: str
    licence: str | None
    """What has to be accepted, if anything is known to be."""
    state: str
    """here, open, token (one is set, the hub decides), accepted, or refused"""

    @property
    def problem(self) -> str | None:
        """The sentence about what is missing, or None."""
        if self.state != "refused":
            return None
        return (
            f"model.id: {self.repository} asks for {self.licence} to be accepted: do so on its page at "
            f"https://huggingface.co/{self.repository}, then log in with `hf auth login` (or set HF_TOKEN)"
        )


def access_to(model: ModelSpec) -> Access:
    """Access to a recipe's model, as far as the cache, the token and, where it answers, the hub show."""
    if model.folder is not None:
        return Access(model.name, None, "here")
    assert model.id is not None, "a ModelSpec has a folder or an id"
    licence = next((name for start, name in GATED.items() if model.id.startswith(start)), None)
    if cached_file(model.id, "config.json", model.revision) is not None:
        return Access(model.id, licence, "here")
    if licence is None:
        return Access(model.id, None, "open")
    from huggingface_hub import get_token

    return Access(model.id, licence, "refused" if get_token() is None else _asked(model.id))


def require_access(model: ModelSpec) -> None:
    """Raises UserError when a licence has to be accepted first."""
    if (problem := access_to(model).problem) is not None:
        raise UserError(problem)


def _asked(repository: str) -> str:
    from httpx import HTTPError
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return "token"
    try:
        HfApi().auth_check(repository)
    except GatedRepoError:
        return "refused"
    except (HTTPError, HfHubHTTPError, OSError):
        return "token"
    return "accepted"
