"""The protocol: every table of a lake, every column with its type, meaning and unit. Where code differs, the code is wrong.

Identity. `prompt_id`, `ablation_id` and `set_id` are int64: the 31-bit tag of the run that made them, shifted left by 32, plus a
dense 32-bit index. They are unique across runs, so a join needs one column. They pass 2^53: JSON carries them as strings.
A feature is `(sae_id, feature_id)`. `layer` is the block after which resid_post is read, counted from 0.
"""

import pyarrow as pa

from .columns import ABLATION_ID, FEATURE_ID, LAYER, POS, PROMPT_ID, RUN_ID, SAE_ID, SET_ID, Column, Table
from .schema_meaning import ANNOTATIONS, CONCEPTS, EXPLANATIONS, POPULATIONS, TAXONOMY

SCHEMA_VERSION = 1

PROMPTS = Table(
    "prompts",
    "one prompt of the study",
    (
        RUN_ID,
        PROMPT_ID,
        Column("prompt_hash", pa.string(), "hash of the text; the same text in two runs shares it"),
        Column("set", pa.string(), "the recipe's prompt set"),
        Column("split", pa.string(), "train, val or test"),
        Column("label", pa.string(), "harmful or benign"),
        Column("category", pa.string(), "category within the set", null="the set has none"),
        Column("text", pa.string(), "the user's text, before the chat template"),
        Column("n_tokens", pa.int32(), "tokens of the templated prompt"),
        Column("template_hash", pa.string(), "hash of the chat template"),
    ),
    key=("prompt_id",),
    order=("prompt_id",),
)
TOKENS = Table(
    "tokens",
    "one token of a templated prompt",
    (
        RUN_ID,
        PROMPT_ID,
        POS,
        Column("token_id", pa.int32(), "index in the model's vocabulary"),
        Column("token", pa.string(), "the token as text"),
        Column("role", pa.string(), "bos, template or user"),
    ),
    key=("prompt_id", "pos"),
    order=("prompt_id", "pos"),
)
SAES = Table(
    "saes",
    "one sparse autoencoder of the study",
    (
        RUN_ID,
        SAE_ID,
        Column("name", pa.string(), "the exact SAE: release and id, or folder and content hash"),
        LAYER,
        Column("width", pa.int32(), "number of features"),
        Column("hook", pa.string(), "the activation that it reads"),
        Column("norm", pa.string(), "input normalisation convention"),
        Column("declared_l0", pa.float32(), "mean active features a token, as published", null="not declared"),
        Column("measured_l0", pa.float32(), "mean active features a token on this study's prompts, BOS left out"),
    ),
    key=("run_id", "sae_id"),
    order=("layer", "sae_id"),
)
FEATURES = Table(
    "features",
    "one feature of an SAE, firing or not; statistics leave BOS out",
    (
        RUN_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("decoder_norm", pa.float32(), "L2 norm of its decoder row"),
        Column("threshold", pa.float32(), "pre-activation above which it fires"),
        Column("n_tokens", pa.int64(), "tokens on which it fires"),
        Column("n_bos", pa.int64(), "BOS tokens on which it fires"),
        Column("n_prompts", pa.int32(), "prompts on which it fires"),
        Column("n_harmful", pa.int32(), "harmful prompts on which it fires"),
        Column("n_benign", pa.int32(), "benign prompts on which it fires"),
        Column("mean_activation", pa.float32(), "mean over the tokens on which it fires", null="never fires"),
        Column("max_activation", pa.float32(), "largest activation", null="never fires"),
    ),
    key=("run_id", "sae_id", "feature_id"),
    order=("layer", "feature_id"),
    by_layer=True,
)
ACTIVATIONS = Table(
    "activations",
    "one non-zero activation: the fact table",
    (
        RUN_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        PROMPT_ID,
        POS,
        Column("activation", pa.float32(), "the feature's activation, above 0"),
    ),
    key=("sae_id", "feature_id", "prompt_id", "pos"),
    order=("feature_id", "prompt_id", "pos"),
    by_layer=True,
)
ACTIVATIONS_BY_PROMPT = Table(
    "activations_by_prompt",
    "one non-zero activation, again: all that fires on a prompt lies together, where the recipe asks for it",
    ACTIVATIONS.columns,
    key=ACTIVATIONS.key,
    order=("prompt_id", "layer", "feature_id", "pos"),
    copies="activations",
)
DIRECTIONS = Table(
    "directions",
    "the refusal direction of one layer (R3)",
    (
        RUN_ID,
        LAYER,
        Column(
            "vector",
            pa.list_(pa.field("element", pa.float32(), nullable=False)),
            "unit vector: mean resid_post at the last token, harmful minus benign",
        ),
        Column("norm", pa.float32(), "length of the difference before it was scaled to 1"),
        Column("n_prompts", pa.int32(), "selection prompts: harmful and refused by the unmodified model"),
        Column("n_flipped", pa.int32(), "selection prompts that flip when the direction is projected out of every layer"),
        Column("p_refusal_token", pa.float32(), "mean probability of a refusal token on them, projected out"),
        Column("kl", pa.float32(), "mean KL divergence of the next token on benign prompts, projected out (nats)"),
        Column("induced", pa.float32(), "share of benign prompts that are refused when the direction is added at its layer"),
        Column("admitted", pa.bool_(), "passes the recipe's filters"),
        Column("chosen", pa.bool_(), "the direction that the study uses"),
    ),
    key=("run_id", "layer"),
    order=("layer",),
)
ALIGNMENTS = Table(
    "alignments",
    "how one decoder row lies to a refusal direction (R5); candidates are a query over it",
    (
        RUN_ID,
        Column("direction", pa.string(), "own: the direction of the feature's layer; chosen: the study's one direction"),
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("cosine", pa.float32(), "signed cosine of decoder row and direction"),
    ),
    key=("run_id", "direction", "sae_id", "feature_id"),
    order=("direction", "feature_id"),
    by_layer=True,
)
FEATURE_SETS = Table(
    "feature_sets",
    "one feature of a set; each distinct set is stored once a run",
    (
        RUN_ID,
        SET_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("value", pa.float32(), "0 = ablated, else the activation that it is clamped to"),
    ),
    key=("set_id", "sae_id", "feature_id"),
    order=("set_id", "layer", "feature_id"),
    owns="set_id",
)
ABLATIONS = Table(
    "ablations",
    "one prompt answered under one intervention",
    (
        RUN_ID,
        ABLATION_ID,
        PROMPT_ID,
        Column("set_id", pa.int64(), "the features that were ablated", null="none, or a direction"),
        Column("stage", pa.string(), "the stage that asked"),
        Column("condition", pa.string(), "none, direction, top_k_own, top_k_chosen, random, ..."),
        Column("seed", pa.int32(), "seed of the draw", null="nothing was drawn"),
        Column("draw", pa.int32(), "number of the draw, from 0", null="nothing was drawn"),
        Column("k", pa.int32(), "features a layer that were asked for", null="not a matter of K"),
        Column("tau", pa.float32(), "threshold of Algorithm 1", null="another method"),
        Column("p_refusal_token", pa.float32(), "probability that the answer's first token is a refusal token"),
        Column("first_token", pa.string(), "the most probable first token of the answer"),
        Column("completion", pa.string(), "the greedy answer; model text, untrusted; empty where nothing was generated (waking)"),
    ),
    key=("ablation_id",),
    order=("condition", "k", "tau", "draw", "seed", "prompt_id"),
    owns="ablation_id",
)
VERDICTS = Table(
    "verdicts",
    "one judge's reading of one ablation's answer (R7)",
    (
        RUN_ID,
        ABLATION_ID,
        Column("judge", pa.string(), "first_token, phrases, ..."),
        Column("refused", pa.bool_(), "the judge reads the answer as a refusal"),
        Column("degenerate", pa.bool_(), "the answer is not sensible text, whatever it says"),
        Column("flipped", pa.bool_(), "an answer: neither refused nor degenerate"),
        Column("score", pa.float32(), "the judge's own measure of refusal, 0 to 1"),
    ),
    key=("ablation_id", "judge"),
    order=("judge", "ablation_id"),
)
SEARCH_TRACE = Table(
    "search_trace",
    "one evaluation of Algorithm 1 (R6): the candidates without the first blocks of one random sequence",
    (
        RUN_ID,
        PROMPT_ID,
        Column("seed", pa.int32(), "number of the random sequence, from 0"),
        Column("step", pa.int32(), "blocks that are not ablated any more"),
        Column("block", pa.int64(), "set_id of the block that this step adds to those", null="step 0", refers="set_id"),
        Column("p_refusal_token", pa.float32(), "probability of a refusal token under the ablation of the rest"),
    ),
    key=("prompt_id", "seed", "step"),
    order=("prompt_id", "seed", "step"),
)
SEARCHES = Table(
    "searches",
    "one search of a prompt's critical set",
    (
        RUN_ID,
        PROMPT_ID,
        Column("method", pa.string(), "algorithm1 or minimal"),
        Column("start", pa.int32(), "number of the random start or sequence, from 0"),
        Column("k", pa.int32(), "candidates a layer that it began with: the prompt's first flip"),
        Column("n_candidates", pa.int32(), "features that it began with"),
        Column("n_evaluations", pa.int32(), "ablated passes that it asked for"),
    ),
    key=("prompt_id", "method", "start"),
    order=("method", "prompt_id", "start"),
)
LAYER_COSINES = Table(
    "layer_cosines",
    "how the residual stream of a prompt's last token lies to a refusal direction after one block (R4)",
    (
        RUN_ID,
        PROMPT_ID,
        Column("direction", pa.string(), "own: the direction of this layer; chosen: the study's one direction"),
        LAYER,
        Column("cosine", pa.float32(), "cosine of resid_post at the last token and the direction"),
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
        Column("other_sae_id", pa.string(), "the SAE of the other feature"),
        Column("other_layer", pa.int16(), "its layer"),
        Column("other_feature_id", pa.int32(), "its index"),
        Column("cosine", pa.float32(), "cosine of the two decoder rows, at least the recipe's redundancy.min_cosine"),
    ),
    key=("run_id", "sae_id", "feature_id", "other_sae_id", "other_feature_id"),
    order=("layer", "feature_id", "other_layer", "other_feature_id"),
)
CRITICAL_FEATURES = Table(
    "critical_features",
    "one feature of a set that Stage 2 found for a prompt, and whether it fires on that prompt at all (R8)",
    (
        RUN_ID,
        PROMPT_ID,
        Column("method", pa.string(), "minimal, or algorithm1: what all seeds find, at the smallest tau that flips"),
        Column("start", pa.int32(), "number of the random start of the search; 0 where there is one set only"),
        Column("tau", pa.float32(), "threshold of Algorithm 1", null="another method"),
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("n_tokens", pa.int32(), "tokens of the prompt on which it fires, BOS included; 0: it is inert"),
        Column("max_activation", pa.float32(), "its largest activation there", null="inert"),
    ),
    key=("prompt_id", "method", "start", "sae_id", "feature_id"),
    order=("method", "start", "prompt_id", "layer", "feature_id"),
)
WAKING_PASSES = Table(
    "waking_passes",
    "one ablated pass whose activations were captured, and whose ablation it stands for (R13)",
    (
        RUN_ID,
        ABLATION_ID,
        PROMPT_ID,
        Column("method", pa.string(), "whose critical set was ablated, what of it fires", null="one critical feature"),
        Column("start", pa.int32(), "the search's start", null="one critical feature"),
        Column("source_sae_id", pa.string(), "SAE of the one critical feature", null="a whole set"),
        Column("source_layer", pa.int16(), "its layer", null="a whole set"),
        Column("source_feature_id", pa.int32(), "its index", null="a whole set"),
        Column(
            "control",
            pa.int32(),
            "number of the matched control, from 0: as many other features that fire about as strongly in the same layers, "
            "ablated instead",
            null="the critical features themselves",
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
        Column("activation", pa.float32(), "the feature's activation in the ablated pass, before it is itself ablated; above 0"),
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
        Column("n_tokens", pa.int32(), "tokens on which it fires then"),
        Column("n_first", pa.int32(), "of these the prompt's first token"),
        Column("n_template", pa.int32(), "of these other tokens of the template"),
        Column("n_user", pa.int32(), "of these the user's tokens"),
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
        Column("source_sae_id", pa.string(), "SAE of the ablated feature", null="the prompt's whole critical set"),
        Column("source_layer", pa.int16(), "its layer", null="the prompt's whole critical set"),
        Column("source_feature_id", pa.int32(), "its index", null="the prompt's whole critical set"),
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("n_prompts", pa.int32(), "prompts on which the source was ablated"),
        Column("n_tested", pa.int32(), "of these those with a matched control"),
        Column("n_woken", pa.int32(), "prompts on which it wakes the feature"),
        Column("n_woken_tested", pa.int32(), "of these those with a matched control"),
        Column("expected", pa.float64(), "n_woken_tested that the controls let expect if the source were one of them"),
        Column("n_tokens", pa.int32(), "woken tokens over all prompts"),
        Column("n_first", pa.int32(), "of these first tokens"),
        Column("n_template", pa.int32(), "of these other template tokens"),
        Column("n_user", pa.int32(), "of these the user's"),
        Column("mean_activation", pa.float32(), "mean over prompts of the largest activation", null="never woken by the source"),
        Column("p_value", pa.float64(), "one-sided: chance of n_woken_tested or more if the source were one of its controls"),
        Column("q_value", pa.float64(), "p_value after Benjamini-Hochberg over all edges of single sources, or of whole sets"),
    ),
    key=("run_id", "source_sae_id", "source_feature_id", "sae_id", "feature_id"),
    order=("source_layer", "source_feature_id", "layer", "feature_id"),
)
LOSSES = Table(
    "losses",
    "cross-entropy of one text under one intervention (R16)",
    (
        RUN_ID,
        Column("texts", pa.string(), "the recipe's set of texts"),
        Column("text_number", pa.int32(), "the text's place in it, from 0"),
        Column("text_hash", pa.string(), "hash of the text"),
        Column("condition", pa.string(), "none, direction, or minimal: a prompt's critical set is ablated"),
        Column("lender", pa.int64(), "the prompt whose set it is", null="no set", refers="prompt_id"),
        Column("n_features", pa.int32(), "features that are ablated"),
        Column("n_context", pa.int32(), "tokens that are context only: BOS, or the templated prompt"),
        Column("n_tokens", pa.int32(), "tokens whose loss counts"),
        Column("is_cut", pa.bool_(), "the text was longer than the recipe's max_tokens"),
        Column("loss", pa.float32(), "mean negative log-likelihood of these tokens (nats)"),
    ),
    key=("texts", "text_number", "condition", "lender"),
    order=("texts", "condition", "lender", "text_number"),
)

VECTOR = pa.list_(pa.field("element", pa.float32(), nullable=False))
MODEL = Column("model", pa.string(), "fm_20 (a factorisation machine with embeddings of length 20), probe, ...")
MODELS = Table(
    "models",
    "one fitted factorisation machine or probe (R9, R12)",
    (
        RUN_ID,
        MODEL,
        Column("size", pa.int32(), "length of its embeddings; 0 for a probe"),
        Column("bias", pa.float32(), "its constant term"),
        Column("best_epoch", pa.int32(), "the epoch, from 1, whose parameters are kept: best on validation"),
        Column("n_features", pa.int32(), "features that fire on a training prompt, on the tokens that count"),
        Column("n_untrained", pa.int32(), "features that fire only on validation or test prompts, and are left out"),
        Column("n_nonzeros", pa.int64(), "feature values of the training prompts that are not 0"),
        Column("mean_cosine", pa.float32(), "mean cosine of two features' embeddings", null="a probe"),
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
        Column("epoch", pa.int32(), "from 1"),
        Column("split", pa.string(), "train (as the epoch goes by), val or test (after it)"),
        Column("n_prompts", pa.int32(), "prompts of the split"),
        Column("loss", pa.float32(), "mean negative log-likelihood of the label (nats)", null="no prompts"),
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
        Column("sae_id_a", pa.string(), "the SAE of the first"),
        Column("layer_a", pa.int16(), "its layer"),
        Column("feature_id_a", pa.int32(), "the first feature"),
        Column("sae_id_b", pa.string(), "the SAE of the second"),
        Column("layer_b", pa.int16(), "its layer"),
        Column("feature_id_b", pa.int32(), "the second feature"),
        Column("dot", pa.float32(), "dot product of the embeddings"),
        Column("cosine", pa.float32(), "their cosine"),
        Column("cofiring", pa.float32(), "mean product of the two scaled values over the training prompts"),
        Column("contribution", pa.float32(), "dot x cofiring: what the pair adds to the logit of harmful, on average"),
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
        Column("label", pa.string(), "harmful or benign"),
        Column("p_harmful", pa.float32(), "its probability of harmful"),
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
        Column("k", pa.int32(), "new features that were asked for"),
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
COMPARISONS = Table(
    "comparisons",
    "one rate with its interval, one comparison with its test, or the stability of one kind of set (R21)",
    (
        RUN_ID,
        Column("kind", pa.string(), "rate, comparison or stability"),
        Column("measure", pa.string(), "flipped, p_refusal_token, correct, jaccard"),
        Column("label", pa.string(), "label of the prompts: harmful (those that are refused at baseline), benign or all"),
        Column("a", pa.string(), "the condition or model"),
        Column("b", pa.string(), "what it is held against; starts or halves for stability; empty for a rate"),
        Column("k", pa.int32(), "K of the conditions", null="not a matter of K"),
        Column("tau", pa.float32(), "threshold of Algorithm 1", null="another method"),
        Column("n", pa.int32(), "prompts; for a comparison those with both answers; 1 for two halves"),
        Column("estimate", pa.float64(), "the rate; a - b; the mean Jaccard index"),
        Column("low", pa.float64(), "lower end of its 95% interval", null="no interval"),
        Column("high", pa.float64(), "upper end of its 95% interval", null="no interval"),
        Column("test", pa.string(), "mcnemar_exact, permutation or wilcoxon; else the interval's: wilson, bootstrap or empty"),
        Column("p", pa.float64(), "two-sided p of no difference", null="nothing is compared"),
        Column("p_holm", pa.float64(), "p, Holm-corrected over all comparisons of this measure", null="nothing is compared"),
        Column("effect", pa.float64(), "effect size", null="nothing is compared"),
        Column("effect_measure", pa.string(), "odds_ratio, cohens_h or rank_biserial; empty if nothing is compared"),
    ),
    key=("run_id", "kind", "measure", "label", "a", "b", "k", "tau"),
    order=("kind", "measure", "label", "a", "b", "k", "tau"),
)

TABLES = {
    t.name: t
    for t in (
        PROMPTS,
        TOKENS,
        SAES,
        FEATURES,
        ACTIVATIONS,
        ACTIVATIONS_BY_PROMPT,
        DIRECTIONS,
        ALIGNMENTS,
        FEATURE_SETS,
        ABLATIONS,
        VERDICTS,
        SEARCH_TRACE,
        SEARCHES,
        LAYER_COSINES,
        DECODER_COSINES,
        CRITICAL_FEATURES,
        WAKING_PASSES,
        REACTIVATIONS,
        WAKINGS,
        WAKING_EDGES,
        LOSSES,
        MODELS,
        FM_METRICS,
        FM_EMBEDDINGS,
        FM_PAIRS,
        PROBE_WEIGHTS,
        PREDICTIONS,
        CAUSAL_LINKS,
        COMPARISONS,
        POPULATIONS,
        TAXONOMY,
        EXPLANATIONS,
        CONCEPTS,
        ANNOTATIONS,
    )
}

RUNS_STRUCTURE = {
    "run_id": "VARCHAR",
    "stage": "VARCHAR",
    "recipe": "VARCHAR",
    "parents": ["VARCHAR"],
    "config": "JSON",
    "code_version": "VARCHAR",
    "schema_version": "INTEGER",
    "seed": "BIGINT",
    "hardware": "JSON",
    "versions": "JSON",
    "started": "TIMESTAMP",
    "finished": "TIMESTAMP",
    "tables": [{"name": "VARCHAR", "n_rows": "BIGINT", "content_hash": "VARCHAR"}],
    "files": [{"table": "VARCHAR", "path": "VARCHAR", "n_rows": "BIGINT", "n_bytes": "BIGINT", "sha256": "VARCHAR"}],
    "content_hash": "VARCHAR",
    "about": "JSON",
    "withheld": ["VARCHAR"],
}
"""The `runs` table: one JSON record a run (`runs/<run_id>.json`), with the DuckDB types of its fields."""
