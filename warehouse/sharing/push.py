"""Uploads a shared set to the hub, as a data set of its own."""

from pathlib import Path

from saelake.warehouse.errors import UserError, one_line
from saelake.warehouse.sharing.names import PAGE, SITE


def require_login() -> None:
    """Raises UserError where nobody is logged in: before a set is written that could not be uploaded."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError("to push, log in with `hf auth login` or set HF_TOKEN to a token that may write")


def push(folder: Path, repository: str, *, public: bool = False) -> str:
    """Uploads the set in `folder` as one commit, and makes the data set if it is not there; returns its address.

    A data set that this makes is private unless `public`. Raises UserError for what the hub refuses.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        api.create_repo(repository, repo_type="dataset", private=not public, exist_ok=True)
        # One commit: a reader sees the old set or the new one.
        api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            repo_type="dataset",
            commit_message="saelake share",
            delete_patterns=["data/**", "runs/**", f"{SITE}/**", PAGE],
        )
    except (HfHubHTTPError, HFValidationError, HTTPError, ValueError) as error:
        raise UserError(
            f"the hub refuses {repository} ({one_line(error)}); the set is in {folder}, and the same --push can be tried again"
        ) from error
    return f"{api.endpoint}/datasets/{repository}"
