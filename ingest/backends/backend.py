"""What a backend is: a library that runs a model, asked what it reads of some texts, at the places of a pass.

A backend tokenises the texts itself, so that another template, special token or BOS shows, and reads all of them in one batch, so
that another padding, mask or numbering of positions does. What it gives is compared with the reference by `readings`.

Letters of shapes: t token, d width of a site, v vocabulary, k numbers of a sketch.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from saelake.ingest.sites import KINDS, Site
from saelake.ingest.template import ChatTemplate

LOG_PROBS = "log_probs"
"""The log-probabilities of the next token, behind the last layer: a constant in all logits leaves them as they are."""
SKETCH = 64
"""Numbers that are kept of a vector. The distance of two sketches is that of the vectors up to about 1 / sqrt(2 k): 9%."""

Place = tuple[int, str]
"""Layer, and kind of site; of log-probabilities the number of layers."""


class Read(NamedTuple):
    """What a backend makes of some texts."""

    token_ids: list[list[int]]
    """As it tokenises each text."""
    values: dict[Place, list[Tensor]]
    """place -> (t, d) of each text; (t, v) of the log-probabilities. A backend may lack places."""


class Backend(Protocol):
    """A library that runs a model; its runs and rows are called by the name that it is given for, not by one of its own."""

    def read(self, texts: Sequence[str], places: Sequence[Place]) -> Read:
        """What it reads of texts, each the message of a user, at those of the places that it has."""


def tokens_of(tokenizer: Any, template: ChatTemplate, texts: Sequence[str]) -> list[list[int]]:
    """A study's template on the tokenizer of a backend: the tokenizer's own template where the study takes that of its own one.

    Nothing is checked: what a backend gets wrong here is to be seen.
    """
    if template.is_plain:
        return [one.token_ids for one in ChatTemplate.plain(tokenizer).encode_all(texts)]
    is_own = template.text == template.tokenizer.chat_template
    text = (tokenizer.chat_template if is_own else None) or template.text
    rendered = replace(template, tokenizer=tokenizer, text=text).render_all(texts)
    token_ids: list[list[int]] = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    return token_ids


def depth(place: Place) -> tuple[int, int]:
    """Sorts places in the order in which a pass comes to them."""
    layer, kind = place
    return layer, -1 if kind == LOG_PROBS else KINDS.index(kind)


def site_of(place: Place) -> Site:
    """The site of a place that is one."""
    return Site(*place)


def sketch(values_td: Tensor) -> np.ndarray:
    """(t, k) float32: random signs, the same for every vector of a width, summed; lengths and distances stay what they are."""
    x_td = values_td.detach().float().cpu()
    signs_dk = torch.from_numpy(_signs(x_td.shape[-1]))
    total = torch.zeros(len(x_td), SKETCH, dtype=torch.float64)
    for start in range(0, x_td.shape[-1], 1 << 14):
        part = slice(start, start + (1 << 14))
        total += x_td[:, part].double() @ signs_dk[part].double()
    return (total / SKETCH**0.5).float().numpy()


def _signs(width: int) -> np.ndarray:
    """(d, k) int8 of -1 and 1, from a hash of the place (splitmix64), so that sketches of every time and machine are alike."""
    with np.errstate(over="ignore"):
        z = (np.arange(width * SKETCH, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits = (z ^ (z >> np.uint64(31))) >> np.uint64(63)
    return (bits.astype(np.int8) * 2 - 1).reshape(width, SKETCH)
