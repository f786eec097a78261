"""The tables of the protocol about features together: geometry, waking, losses, models, statistics (R4, R9-R14, R16, R21)."""

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
    VECTOR,
    Column,
    Table,
    of_layer,
    of_width,
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
        Column("other_layer", pa.int16(), "its layer", limit=of_layer("other_sae_id")),
        Column("other_feature_id", pa.int32(), "its index", limit=of_width("other_sae_id")),
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

WAKING_PASSES = Table(
    "waking_passes",
    "one ablated pass whose activations were captured, and whose ablation it stands for (R13)",
    (
        RUN_ID,
        ABLATION_ID,
        PROMPT_ID,
        Column("method", pa.string(), "whose critical set was ablated, what of it fires", null="one critical feature"),
        Column("start", pa.int32(), "the search's start", null="one critical feature", at_least=0),
        Column("source_sae_id", pa.string(), "SAE of the one critical feature", refers="saes.sae_id", null="a whole set"),
        Column("source_layer", pa.int16(), "its layer", limit=of_layer("source_sae_id"), null="a whole set"),
        Column("source_feature_id", pa.int32(), "its index", limit=of_width("source_sae_id"), null="a whole set"),
        Column(
            "control",
            pa.int32(),
            "number of the matched control, from 0: as many other features that fire where these do, about as strongly, in the "
            "same layers, ablated instead",
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
        Column("source_layer", pa.int16(), "its layer", limit=of_layer("source_sae_id"), null="the prompt's whole critical set"),
        Column(
            "source_feature_id", pa.int32(), "its index", limit=of_width("source_sae_id"), null="the prompt's whole critical set"
        ),
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("n_prompts", pa.int32(), "prompts on which the source was ablated", at_least=0),
        Column("n_tested", pa.int32(), "of these those with a matched control"),
        Column("n_woken", pa.int32(), "prompts on which it wakes the feature", at_least=0),
        Column("n_woken_tested", pa.int32(), "of these those with a matched control"),
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

SOURCE = (
    Column("method", pa.string(), "whose critical set the source is, what of it fires", null="one critical feature"),
    Column("start", pa.int32(), "the search's start", null="one critical feature", at_least=0),
    Column("source_sae_id", pa.string(), "SAE of the one critical feature", null="a whole set"),
    Column("source_layer", pa.int16(), "its layer", null="a whole set"),
    Column("source_feature_id", pa.int32(), "its index", null="a whole set"),
)

EFFECTS = (
    Column("clean", pa.float32(), "log-odds of the target tokens as the prompt's next one (nats), nothing ablated"),
    Column("ablated", pa.float32(), "the same with the ablation, everywhere"),
    Column(
        "direct",
        pa.float32(),
        "the same when only what is ablated at the last token is taken out, behind the last block: its direct effect, through "
        "the final norm and the unembedding, is direct - clean",
    ),
    Column("flips", pa.bool_(), "with the ablation the most probable token is no target token"),
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
        Column("text_number", pa.int32(), "the text's place in it, from 0"),
        Column("text_hash", pa.string(), "hash of the text"),
        Column("condition", pa.string(), "the method", until=1, elsewhere="method"),
        Column(
            "method",
            pa.string(),
            "none, direction, or minimal: a prompt's critical set is ablated",
            since=2,
            elsewhere="condition",
        ),
        Column("lender", pa.int64(), "donor", null="no set", refers="prompts.prompt_id", until=1, elsewhere="donor"),
        Column(
            "donor",
            pa.int64(),
            "the prompt whose set it is",
            null="no set",
            refers="prompts.prompt_id",
            since=2,
            elsewhere="lender",
        ),
        Column("n_features", pa.int32(), "features that are ablated"),
        Column("n_context", pa.int32(), "tokens that are context only: BOS, or the templated prompt", at_least=0),
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

MODEL = Column("model", pa.string(), "fm_20 (a factorisation machine with embeddings of length 20), probe, ...")

MODELS = Table(
    "models",
    "one fitted factorisation machine or probe (R9, R12)",
    (
        RUN_ID,
        MODEL,
        Column("size", pa.int32(), "length of its embeddings; 0 for a probe"),
        Column("bias", pa.float32(), "its constant term"),
        Column(
            "best_epoch",
            pa.int32(),
            "the epoch, from 1, whose parameters are kept: best on validation; of a probe, the number of the penalty",
        ),
        Column("n_features", pa.int32(), "features that fire on a training prompt, on the tokens that count"),
        Column("n_untrained", pa.int32(), "features that fire only on validation or test prompts, and are left out"),
        Column("n_nonzeros", pa.int64(), "feature values of the training prompts that are not 0"),
        Column(
            "mean_cosine",
            pa.float32(),
            "mean signed cosine of two features' embeddings, in which opposite clusters cancel: mean_abs_cosine does not",
            null="a probe",
        ),
        Column(
            "mean_abs_cosine",
            pa.float32(),
            "mean size of the cosine of two features' embeddings, of 4,096 drawn features at most; above 0.9, which the paper "
            "rejects, the embeddings hold hardly more than a sign",
            null="a probe",
            since=2,
        ),
        Column(
            "effective_rank",
            pa.float32(),
            "directions that the embeddings use: exp of the entropy of the shares of energy of their singular directions; "
            "1 to size",
            null="a probe",
            since=2,
        ),
        Column(
            "first_direction",
            pa.float32(),
            "share of the embeddings' energy (sum of squares) in their first singular direction; 1: they are all one line",
            null="a probe",
            since=2,
        ),
    ),
    key=("run_id", "model"),
    order=("model",),
)

FM_METRICS = Table(
    "fm_metrics",
    "how a factorisation machine or probe does on one split, in one epoch of its training",
    (
        RUN_ID,
        MODEL,
        Column("epoch", pa.int32(), "from 1; of a probe, which is fitted until it converges, the number of the penalty"),
        Column("split", pa.string(), "train (as the epoch goes by), val or test (after it)"),
        Column("n_prompts", pa.int32(), "prompts of the split", at_least=0),
        Column("loss", pa.float32(), "mean negative log-likelihood of the label (nats)", null="no prompts", at_least=0),
        Column("accuracy", pa.float32(), "share of prompts whose label is right", null="no prompts"),
    ),
    key=("run_id", "model", "epoch", "split"),
    order=("model", "epoch", "split"),
)

FM_EMBEDDINGS = Table(
    "fm_embeddings",
    "what a factorisation machine learned about one feature (R9)",
    (
        RUN_ID,
        MODEL,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("n_train", pa.int32(), "training prompts on which it fires"),
        Column("scale", pa.float32(), "its largest value in training, by which its values are divided"),
        Column("weight", pa.float32(), "linear weight of its scaled value"),
        Column("vector", VECTOR, "its embedding; two features interact by the dot product of theirs"),
    ),
    key=("run_id", "model", "sae_id", "feature_id"),
    order=("model", "layer", "feature_id"),
)

FM_PAIRS = Table(
    "fm_pairs",
    "one of the strongest pairs of features of a factorisation machine (R9)",
    (
        RUN_ID,
        MODEL,
        Column("rank", pa.int32(), "from 1, by the size of the contribution"),
        Column("sae_id_a", pa.string(), "the SAE of the first", refers="saes.sae_id"),
        Column("layer_a", pa.int16(), "its layer", limit=of_layer("sae_id_a")),
        Column("feature_id_a", pa.int32(), "the first feature", limit=of_width("sae_id_a")),
        Column("sae_id_b", pa.string(), "the SAE of the second", refers="saes.sae_id"),
        Column("layer_b", pa.int16(), "its layer", limit=of_layer("sae_id_b")),
        Column("feature_id_b", pa.int32(), "the second feature", limit=of_width("sae_id_b")),
        Column("dot", pa.float32(), "dot product of the embeddings"),
        Column("cosine", pa.float32(), "their cosine", at_least=-1, at_most=1, encoding=BYTE_STREAM),
        Column("cofiring", pa.float32(), "mean product of the two scaled values over the training prompts"),
        Column("contribution", pa.float32(), "dot x cofiring: what the pair adds to the logit of the target label, on average"),
    ),
    key=("run_id", "model", "rank"),
    order=("model", "rank"),
)

PROBE_WEIGHTS = Table(
    "probe_weights",
    "the weight of one feature in the logistic probe (R12)",
    (
        RUN_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("n_train", pa.int32(), "training prompts on which it fires"),
        Column("scale", pa.float32(), "its largest value in training, by which its values are divided"),
        Column("weight", pa.float32(), "weight of its scaled value"),
    ),
    key=("run_id", "sae_id", "feature_id"),
    order=("layer", "feature_id"),
)

PREDICTIONS = Table(
    "predictions",
    "what a factorisation machine or probe says of one prompt",
    (
        RUN_ID,
        MODEL,
        PROMPT_ID,
        Column("split", pa.string(), "train, val or test of the machine, not of the study"),
        Column("label", pa.string(), "the prompt's label, target or control"),
        Column("p_harmful", pa.float32(), "p_target", until=1, elsewhere="p_target"),
        Column("p_target", pa.float32(), "its probability of the target label", since=2, elsewhere="p_harmful"),
        Column("correct", pa.bool_(), "the more probable label is the prompt's"),
    ),
    key=("run_id", "model", "prompt_id"),
    order=("model", "split", "prompt_id"),
)

CAUSAL_LINKS = Table(
    "causal_links",
    "one critical feature that fires on a prompt, while Stage 3's new features alone are ablated there (R11)",
    (
        RUN_ID,
        PROMPT_ID,
        Column("k", pa.int32(), "new features that were asked for", at_least=0),
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("lowest_layer", pa.int16(), "lowest layer of the new features; nothing below or in it can change"),
        Column("clean", pa.float32(), "its largest activation on the clean pass"),
        Column("ablated", pa.float32(), "its largest activation in the ablated pass; 0: it is switched off"),
    ),
    key=("prompt_id", "k", "sae_id", "feature_id"),
    order=("k", "prompt_id", "layer", "feature_id"),
)

ALONE = "every prompt is a family of its own, or the row is about neither flips nor probabilities"
UNTESTED = f"{ALONE}, or nothing is compared, or over 20 families have no exact test"

COMPARISONS = Table(
    "comparisons",
    "one rate with its interval, one comparison with its test, or the stability of one kind of set (R21)",
    (
        RUN_ID,
        Column("kind", pa.string(), "rate, comparison or stability"),
        Column(
            "measure",
            pa.string(),
            "flipped, flipped_held_out (target prompts from which no direction was made or chosen, by prompt_hash, where "
            "these are not all), p_refusal_token, correct, jaccard",
        ),
        Column(
            "label",
            pa.string(),
            "label of the prompts, of the target label those that are refused at baseline; all: of the rows about models",
        ),
        Column("a", pa.string(), "the condition, in one word, or the model"),
        Column("b", pa.string(), "what it is held against; starts or halves for stability; empty for a rate"),
        Column("k", pa.int32(), "K of the conditions", null="not a matter of K", at_least=0),
        Column("tau", pa.float32(), "threshold of Algorithm 1", null="another method"),
        Column("n", pa.int32(), "prompts; for a comparison those with both answers; 1 for two halves"),
        Column("estimate", pa.float64(), "the rate; a - b; the mean Jaccard index"),
        Column("low", pa.float64(), "lower end of its 95% interval", null="no interval"),
        Column("high", pa.float64(), "upper end of its 95% interval", null="no interval"),
        Column(
            "test",
            pa.string(),
            "mcnemar_exact, permutation (exact, over all sign flips), permutation_drawn (10,000 of them: p is at least 0.0001) "
            "or wilcoxon; else the interval's: wilson, bootstrap or empty",
        ),
        Column("p", pa.float64(), "two-sided p of no difference", null="nothing is compared"),
        Column("p_holm", pa.float64(), "p, Holm-corrected over all comparisons of this measure", null="nothing is compared"),
        Column("effect", pa.float64(), "effect size", null="nothing is compared"),
        Column("effect_measure", pa.string(), "odds_ratio, cohens_h or rank_biserial; empty if nothing is compared"),
        Column("n_families", pa.int32(), "families of prompts among n", null=ALONE, since=2, at_least=1),
        Column("low_families", pa.float64(), "lower end of the 95% interval over families", null=ALONE, since=2),
        Column("high_families", pa.float64(), "upper end of the 95% interval over families", null=ALONE, since=2),
        Column(
            "p_families",
            pa.float64(),
            "two-sided p, every family's prompts keeping one sign: at least 2^(1 - families that differ)",
            null=UNTESTED,
            since=2,
        ),
        Column(
            "p_families_holm",
            pa.float64(),
            "p_families, Holm-corrected over all comparisons of this measure",
            null=UNTESTED,
            since=2,
        ),
    ),
    key=("run_id", "kind", "measure", "label", "a", "b", "k", "tau"),
    order=("kind", "measure", "label", "a", "b", "k", "tau"),
)
