"""What the public library is given, checked: junk ends in one sentence that names the argument. No torch.

Each function gives its argument back in the type that it stands for; numbers may be NumPy's, but bools and texts are none.
"""

import json
import math
import numbers
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from saelake.warehouse.errors import UserError

if TYPE_CHECKING:
    import numpy as np

MOST_SHOWN = 60
"""Characters of a value that a sentence carries."""
FIELD = re.compile(r"\b(?P<table>model|saes|compute)\.(?P<name>[a-z_]+)(?:\.(?P<key>[a-z_]+))?(?: \(or [a-z_]+\))?")
"""A field of a recipe in a sentence, with its other name if it has one."""
ARGUMENTS = {
    "chat_template": "chat_template",
    "template": "chat_template",
    "chat_template_file": "chat_template",
    "system": "system",
    "template_variables": "template_variables",
    "max_prompt_tokens": "max_prompt_tokens",
    "refusal_tokens": "target_tokens",
    "target_tokens": "target_tokens",
    "without_bos": "without_bos",
    "dtype": "dtype",
    "device": "device",
    "revision": "revision",
    "layers": "saes",
    "path": "the model",
    "id": "the model",
}
"""Field of a recipe -> what a caller of the library knows it as."""


def shown(value: object) -> str:
    """A value in a sentence: on one line, shortened."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # repr is the value's own code
        text = f"a {type(value).__name__}"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def whole(name: str, value: Any, at_least: int, at_most: int | None = None) -> int:
    """A whole number within limits."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or value < at_least or (at_most is not None and value > at_most):
        limit = f"from {at_least} up" if at_most is None else f"from {at_least} to {at_most}"
        raise UserError(f"{name} is {shown(value)}: give a whole number {limit}")
    return int(value)


def real(name: str, value: Any) -> float:
    """A finite number."""
    found = value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value  # NumPy's, torch's
    if not isinstance(found, numbers.Real) or isinstance(found, bool) or not is_finite(found):
        raise UserError(f"{name} is {shown(value)}: give a finite number")
    return float(found)


LARGEST = float.fromhex("0x1.fffffep+127")
"""Of float32, in which models and edits are computed."""


def single(name: str, value: Any) -> float:
    """A number that float32 has."""
    found = real(name, value)
    if abs(found) > LARGEST:
        raise UserError(f"{name} is {shown(value)}: give a number of float32, at most {LARGEST:.2g}")
    return found


def is_finite(value: Any) -> bool:
    """Whether a number has a finite float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def text(name: str, value: Any) -> str:
    """A text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise UserError(f"{name} is {shown(value)}: give a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name} is not Unicode text: it holds half of a surrogate pair, {shown(value)}") from None
    return value


def switch(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):
        raise UserError(f"{name} is {shown(value)}: give True or False")
    return bool(value)


def mapping(name: str, value: Any, form: str) -> Mapping[Any, Any]:
    """A mapping of the given form; None is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{name} is {shown(value)}: give {form}")
    return value


def one_of(name: str, value: Any, words: Collection[str]) -> str:
    """One of some words."""
    if not isinstance(value, str) or value not in words:
        raise UserError(f"{name} is {' or '.join(words)}, not {shown(value)}")
    return value


def listed(name: str, value: Any, form: str) -> list[Any]:
    """What has an order: a list, a tuple, an array, a column; neither a text nor a mapping nor a set."""
    if hasattr(value, "tolist") and not isinstance(value, str):
        value = value.tolist()
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping | set | frozenset):
        raise UserError(f"{name} is {shown(value)}: give {form}")
    return list(value)


def array(value: Any, kinds: str) -> "np.ndarray | None":
    """The array that a value is, of numbers of some of NumPy's kinds; None for anything else."""
    import numpy as np

    try:
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # lists of different lengths, say, or of tensors with gradients
        return None
    return found if found.dtype.kind in kinds else None


def function(name: str, value: Any, form: str) -> Callable[..., Any]:
    """Something that can be called."""
    if not callable(value):
        raise UserError(f"{name} is {shown(value)}: give {form}")
    return value


def json_values(name: str, value: Any, form: str) -> dict[str, Any]:
    """A mapping of names to what JSON can hold; None is an empty one."""
    found = dict(mapping(name, value, form))
    for key, one in found.items():
        text(f"a name in {name}", key)
        try:
            json.dumps(one, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{name}[{key!r}] is {shown(one)}, which JSON cannot hold ({error}): give {form}") from error
    return found


@contextmanager
def without_recipe() -> Iterator[None]:
    """What goes wrong inside is told to someone who has no recipe: by the names of arguments instead of a recipe's fields."""
    try:
        yield
    except UserError as error:
        said = FIELD.sub(_argument, str(error))
        said = re.sub(r"^(?:model|saes): ", "", said)
        if said == str(error):
            raise
        raise type(error)(said) from error


def _argument(field: re.Match[str]) -> str:
    name = ARGUMENTS.get(field["name"])
    if name is None or field.group("table", "name") == ("model", "layers"):  # model.layers, say: a place in a network
        return field[0]
    return f"{name}[{field['key']!r}]" if field["key"] else name
