"""What a caller without a recipe says of a model, as the recipe's sections [model] and [compute] that the rest is written for."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from saelake.ingest.recipe import Compute, ModelSpec
from saelake.ingest.recipe.errors import sentence
from saelake.warehouse import arguments
from saelake.warehouse.errors import UserError


def of_fields(fields: Mapping[str, Any]) -> ModelSpec:
    """A recipe's [model] of what is given from Python, where chat_template="none" stands for template = "none" too."""
    given = {name: value for name, value in fields.items() if not (name == "chat_template" and value == "none")}
    try:
        return ModelSpec.model_validate(given if len(given) == len(fields) else given | {"template": "none"})
    except ValidationError as error:
        raise UserError(sentence(error, ModelSpec)) from error


def named(model: str | Path, fields: dict[str, Any]) -> ModelSpec:
    """A recipe's [model] of an id or a folder, with further fields."""
    if not isinstance(model, str | Path):
        raise UserError(f"the model is {arguments.shown(model)}: give an id of the hub or a folder")
    if twice := [name for name in ("id", "path", "package") if name in fields]:
        raise UserError(
            f"{twice[0]} names a model beside {arguments.shown(str(model))}: give only one of them, as the first argument"
        )
    if "target_tokens" in fields:
        words = arguments.listed("target_tokens", fields["target_tokens"], "a list of texts, such as ['I']")
        fields = fields | {"target_tokens": tuple(words)}
    folder = Path(model)
    with suppress(RuntimeError):  # of a user who is not there
        folder = folder.expanduser()
    if _is_folder(folder):
        return of_fields(fields | {"path": folder})
    if isinstance(model, Path) or model.startswith((".", "/", "~")):  # what no id of the hub is or begins with
        raise UserError(f"there is no folder {arguments.shown(str(folder))}")
    return of_fields(fields | {"id": model})


def computing(compute: Compute | None, device: str | None) -> Compute:
    """A recipe's [compute], or one of a device alone."""
    if not isinstance(compute, Compute | None):
        raise UserError(f'compute is {arguments.shown(compute)}: give a Compute, or only a device, such as device="cpu"')
    if device is None:
        return compute or Compute()
    if compute is not None:
        raise UserError("compute and device both say where the model runs: give one")
    try:
        return Compute.model_validate({"device": device})
    except ValidationError as error:
        raise UserError(sentence(error, Compute)) from error


def _is_folder(path: str | Path) -> bool:
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False
