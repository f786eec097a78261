"""The tables of what fires on the model's own answers, where a recipe asks for it (capture.answer_tokens)."""

from dataclasses import replace

import pyarrow as pa

from saelake.warehouse.schema.captured import TOKENS
from saelake.warehouse.schema.columns import (
    ABLATION_ID,
    ABOVE_0,
    BYTE_STREAM,
    FEATURE_ID,
    LAYER,
    POS,
    PROMPT_ID,
    RUN_ID,
    SAE_ID,
    Column,
    Table,
)

ANSWER_POS = replace(
    POS, meaning="token position after the prompt, whose tokens come first: an answer begins at n_tokens", limit=None
)
ANSWER_TOKENS = Table(
    "answer_tokens",
    "one token of an answer of the model's own, under the condition of its ablation; special tokens that end it are left out",
    (
        RUN_ID,
        ABLATION_ID,
        PROMPT_ID,
        ANSWER_POS,
        *(replace(TOKENS.column(name), is_private=True) for name in ("token_id", "token", "piece")),
        Column("role", pa.string(), "answer: what these tokens are, beside those of the table tokens", choices=("answer",)),
    ),
    key=("ablation_id", "pos"),
    order=("ablation_id", "pos"),
)
ANSWER_ACTIVATIONS = Table(
    "answer_activations",
    "one non-zero activation on a token of an answer, as the SAE reads it in the ablated pass, before the edits at its own site",
    (
        RUN_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        ABLATION_ID,
        PROMPT_ID,
        ANSWER_POS,
        Column("activation", pa.float32(), "the feature's activation, above 0", at_least=ABOVE_0, encoding=BYTE_STREAM),
    ),
    key=("ablation_id", "sae_id", "feature_id", "pos"),
    order=("layer", "feature_id", "ablation_id", "pos"),
)
