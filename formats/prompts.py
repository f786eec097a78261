"""Prompts that a source brings, as rows: what all formats that hold some have in common."""

from collections.abc import Sequence

import numpy as np

from saelake.ingest.prompts import hash_prompt
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import PROMPTS


def prompt_rows(
    ids: Sequence[int] | np.ndarray,
    texts: Sequence[str],
    set_name: str,
    *,
    labels: Sequence[str],
    roles: Sequence[str],
    categories: Sequence[str | None] | None = None,
    n_tokens: int = 0,
) -> Rows:
    """Rows of n prompts, of no template and no family.

    Args:
        n_tokens: of each; 0 where the source has no tokens.
    """
    n = len(texts)
    columns = {
        "prompt_id": ids,
        "prompt_hash": [hash_prompt(text) for text in texts],
        "set": [set_name] * n,
        "split": ["imported"] * n,
        "label": labels,
        "label_role": roles,
        "category": [None] * n if categories is None else categories,
        "text": texts,
        "n_tokens": [n_tokens] * n,
        "template_hash": [""] * n,
        "family": [None] * n,
    }
    return Rows.of(PROMPTS, columns)
