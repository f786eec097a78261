"""The tables of the protocol that say what ablating features sets off (R13-R16)."""

import pyarrow as pa

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
    of_layer,
    of_width,
)

SOURCE = (
    Column(
        "method",
        pa.string(),
        "the search whose critical set is the source, those of its features that fire",
        null="one critical feature",
    ),
    Column("start", pa.int32(), "the search's start", null="one critical feature", at_least=0),
    Column("source_sae_id", pa.string(), "SAE of the one critical feature", refers="saes.sae_id", null="a whole set"),
    Column("source_layer", pa.int16(), "its layer", at_least=0, limit=of_layer("source_sae_id"), null="a whole set"),
    Column("source_feature_id", pa.int32(), "its index", at_least=0, limit=of_width("source_sae_id"), null="a whole set"),
)

WAKING_PASSES = Table(
    "waking_passes",
    "one ablated pass whose activations were captured, and whose ablation it stands for (R13)",
    (
        RUN_ID,
        ABLATION_ID,
        PROMPT_ID,
        *SOURCE,
        Column(
            "control",
            pa.int32(),
            "number of the matched control, from 0: as many other features of the same SAEs that fire where these do, about as "
            "strongly, ablated instead",
            null="the critical features themselves",
            at_least=0,
        ),
    ),
    key=("ablation_id",),
    order=("method", "start", "source_layer", "source_feature_id", "control", "prompt_id"),
)

REACTIVATIONS = Table(
    "reactivations",
    "one non-zero activation while something is ablated; of a matched control only features that are silent on the clean prompt",
    (
        RUN_ID,
        ABLATION_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        POS,
        Column(
            "activation",
            pa.float32(),
            "the feature's activation in the ablated pass, before it is itself ablated; above 0",
            at_least=ABOVE_0,
            encoding=BYTE_STREAM,
        ),
    ),
    key=("ablation_id", "sae_id", "feature_id", "pos"),
    order=("feature_id", "ablation_id", "pos"),
    by_layer=True,
)

WAKINGS = Table(
    "wakings",
    "a feature that is silent on a clean prompt and fires while something below its layer is ablated (R13)",
    (
        RUN_ID,
        ABLATION_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("n_tokens", pa.int32(), "tokens on which it fires then", at_least=0),
        Column("n_first", pa.int32(), "of these the prompt's first token", at_least=0),
        Column("n_template", pa.int32(), "of these other tokens of the template", at_least=0),
        Column("n_user", pa.int32(), "of these the user's tokens", at_least=0),
        Column("max_activation", pa.float32(), "largest activation on them"),
    ),
    key=("ablation_id", "sae_id", "feature_id"),
    order=("ablation_id", "layer", "feature_id"),
)

WAKING_EDGES = Table(
    "waking_edges",
    "ablating one feature wakes another, over all prompts, against matched controls (R13)",
    (
        RUN_ID,
        Column(
            "source_sae_id",
            pa.string(),
            "SAE of the ablated feature",
            refers="saes.sae_id",
            null="the prompt's whole critical set",
        ),
        Column(
            "source_layer",
            pa.int16(),
            "its layer",
            at_least=0,
            limit=of_layer("source_sae_id"),
            null="the prompt's whole critical set",
        ),
        Column(
            "source_feature_id",
            pa.int32(),
            "its index",
            at_least=0,
            limit=of_width("source_sae_id"),
            null="the prompt's whole critical set",
        ),
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("n_prompts", pa.int32(), "prompts on which the source was ablated", at_least=0),
        Column("n_tested", pa.int32(), "of these those with a matched control", at_least=0),
        Column("n_woken", pa.int32(), "prompts on which it wakes the feature", at_least=0),
        Column("n_woken_tested", pa.int32(), "of these those with a matched control", at_least=0),
        Column("expected", pa.float64(), "n_woken_tested that the controls let expect if the source were one of them"),
        Column("n_tokens", pa.int32(), "woken tokens over all prompts", at_least=0),
        Column("n_first", pa.int32(), "of these first tokens", at_least=0),
        Column("n_template", pa.int32(), "of these other template tokens", at_least=0),
        Column("n_user", pa.int32(), "of these the user's", at_least=0),
        Column("mean_activation", pa.float32(), "mean over prompts of the largest activation", null="never woken by the source"),
        Column(
            "p_value",
            pa.float64(),
            "one-sided: chance of n_woken_tested or more if the source were one of its controls",
            at_least=0,
            at_most=1,
        ),
        Column(
            "q_value",
            pa.float64(),
            "p_value after Benjamini-Hochberg over all edges of single sources, or of whole sets",
            at_least=0,
            at_most=1,
        ),
    ),
    key=("run_id", "source_sae_id", "source_feature_id", "sae_id", "feature_id"),
    order=("source_layer", "source_feature_id", "layer", "feature_id"),
)

EFFECTS = (
    Column("clean", pa.float32(), "log-odds of the target tokens as the prompt's next one (nats), nothing ablated"),
    Column("ablated", pa.float32(), "the same with the ablation, everywhere"),
    Column(
        "direct",
        pa.float32(),
        "the same when only what is ablated at the last token is taken out, after the last block: its direct effect, through "
        "the final norm and the unembedding, is direct - clean",
    ),
    Column("flips", pa.bool_(), "with the ablation the most probable token is not a target token"),
    Column("direct_flips", pa.bool_(), "the same by the direct effect alone"),
)

READOUTS = Table(
    "readouts",
    "one critical feature on its prompt, ablated by itself: what of its effect is its own writing of the answer",
    (
        RUN_ID,
        PROMPT_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column(
            "cosine",
            pa.float32(),
            "cosine of its decoder row and the unembedding of a target token, the largest of them",
            at_least=-1,
            at_most=1,
            encoding=BYTE_STREAM,
        ),
        Column("activation", pa.float32(), "its activation at the prompt's last token; 0 where it is silent there", at_least=0),
        *EFFECTS,
    ),
    key=("prompt_id", "sae_id", "feature_id"),
    order=("layer", "feature_id", "prompt_id"),
)

READOUT_SETS = Table(
    "readout_sets",
    "one critical set on its prompt: what of its effect is its features' own writing of the answer",
    (
        RUN_ID,
        PROMPT_ID,
        Column("method", pa.string(), "minimal or algorithm1"),
        Column("start", pa.int32(), "the search's start", at_least=0),
        *EFFECTS,
    ),
    key=("prompt_id", "method", "start"),
    order=("method", "start", "prompt_id"),
)

BACKUP_TESTS = Table(
    "backup_tests",
    "one answer while a source of `waking_passes` is ablated, alone or with what wakes when it is (R13)",
    (
        RUN_ID,
        ABLATION_ID,
        PROMPT_ID,
        *SOURCE,
        Column(
            "ablated",
            pa.string(),
            "source: it alone; woken: with all that wakes then; random: with as many other features of the same SAEs that fire",
            choices=("source", "woken", "random"),
        ),
        Column("n_woken", pa.int32(), "features that wake while the source alone is ablated", at_least=0),
    ),
    key=("ablation_id",),
    order=("method", "start", "source_layer", "source_feature_id", "ablated", "prompt_id"),
)

BACKUPS = Table(
    "backups",
    "a feature that wakes where the source alone does not flip the prompt, and the source with all that wakes does (R13)",
    (
        RUN_ID,
        PROMPT_ID,
        *SOURCE,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column(
            "p_refusal_token",
            pa.float32(),
            "probability of a refusal token while the source and this feature are ablated",
            at_least=0,
            at_most=1,
        ),
        Column("flips", pa.bool_(), "the source and this feature alone flip the prompt"),
        Column(
            "is_needed", pa.bool_(), "it is one of a smallest part of what wakes that flips with the source: none can be left out"
        ),
    ),
    key=("prompt_id", "method", "start", "source_sae_id", "source_feature_id", "sae_id", "feature_id"),
    order=("method", "start", "source_layer", "source_feature_id", "prompt_id", "layer", "feature_id"),
)

CLAMPS = Table(
    "clamps",
    "one answer while each feature of a set is held at a level of its own activations (R14)",
    (
        RUN_ID,
        ABLATION_ID,
        Column(
            "level",
            pa.float32(),
            "up to 1 a quantile of a feature's non-zero activations on the study's prompts, BOS left out (of those in ablated "
            "passes where it has none), above 1 that many times the largest",
            at_least=0,
            at_most=2,
        ),
    ),
    key=("ablation_id",),
    order=("level", "ablation_id"),
)

LOSSES = Table(
    "losses",
    "cross-entropy of one text under one intervention (R16)",
    (
        RUN_ID,
        Column("texts", pa.string(), "the recipe's set of texts"),
        Column("text_number", pa.int32(), "the text's place in it, from 0", at_least=0),
        Column("text_hash", pa.string(), "hash of the text"),
        Column("condition", pa.string(), "former name of method", until=1, elsewhere="method"),
        Column(
            "method",
            pa.string(),
            "none, direction, or minimal: a prompt's critical set is ablated",
            since=2,
            elsewhere="condition",
        ),
        Column(
            "lender", pa.int64(), "former name of donor", null="no set", refers="prompts.prompt_id", until=1, elsewhere="donor"
        ),
        Column(
            "donor",
            pa.int64(),
            "the prompt whose set it is",
            null="no set",
            refers="prompts.prompt_id",
            since=2,
            elsewhere="lender",
        ),
        Column("n_features", pa.int32(), "features that are ablated", at_least=0),
        Column("n_context", pa.int32(), "context alone: BOS or else the first token, or the templated prompt", at_least=0),
        Column("n_tokens", pa.int32(), "tokens whose loss counts", at_least=0),
        Column("is_cut", pa.bool_(), "the text was longer than the recipe's max_tokens"),
        Column("loss", pa.float32(), "mean negative log-likelihood of these tokens (nats)", at_least=0),
        Column(
            "kl",
            pa.float32(),
            "mean over these tokens of the KL divergence of what may follow from what the unmodified model expects (nats)",
            null="not measured then",
            at_least=0,
            since=2,
        ),
    ),
    key=("texts", "text_number", "method", "donor"),
    order=("texts", "method", "donor", "text_number"),
    orders={1: ("texts", "condition", "lender", "text_number")},
)
