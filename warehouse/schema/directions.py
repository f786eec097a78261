"""The tables of the protocol that say what the behaviour's direction is, and how close features and prompts lie to it (R3-R5)."""

import pyarrow as pa

from saelake.warehouse.schema.columns import (
    BYTE_STREAM,
    FEATURE_ID,
    LAYER,
    MADE_ELSEWHERE,
    PROMPT_ID,
    RUN_ID,
    SAE_ID,
    VECTOR,
    Column,
    Table,
    of_layer,
    of_width,
)

NOT_ASKED = "made elsewhere, or not asked (direction.selection): not measured here"

DIRECTIONS = Table(
    "directions",
    "the refusal direction of one layer (R3)",
    (
        RUN_ID,
        LAYER,
        Column(
            "vector",
            VECTOR,
            "unit vector: mean resid_post at the last token, target minus control",
        ),
        Column("norm", pa.float32(), "length of the difference before it was scaled to 1"),
        Column(
            "n_prompts",
            pa.int32(),
            "selection prompts: target and refused by the unmodified model",
            null=MADE_ELSEWHERE,
            null_since=2,
            at_least=0,
        ),
        Column(
            "n_flipped",
            pa.int32(),
            "selection prompts that flip when the direction is projected out of every layer",
            null=NOT_ASKED,
            null_since=2,
            at_least=0,
        ),
        Column(
            "p_refusal_token",
            pa.float32(),
            "mean probability of a refusal token on them, projected out",
            null=NOT_ASKED,
            null_since=2,
            at_least=0,
            at_most=1,
        ),
        Column(
            "kl",
            pa.float32(),
            "mean KL divergence of the next token on control prompts, projected out (nats)",
            null=NOT_ASKED,
            null_since=2,
        ),
        Column(
            "induced",
            pa.float32(),
            "share of control prompts that are refused when the direction is added at its layer",
            null=NOT_ASKED,
            null_since=2,
            at_least=0,
            at_most=1,
        ),
        Column("admitted", pa.bool_(), "passes the recipe's filters"),
        Column("chosen", pa.bool_(), "the direction that the study uses; none where no layer passes the filters"),
        Column(
            "left_out",
            pa.string(),
            "which filters leave the layer out: late, kl, induced, joined by a comma; outdone: another layer does better "
            "by first tokens or whole answers, and the rest was not asked; unknown in older files; imported",
            null="it passes",
            since=2,
            elsewhere="case when admitted then null else 'unknown' end",
        ),
    ),
    key=("run_id", "layer"),
    order=("layer",),
)

ALIGNMENTS = Table(
    "alignments",
    "how close one decoder row lies to a refusal direction (R5); candidates are a query over it",
    (
        RUN_ID,
        Column("direction", pa.string(), "own: the direction of the feature's layer; chosen: the study's one direction"),
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column(
            "cosine", pa.float32(), "signed cosine of decoder row and direction", at_least=-1, at_most=1, encoding=BYTE_STREAM
        ),
    ),
    key=("run_id", "direction", "sae_id", "feature_id"),
    order=("direction", "feature_id"),
    by_layer=True,
)

LAYER_COSINES = Table(
    "layer_cosines",
    "how close the residual stream of a prompt's last token lies to a refusal direction after one block (R4)",
    (
        RUN_ID,
        PROMPT_ID,
        Column("direction", pa.string(), "own: the direction of this layer; chosen: the study's one direction"),
        LAYER,
        Column(
            "cosine",
            pa.float32(),
            "cosine of resid_post at the last token and the direction",
            at_least=-1,
            at_most=1,
            encoding=BYTE_STREAM,
        ),
    ),
    key=("prompt_id", "direction", "layer"),
    order=("direction", "layer", "prompt_id"),
)

DECODER_COSINES = Table(
    "decoder_cosines",
    "two candidate features whose decoder rows are alike; every pair stands once, in the order of layer and feature_id",
    (
        RUN_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("other_sae_id", pa.string(), "the SAE of the other feature", refers="saes.sae_id"),
        Column("other_layer", pa.int16(), "its layer", at_least=0, limit=of_layer("other_sae_id")),
        Column("other_feature_id", pa.int32(), "its index", at_least=0, limit=of_width("other_sae_id")),
        Column(
            "cosine",
            pa.float32(),
            "cosine of the two decoder rows, at least the recipe's redundancy.min_cosine",
            at_least=-1,
            at_most=1,
            encoding=BYTE_STREAM,
        ),
    ),
    key=("run_id", "sae_id", "feature_id", "other_sae_id", "other_feature_id"),
    order=("layer", "feature_id", "other_layer", "other_feature_id"),
)
