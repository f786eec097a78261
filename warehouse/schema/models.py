"""The tables of the protocol that say what models of interaction learned, and how sure findings are (R9-R12, R21)."""

import pyarrow as pa

from saelake.warehouse.schema.columns import (
    BYTE_STREAM,
    FEATURE_ID,
    LAYER,
    PROMPT_ID,
    RUN_ID,
    SAE_ID,
    VECTOR,
    Column,
    Table,
    of_layer,
    of_width,
)

MODEL = Column("model", pa.string(), "fm_20 (a factorisation machine with embeddings of length 20), probe, ...")

MODELS = Table(
    "models",
    "one fitted factorisation machine or probe (R9, R12)",
    (
        RUN_ID,
        MODEL,
        Column("size", pa.int32(), "length of its embeddings; 0 for a probe", at_least=0),
        Column("bias", pa.float32(), "its constant term"),
        Column(
            "best_epoch",
            pa.int32(),
            "the epoch, from 1, whose parameters are kept: best on validation; of a probe, the number of the penalty",
            at_least=0,
        ),
        Column("n_features", pa.int32(), "features that fire on a training prompt, on the tokens that count", at_least=0),
        Column("n_untrained", pa.int32(), "features that fire only on validation or test prompts, and are left out", at_least=0),
        Column("n_nonzeros", pa.int64(), "feature values of the training prompts that are not 0", at_least=0),
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
        Column(
            "epoch", pa.int32(), "from 1; of a probe, which is fitted until it converges, the number of the penalty", at_least=0
        ),
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
        Column("n_train", pa.int32(), "training prompts on which it fires", at_least=0),
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
        Column("rank", pa.int32(), "from 1, by the size of the contribution", at_least=1),
        Column("sae_id_a", pa.string(), "the SAE of the first", refers="saes.sae_id"),
        Column("layer_a", pa.int16(), "its layer", at_least=0, limit=of_layer("sae_id_a")),
        Column("feature_id_a", pa.int32(), "the first feature", at_least=0, limit=of_width("sae_id_a")),
        Column("sae_id_b", pa.string(), "the SAE of the second", refers="saes.sae_id"),
        Column("layer_b", pa.int16(), "its layer", at_least=0, limit=of_layer("sae_id_b")),
        Column("feature_id_b", pa.int32(), "the second feature", at_least=0, limit=of_width("sae_id_b")),
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
        Column("n_train", pa.int32(), "training prompts on which it fires", at_least=0),
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
        Column("p_harmful", pa.float32(), "former name of p_target", until=1, elsewhere="p_target"),
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
        Column("lowest_layer", pa.int16(), "lowest layer of the new features; nothing below it can change", at_least=0),
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
        Column("b", pa.string(), "what it is compared with; starts or halves for stability; empty for a rate"),
        Column("k", pa.int32(), "K of the conditions", null="not a matter of K", at_least=0),
        Column("tau", pa.float32(), "threshold of Algorithm 1", null="another method"),
        Column(
            "n",
            pa.int32(),
            "prompts; for a comparison of p_refusal_token those with both answers, of flips all, answered or not; 1 for two "
            "halves",
            at_least=0,
        ),
        Column("estimate", pa.float64(), "the rate; a - b; the mean Jaccard index"),
        Column("low", pa.float64(), "lower end of its 95% interval", null="no interval"),
        Column("high", pa.float64(), "upper end of its 95% interval", null="no interval"),
        Column(
            "test",
            pa.string(),
            "mcnemar_exact, permutation (exact, over all sign flips), permutation_drawn (9,999 of them: p is at least 0.0002) "
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
