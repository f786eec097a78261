"""The tables of the atlas: what every feature, and sets of two and three, do to a prompt's answer when they are ablated."""

import pyarrow as pa

from saelake.warehouse.schema.columns import BYTE_STREAM, FEATURE_ID, LAYER, PROMPT_ID, RUN_ID, SAE_ID, Column, Table, of_width

P_TARGET = Column(
    "p_target",
    pa.float32(),
    "probability that the answer's first token is a target token, ablated",
    at_least=0,
    at_most=1,
    encoding=BYTE_STREAM,
)
P_CLEAN = Column("p_clean", pa.float32(), "the same of the unmodified model", at_least=0, at_most=1)
FLIPPED = Column("flipped", pa.bool_(), "the most probable first token is none of the target tokens")

SINGLE_EFFECTS = Table(
    "single_effects",
    "one feature that fires on a prompt, ablated alone at every position",
    (
        RUN_ID,
        PROMPT_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("n_tokens", pa.int16(), "tokens of the prompt on which it fires, BOS left out", at_least=1),
        Column("n_last_tokens", pa.int16(), "of these, tokens among the prompt's last ones", at_least=0),
        Column("max_activation", pa.float32(), "its largest activation on the prompt, BOS left out", at_least=0),
        P_CLEAN,
        P_TARGET,
        FLIPPED,
    ),
    key=("prompt_id", "sae_id", "feature_id"),
    order=("prompt_id", "layer", "sae_id", "feature_id"),
)

JOINT_EFFECTS = Table(
    "joint_effects",
    "two or three features that fire on a prompt, ablated together at every position",
    (
        RUN_ID,
        Column(
            "drawn",
            pa.string(),
            "last_tokens: every pair of the features that fire on the prompt's last tokens; largest: every pair of the features "
            "with the largest single effects; triples: drawn by chance among those that fire on the last tokens",
            choices=("last_tokens", "largest", "triples"),
        ),
        PROMPT_ID,
        SAE_ID,
        FEATURE_ID,
        Column("sae_id_2", pa.string(), "the SAE of the second feature", refers="saes.sae_id"),
        Column("feature_id_2", pa.int32(), "the second feature", at_least=0, limit=of_width("sae_id_2")),
        Column("sae_id_3", pa.string(), "the SAE of the third feature", null="a pair", refers="saes.sae_id"),
        Column("feature_id_3", pa.int32(), "the third feature", null="a pair", at_least=0, limit=of_width("sae_id_3")),
        P_CLEAN,
        P_TARGET,
        FLIPPED,
    ),
    key=("drawn", "prompt_id", "sae_id", "feature_id", "sae_id_2", "feature_id_2", "sae_id_3", "feature_id_3"),
    order=("drawn", "prompt_id"),
)

ATTRIBUTIONS = Table(
    "attributions",
    "what gradients say that a feature which fires on a prompt does to P(target)",
    (
        RUN_ID,
        Column(
            "method",
            pa.string(),
            "gradient: of the clean pass; integrated_gradients: their mean while the SAE's features are faded out together",
            choices=("gradient", "integrated_gradients"),
        ),
        PROMPT_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column(
            "effect",
            pa.float32(),
            "what P(target) would change by, to first order, if the feature were ablated at every position",
            encoding=BYTE_STREAM,
        ),
    ),
    key=("method", "prompt_id", "sae_id", "feature_id"),
    order=("method", "prompt_id", "layer", "sae_id", "feature_id"),
)

METHOD_SCORES = Table(
    "method_scores",
    "how well one method names what ablating features shows to matter, over the refused prompts",
    (
        RUN_ID,
        Column(
            "finds",
            pa.string(),
            "what it is to find: causes; interactions of effects on P(target), or on its log-odds (of pairs of which no "
            "probability is nearer to 0 or 1 than 1e-5)",
            choices=("causes", "interactions", "interactions_log_odds"),
        ),
        Column("method", pa.string(), "the method"),
        Column(
            "measure",
            pa.string(),
            "recall: share of the true ones among the first k; rank_correlation: Spearman's, with the true effects",
            choices=("recall", "rank_correlation"),
        ),
        Column("k", pa.int32(), "features or pairs it may name per prompt", null="a measure of the whole ranking", at_least=1),
        Column("n_prompts", pa.int32(), "prompts that have something to be found", at_least=0),
        Column("mean", pa.float32(), "mean over them", null="no prompts"),
        Column("low", pa.float32(), "lower end of its 95% interval, resampled by family", null="no prompts"),
        Column("high", pa.float32(), "upper end", null="no prompts"),
        Column(
            "n_evaluations",
            pa.float32(),
            "passes that it spends a prompt beyond the study's own, on average; a backward pass counts as two",
            at_least=0,
        ),
    ),
    key=("finds", "method", "measure", "k"),
    order=("finds", "measure", "k", "method"),
)
