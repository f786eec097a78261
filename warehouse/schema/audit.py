"""The tables of the recovery audit: whether a small change of the residual stream brings back what ablating a set took away."""

import pyarrow as pa

from saelake.warehouse.schema.columns import BYTE_STREAM, LAYER, POS, PROMPT_ID, RUN_ID, SAE_ID, Column, Table

SOURCE = Column(
    "source",
    pa.string(),
    "whose set is held ablated: minimal, the first minimal set; top_k, the candidates of the prompt's first flip; common, what "
    "Algorithm 1 finds under all seeds; none, nothing is held",
    choices=("minimal", "top_k", "common", "none"),
    since=2,
)
CONTROL = Column(
    "control",
    pa.string(),
    "random: as many random active features",
    null="the set itself, or nothing",
    choices=("random",),
    since=2,
)
KINDS = ("features", "error", "orthogonal", "free", "random")
KIND = Column(
    "kind",
    pa.string(),
    "what the change may be; free: anything; orthogonal: what leaves the readings of the set's features, at its site and after "
    "it, as they were; features: a sum of the decoder rows of other features that fire there; error: what these rows and the "
    "set's do not span; random: drawn by chance, as long as the budget",
    choices=KINDS,
    since=2,
)
BUDGET = Column(
    "budget", pa.float32(), "how long the change may be, relative to the residual stream that it changes", at_least=0, since=2
)
N_EVALUATIONS = Column(
    "n_evaluations", pa.int32(), "passes spent on the row's search, a backward pass counts as two", at_least=0, since=2
)

RECOVERIES = Table(
    "recoveries",
    "the search for one change of the residual stream at one site, on one prompt while a set is held ablated",
    (
        RUN_ID,
        PROMPT_ID,
        SOURCE,
        CONTROL,
        Column(
            "set_id",
            pa.int64(),
            "the set",
            null="nothing is held",
            refers="feature_sets.set_id",
            since=2,
        ),
        SAE_ID,
        LAYER,
        KIND,
        BUDGET,
        Column("shown_before", pa.bool_(), "the answer shows the behaviour without any change, though the set is held", since=2),
        Column("shown", pa.bool_(), "the answer shows the behaviour with the change, by the oracle", since=2),
        Column("p_before", pa.float32(), "P(target) without the change", at_least=0, at_most=1, since=2),
        Column("p_target", pa.float32(), "P(target) with it", at_least=0, at_most=1, encoding=BYTE_STREAM, since=2),
        Column(
            "norm",
            pa.float32(),
            "length of the change over the changed tokens, relative to what the residual stream is there under the set",
            at_least=0,
            encoding=BYTE_STREAM,
            since=2,
        ),
        Column(
            "drift",
            pa.float32(),
            "largest change of what a feature of the set reads before its gate, relative to the largest that it reads without "
            "the change, under the set or in the unmodified pass",
            null="no feature of the set reads at the site or after it, or nothing was sought (shown_before)",
            at_least=0,
            since=2,
        ),
        Column(
            "cosine",
            pa.float32(),
            "cosine with the chosen direction of the change at the token that it changes most",
            null="nothing is changed, or the site is that of the heads' outputs, which are not of the residual stream",
            at_least=-1.001,
            at_most=1.001,
            since=2,
        ),
        Column(
            "in_features",
            pa.float32(),
            "share of the change, squared, that the decoder rows span of the features that fire there, those of the set left out",
            null="nothing is changed",
            at_least=0,
            at_most=1.001,
            since=2,
        ),
        Column(
            "in_error",
            pa.float32(),
            "share of it that these rows and the set's do not span: what the SAE leaves in its error",
            null="nothing is changed",
            at_least=0,
            at_most=1.001,
            since=2,
        ),
        Column(
            "pos",
            pa.int16(),
            "the token that is changed most",
            null="nothing is changed",
            at_least=0,
            limit=POS.limit,
            since=2,
        ),
        Column(
            "at_pos", pa.float32(), "share of the change, squared, on that token", null="nothing is changed", at_least=0, since=2
        ),
        N_EVALUATIONS,
    ),
    key=("prompt_id", "source", "control", "sae_id", "kind", "budget"),
    order=("prompt_id", "source", "control", "layer", "sae_id", "kind", "budget"),
)

RECOVERY_RATES = Table(
    "recovery_rates",
    "how often changes of one kind and budget bring the behaviour back, over prompts that do not show it without them",
    (
        RUN_ID,
        Column(
            "label_role",
            pa.string(),
            "target: prompts that show the behaviour unmodified; control: prompts that never do",
            choices=("target", "control"),
            since=2,
        ),
        SOURCE,
        CONTROL,
        Column("layer", pa.int16(), "the changed site's layer", null="any of the sites", at_least=0, since=2),
        KIND,
        BUDGET,
        Column("n_prompts", pa.int32(), "prompts that do not show the behaviour while the set is held", at_least=1, since=2),
        Column("n_recovered", pa.int32(), "of these, prompts that do with a change", at_least=0, since=2),
        Column("rate", pa.float32(), "their share", at_least=0, at_most=1, since=2),
        Column("low", pa.float32(), "lower end of its 95% interval, with families of prompts as clusters", at_least=0, since=2),
        Column("high", pa.float32(), "upper end", at_most=1, since=2),
    ),
    key=("label_role", "source", "control", "layer", "kind", "budget"),
    order=("label_role", "source", "control", "layer", "kind", "budget"),
)
