"""The tables of the protocol that the search for causes writes: ablations, verdicts, searches (R6-R8, R15, R17)."""

from dataclasses import replace

import pyarrow as pa

from saelake.warehouse.schema.columns import (
    ABLATION_ID,
    FEATURE_ID,
    LAYER,
    MADE_ELSEWHERE,
    PROMPT_ID,
    RUN_ID,
    SAE_ID,
    SET_ID,
    Column,
    Table,
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
        Column(
            "positions",
            pa.string(),
            "where it is held: positions from either end and roles of tokens, joined by commas; answer: generated tokens",
            null="everywhere, or where the condition says",
            since=2,
        ),
    ),
    key=("set_id", "sae_id", "feature_id"),
    order=("set_id", "layer", "feature_id"),
    owns="set_id",
)

NAME = (
    "concat_ws('_', case when control = 'random' then control end, "
    "case when control = 'random' and method = 'top_k' then null else method end, part, "
    "case control when 'random' then null when 'matched' then 'control' else control end)"
)
"""How a condition reads: top_k_own, minimal_active, stage3_control; of random ones random_minimal, or, K of each SAE, random."""
VERSION_1 = (
    "'^(?:random_)?(top_k|clamp|waking|minimal|algorithm1(?:_n(?:[0-9]+|auto))?|stage3(?:_probe|_signed|_alignment)?)"
    "(?:_(own|chosen|first_token|all_tokens|set|one|active|silent|common|complement|common_complement|alone))?(?:_control)?$'"
)
"""A name of version 1 that holds a method and a part; others are methods as they are: none, direction, what a person chose."""

ABLATIONS = Table(
    "ablations",
    "one prompt answered under one intervention",
    (
        RUN_ID,
        ABLATION_ID,
        PROMPT_ID,
        replace(SET_ID, meaning="the features that were ablated", null="none, or a direction"),
        Column("stage", pa.string(), "the stage that asked"),
        Column(
            "condition",
            pa.string(),
            "method, part and control in one word: none, direction, top_k_own, top_k_chosen, random, minimal_active, ...",
            until=1,
            elsewhere=NAME,
        ),
        Column(
            "method",
            pa.string(),
            "how what is ablated was found: none, direction, top_k, algorithm1, minimal, stage3, ..., or what a person called it",
            since=2,
            elsewhere=f"case condition when 'random' then 'top_k' "
            f"else coalesce(nullif(regexp_extract(condition, {VERSION_1}, 1), ''), condition) end",
        ),
        Column(
            "part",
            pa.string(),
            "which part of it, or by what: own, chosen, active, silent, common, alone, ...",
            null="all of it",
            since=2,
            elsewhere=f"nullif(regexp_extract(condition, {VERSION_1}, 2), '')",
        ),
        Column(
            "control",
            pa.string(),
            "what was ablated in its place: random (as many that fire on the prompt), matched (of the same SAEs as well), ...",
            null="no control: it is what was found",
            since=2,
            elsewhere="case when condition in ('random', 'random_minimal', 'random_algorithm1') then 'random' "
            f"when regexp_matches(condition, {VERSION_1}) and condition like '%_control' then 'matched' end",
        ),
        Column("seed", pa.int32(), "seed of the draw", null="nothing was drawn"),
        Column("draw", pa.int32(), "number of the draw, from 0", null="nothing was drawn", at_least=0),
        Column("k", pa.int32(), "features per SAE that were asked for", null="not a matter of K", at_least=0),
        Column("tau", pa.float32(), "threshold of Algorithm 1", null="another method"),
        Column(
            "n_uncertain",
            pa.int32(),
            "decisions that made the set of Algorithm 1 and that rounding may turn: tau is within the noise floor of the change",
            null="another method, or not measured",
            at_least=0,
            since=2,
        ),
        Column(
            "p_refusal_token",
            pa.float32(),
            "probability that the answer's first token is a refusal token",
            null=MADE_ELSEWHERE,
            null_since=2,
            at_least=0,
            at_most=1,
        ),
        Column(
            "first_token",
            pa.string(),
            "the most probable first token of the answer, as text",
            null=MADE_ELSEWHERE,
            null_since=2,
        ),
        Column(
            "margin",
            pa.float32(),
            "by how much the largest logit of a target token is above that of any other first token (nats): the judge "
            "first_token goes by its sign",
            null="not measured",
            since=2,
        ),
        Column(
            "completion",
            pa.string(),
            "the greedy answer; model text, untrusted; empty where nothing was generated (waking)",
            is_private=True,
        ),
    ),
    key=("ablation_id",),
    order=("method", "part", "control", "k", "tau", "draw", "seed", "prompt_id"),
    orders={1: ("condition", "k", "tau", "draw", "seed", "prompt_id")},
    owns="ablation_id",
)

DOSES = Table(
    "doses",
    "one answer of a sweep of strengths (R14): what was added or held, and how strongly",
    (
        RUN_ID,
        ABLATION_ID,
        Column(
            "edit",
            pa.string(),
            "add: strength times a vector is added; clamp: features are held at the strength",
            choices=("add", "clamp"),
            since=2,
        ),
        Column("source", pa.string(), "features as LAYER:ID, a direction, or the file of a vector", since=2),
        Column("sites", pa.string(), "hooks at which it acts, joined by a comma", since=2),
        Column("positions", pa.string(), "where it acts: as in feature_sets", null="everywhere", since=2),
        Column(
            "strength", pa.float32(), "how often the vector is added, or the activation", null="the unmodified model", since=2
        ),
        Column("norm", pa.float32(), "length of what strength 1 adds", null="clamped, or added at several sites", since=2),
    ),
    key=("ablation_id",),
    order=("source", "strength", "ablation_id"),
)

NOT_APPLIED = "does not apply: the judge cannot judge such a prompt, or answer"

VERDICTS = Table(
    "verdicts",
    "one judge's reading of one ablation's answer (R7)",
    (
        RUN_ID,
        ABLATION_ID,
        Column("judge", pa.string(), "first_token, phrases, ..."),
        Column("refused", pa.bool_(), "the judge reads the answer as a refusal", null=NOT_APPLIED, null_since=2),
        Column("degenerate", pa.bool_(), "the answer is not sensible text, whatever it says"),
        Column("degenerate_rule", pa.string(), "the rule that says so", null="not degenerate", since=2),
        Column("flipped", pa.bool_(), "an answer: neither refused nor degenerate", null=NOT_APPLIED, null_since=2),
        Column(
            "score",
            pa.float32(),
            "the judge's own measure of refusal, 0 to 1",
            null=NOT_APPLIED,
            null_since=2,
            at_least=0,
            at_most=1,
        ),
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
        Column("seed", pa.int32(), "number of the random sequence, from 0", at_least=0),
        Column("step", pa.int32(), "blocks that are not ablated any more", at_least=0),
        Column(
            "block", pa.int64(), "set_id of the block that this step adds to those", null="step 0", refers="feature_sets.set_id"
        ),
        Column(
            "p_refusal_token",
            pa.float32(),
            "probability of a refusal token under the ablation of the rest",
            at_least=0,
            at_most=1,
        ),
        Column(
            "noise",
            pa.float32(),
            "how far rounding may move the relative change by this step: a decision is uncertain where tau is no farther from it",
            null="step 0, or not measured",
            at_least=0,
            since=2,
        ),
    ),
    key=("prompt_id", "seed", "step"),
    order=("prompt_id", "seed", "step"),
)

NOISE = Table(
    "noise",
    "how far rounding moves the changes that Algorithm 1 decides by, as differences of log-odds below which 95% of them stay",
    (
        RUN_ID,
        Column("n_decisions", pa.int32(), "steps of sequences that it was measured on", at_least=0, since=2),
        Column("batch", pa.float64(), "prompts one at a time, and padded in batches (nats)", at_least=0, since=2),
        Column("dtype", pa.float64(), "the model in its dtype, and in float32; 0: that is its dtype (nats)", at_least=0, since=2),
        Column("floor", pa.float64(), "the larger of both", at_least=0, since=2),
    ),
    key=("run_id",),
    order=("n_decisions",),
)

SEARCHES = Table(
    "searches",
    "one search for a prompt's critical set",
    (
        RUN_ID,
        PROMPT_ID,
        Column("method", pa.string(), "algorithm1 (algorithm1_nN for a further block size) or minimal"),
        Column("start", pa.int32(), "number of the random start or sequence, from 0", at_least=0),
        Column(
            "k",
            pa.int32(),
            "candidates per SAE that it began with: the prompt's first flip; 0: all that fires was searched",
            at_least=0,
        ),
        Column(
            "ranking",
            pa.string(),
            "what ranked these candidates: own, chosen, attribution",
            null="all that fires was searched; unknown in older files",
            since=2,
        ),
        Column("n_candidates", pa.int32(), "features that it began with", at_least=0),
        Column(
            "n_evaluations",
            pa.int32(),
            "ablated passes that it asked for; with minimal.order = attribution those of start 0 have the gradient's 3 on top",
            at_least=0,
        ),
    ),
    key=("prompt_id", "method", "start"),
    order=("method", "prompt_id", "start"),
)

CRITICAL_FEATURES = Table(
    "critical_features",
    "one feature of a set that Stage 2 found for a prompt, and whether it fires on that prompt at all (R8)",
    (
        RUN_ID,
        PROMPT_ID,
        Column("method", pa.string(), "minimal, or algorithm1: what all seeds find, at the smallest tau that flips"),
        Column("start", pa.int32(), "number of the random start of the search; 0 where there is one set only", at_least=0),
        Column("tau", pa.float32(), "threshold of Algorithm 1", null="another method"),
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("n_tokens", pa.int32(), "tokens of the prompt on which it fires, BOS included; 0: it is inert", at_least=0),
        Column("max_activation", pa.float32(), "its largest activation there", null="inert"),
    ),
    key=("prompt_id", "method", "start", "sae_id", "feature_id"),
    order=("method", "start", "prompt_id", "layer", "feature_id"),
)
