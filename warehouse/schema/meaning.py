"""The tables of the protocol that say what features mean: categories, explanations, concepts and people's answers (R18-R20)."""

import pyarrow as pa

from saelake.warehouse.schema.columns import FEATURE_ID, LAYER, RUN_ID, SAE_ID, Column, Table

POPULATIONS = Table(
    "populations",
    "one feature of a group that a stage of the search found",
    (
        RUN_ID,
        Column(
            "population",
            pa.string(),
            "candidates (Stage 1, up to each prompt's first flip), critical (Stage 2), stage3 (the sets of Stage 3 that flip), "
            "stage3_new (of these neither candidates nor critical) or redundant (critical, silent on the prompt, and woken)",
        ),
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("n_prompts", pa.int32(), "target prompts that it was found for", at_least=0),
    ),
    key=("run_id", "population", "sae_id", "feature_id"),
    order=("population", "layer", "feature_id"),
)
TAXONOMY = Table(
    "taxonomy",
    "one feature that fires on the labelled prompts, and one category (R18)",
    (
        RUN_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("category", pa.string(), "the category"),
        Column("n_prompts", pa.int32(), "prompts of the category", at_least=0),
        Column("n_literal", pa.int32(), "of these those on which it fires at all, on BOS and the template too", at_least=0),
        Column("n_user", pa.int32(), "of these those on which it fires on one of the user's tokens", at_least=0),
        Column("n_category_tokens", pa.int64(), "the user's tokens in prompts of the category", at_least=0),
        Column("n_user_tokens", pa.int64(), "of these those on which it fires", at_least=0),
        Column(
            "p_value",
            pa.float64(),
            "one-sided: chance of n_user or more if the prompts on which it fires were drawn whatever their category",
            at_least=0,
            at_most=1,
        ),
        Column(
            "q_value",
            pa.float64(),
            "p_value after Benjamini-Hochberg, over all categories of all features that n_user counts",
            at_least=0,
            at_most=1,
        ),
    ),
    key=("run_id", "sae_id", "feature_id", "category"),
    order=("layer", "feature_id", "category"),
)
SEPARATIONS = Table(
    "separations",
    "one feature that fires, and how well it tells prompts of the target label from those of the control label",
    (
        RUN_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column(
            "auroc",
            pa.float64(),
            "chance that its largest activation on a target prompt is above that on a control prompt, ties half; BOS left out",
        ),
        Column("p_value", pa.float64(), "two-sided Mann-Whitney test, normal approximation with ties", at_least=0, at_most=1),
        Column("q_value", pa.float64(), "p_value after Benjamini-Hochberg, over all features that fire", at_least=0, at_most=1),
        Column("n_fired_target", pa.int32(), "target prompts on which it fires", at_least=0),
        Column("n_target", pa.int32(), "target prompts", at_least=0),
        Column("n_fired_control", pa.int32(), "control prompts on which it fires", at_least=0),
        Column("n_control", pa.int32(), "control prompts", at_least=0),
    ),
    key=("run_id", "sae_id", "feature_id"),
    order=("layer", "feature_id"),
)
EXPLANATIONS = Table(
    "explanations",
    "one explanation of a feature of this exact SAE (R20); text of others, untrusted",
    (
        RUN_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("number", pa.int32(), "number of the feature's explanation, from 0", at_least=0),
        Column("description", pa.string(), "what the feature is said to be about"),
        Column("method", pa.string(), "how it was explained, as the source says", null="not known"),
        Column("explainer", pa.string(), "the model or person that explained it", null="not known"),
        Column("source", pa.string(), "where it is from: a Neuronpedia source, or a file by name and hash"),
    ),
    key=("run_id", "sae_id", "feature_id", "number"),
    order=("layer", "feature_id", "number"),
)
CONCEPTS = Table(
    "concepts",
    "one pattern of a concept, by the recipe (R20); which explanations match is a question",
    (
        RUN_ID,
        Column("rank", pa.int32(), "the concept's place in the recipe, from 0", at_least=0),
        Column("concept", pa.string(), "the concept"),
        Column("pattern", pa.string(), "regular expression (RE2) that an explanation of the concept matches, in any case"),
    ),
    key=("run_id", "concept", "pattern"),
    order=("rank", "concept", "pattern"),
)
ANNOTATIONS = Table(
    "annotations",
    "one person's answer about one feature and one category of an annotation study (R19)",
    (
        RUN_ID,
        Column("study", pa.string(), "the annotation study"),
        Column("annotator", pa.string(), "who answered"),
        Column("item", pa.int32(), "number of the feature in the annotation study, from 0", at_least=0),
        Column("stratum", pa.string(), "what the feature was drawn as: critical, random (firing) or silent"),
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("category", pa.string(), "a category, or None: no category fits"),
        Column("chosen", pa.bool_(), "the person chose it"),
    ),
    key=("run_id", "annotator", "item", "category"),
    order=("annotator", "item", "category"),
)
FEATURE_LOGITS = Table(
    "feature_logits",
    "one of the tokens that a feature's decoder row promotes, or suppresses, most",
    (
        RUN_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("promotes", pa.bool_(), "it raises the token's logit most; else it lowers it most"),
        Column("rank", pa.int16(), "1 is the token that it promotes, or suppresses, most", at_least=1),
        Column("token_id", pa.int32(), "index in the model's vocabulary", at_least=0),
        Column("token", pa.string(), "the token as text, as in the table tokens"),
        Column(
            "logit",
            pa.float32(),
            "the token's logit where the residual stream after the last block is the decoder row alone, less that of no row; the "
            "final norm sets the row's length",
        ),
    ),
    key=("run_id", "sae_id", "feature_id", "promotes", "rank"),
    order=("layer", "feature_id", "promotes", "rank"),
)
LOGIT_MOMENTS = Table(
    "logit_moments",
    "how the logits of a feature's decoder row are distributed over the vocabulary",
    (
        RUN_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("mean", pa.float32(), "mean logit"),
        Column("sd", pa.float32(), "standard deviation", at_least=0),
        Column("skewness", pa.float32(), "third standardised moment: above 0 it promotes a few tokens"),
        Column("kurtosis", pa.float32(), "fourth standardised moment less 3: large where it singles out a few tokens"),
    ),
    key=("run_id", "sae_id", "feature_id"),
    order=("layer", "feature_id"),
)
