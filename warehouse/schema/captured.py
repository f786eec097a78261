"""The tables of what models read: prompts, their tokens, SAEs, features and what fires; and what other libraries read."""

from dataclasses import replace

import pyarrow as pa

from saelake.warehouse.schema.columns import (
    ABOVE_0,
    BYTE_STREAM,
    FEATURE_ID,
    LAYER,
    PLAIN,
    POS,
    PROMPT_ID,
    RUN_ID,
    SAE_ID,
    VECTOR,
    Column,
    Table,
)

PROMPTS = Table(
    "prompts",
    "one prompt of the study",
    (
        RUN_ID,
        PROMPT_ID,
        Column("prompt_hash", pa.string(), "hash of the text, or of the messages; the same in two runs share it"),
        Column("set", pa.string(), "the recipe's prompt set"),
        Column("split", pa.string(), "train, val or test"),
        Column("label", pa.string(), "what the prompt is labelled: any text"),
        Column("category", pa.string(), "category within the set", null="the set has none"),
        Column("text", pa.string(), "the user's text, before the chat template; of a chat the last message"),
        Column("n_tokens", pa.int32(), "tokens of the templated prompt", at_least=0),
        Column("template_hash", pa.string(), "hash of the chat template"),
        Column(
            "family", pa.string(), "prompts that are alike, as by one wording", null="the set names none: it is alone", since=2
        ),
        Column(
            "label_role",
            pa.string(),
            "what the study takes the label for: target, which should show the behaviour, control, which should not, or other",
            choices=("target", "control", "other"),
            since=2,
            elsewhere="case label when 'harmful' then 'target' when 'benign' then 'control' else 'other' end",
        ),
    ),
    key=("prompt_id",),
    order=("prompt_id",),
)

MESSAGES = Table(
    "messages",
    "one message of a prompt that is a chat, or has a system message of its own; other prompts are their text alone",
    (
        RUN_ID,
        PROMPT_ID,
        Column("number", pa.int16(), "its place in the chat, from 0; the last one is the prompt's text", at_least=0, since=2),
        Column("role", pa.string(), "whose message it is", choices=("system", "user", "assistant"), since=2),
        Column("content", pa.string(), "what it says", since=2),
    ),
    key=("prompt_id", "number"),
    order=("prompt_id", "number"),
)

TOKENS = Table(
    "tokens",
    "one token of a templated prompt",
    (
        RUN_ID,
        PROMPT_ID,
        POS,
        Column("token_id", pa.int32(), "index in the model's vocabulary", at_least=0),
        Column("token", pa.string(), "the token as text; bytes that are a part of a letter, and control characters, as \\xe2"),
        Column("piece", pa.string(), "the token as the vocabulary spells it, to look it up again", null="not known", since=2),
        Column(
            "role",
            pa.string(),
            "whose text it holds; template: nobody's",
            choices=("bos", "template", "system", "user", "assistant", "answer"),
        ),
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
        Column("width", pa.int32(), "number of features", at_least=1),
        Column("hook", pa.string(), "the activation that it reads"),
        Column("hook_out", pa.string(), "the activation that its decoder adds to", null="the one that it reads", since=2),
        Column("norm", pa.string(), "input normalisation convention"),
        Column("declared_l0", pa.float32(), "mean active features per token, as published", null="not declared", at_least=0),
        Column(
            "measured_l0",
            pa.float32(),
            "mean active features per token on these prompts, BOS left out; over several runs null if one is of version 1",
            at_least=0,
            over_runs="case when count(n_tokens) = count(*) then sum(measured_l0::double * n_tokens) / sum(n_tokens) end",
        ),
        *(
            Column(
                name,
                pa.int64(),
                meaning,
                null="a run of version 1",
                at_least=0,
                since=2,
                over_runs=f"case when count({name}) = count(*) then sum({name}) end",
            )
            for name, meaning in (
                ("n_tokens", "tokens that measured_l0 is a mean over"),
                ("n_target_prompts", "prompts of the target label among these prompts"),
                ("n_control_prompts", "prompts of the control label among these prompts"),
            )
        ),
    ),
    key=("run_id", "sae_id"),
    order=("layer", "sae_id"),
    summed=("sae_id",),
)

FEATURES = Table(
    "features",
    "one feature of an SAE, firing or not; statistics leave BOS out",
    (
        RUN_ID,
        SAE_ID,
        LAYER,
        FEATURE_ID,
        Column("decoder_norm", pa.float32(), "L2 norm of its decoder row", at_least=0, encoding=BYTE_STREAM),
        Column("threshold", pa.float32(), "pre-activation above which it fires", encoding=BYTE_STREAM),
        Column("n_tokens", pa.int64(), "tokens on which it fires", at_least=0, over_runs="sum(n_tokens)"),
        Column("n_bos", pa.int64(), "BOS tokens on which it fires", at_least=0, over_runs="sum(n_bos)"),
        Column("n_prompts", pa.int32(), "prompts on which it fires", at_least=0, over_runs="sum(n_prompts)"),
        Column(
            "n_harmful",
            pa.int32(),
            "former name of n_target",
            at_least=0,
            until=1,
            elsewhere="n_target",
            over_runs="sum(n_harmful)",
        ),
        Column(
            "n_benign",
            pa.int32(),
            "former name of n_control",
            at_least=0,
            until=1,
            elsewhere="n_control",
            over_runs="sum(n_benign)",
        ),
        Column(
            "n_target",
            pa.int32(),
            "target prompts on which it fires",
            at_least=0,
            since=2,
            elsewhere="n_harmful",
            over_runs="sum(n_target)",
        ),
        Column(
            "n_control",
            pa.int32(),
            "control prompts on which it fires",
            at_least=0,
            since=2,
            elsewhere="n_benign",
            over_runs="sum(n_control)",
        ),
        Column(
            "mean_activation",
            pa.float32(),
            "mean over the tokens on which it fires",
            null="never fires",
            over_runs="sum(mean_activation::double * n_tokens) / nullif(sum(n_tokens), 0)",
        ),
        Column("max_activation", pa.float32(), "largest activation", null="never fires", over_runs="max(max_activation)"),
    ),
    key=("run_id", "sae_id", "feature_id"),
    order=("layer", "feature_id"),
    by_layer=True,
    summed=("sae_id", "feature_id"),
)

ACTIVATIONS = Table(
    "activations",
    "one non-zero activation: the fact table",
    (
        replace(RUN_ID, is_ranged=False),
        SAE_ID,
        replace(LAYER, encoding=PLAIN),
        FEATURE_ID,
        PROMPT_ID,
        replace(POS, is_ranged=False),
        Column("activation", pa.float32(), "the feature's activation, above 0", at_least=ABOVE_0, encoding=BYTE_STREAM),
    ),
    key=("sae_id", "feature_id", "prompt_id", "pos"),
    order=("feature_id", "prompt_id", "pos"),
    by_layer=True,
)

ACTIVATIONS_BY_PROMPT = Table(
    "activations_by_prompt",
    "one non-zero activation, again: all that fires on a prompt lies together, where the recipe asks for it",
    tuple(
        {"feature_id": replace(FEATURE_ID, is_ranged=False), "layer": LAYER}.get(column.name, column)
        for column in ACTIVATIONS.columns
    ),
    key=ACTIVATIONS.key,
    order=("prompt_id", "layer", "feature_id", "pos"),
    copies="activations",
)
READINGS = Table(
    "readings",
    "what a backend (a library that runs the model) reads at one place and position of a prompt, kept as a sketch",
    (
        RUN_ID,
        Column(
            "backend", pa.string(), "transformers (the reference), transformer_lens, nnsight, or the name of another", since=2
        ),
        PROMPT_ID,
        Column("layer", pa.int16(), "block, from 0; of log_probs the number of blocks", at_least=0, since=2),
        Column(
            "site",
            pa.string(),
            "what of the block is read; log_probs: the log-probabilities of the next token",
            choices=("resid_pre", "z", "attn_out", "resid_mid", "mlp_in_unit", "mlp_in", "mlp_out", "resid_post", "log_probs"),
            since=2,
        ),
        Column("pos", pa.int16(), "token position as the backend tokenises the prompt, from 0", at_least=0, since=2),
        Column("token_id", pa.int32(), "the token there, as the backend tokenises the prompt", at_least=0, since=2),
        Column("norm", pa.float32(), "length of the vector", at_least=0, null="not a finite number", since=2),
        Column(
            "sketch",
            VECTOR,
            "64 sums of its numbers with random signs, the same for all: they keep distances, up to 9%",
            since=2,
        ),
        Column(
            "noise",
            pa.float32(),
            "the farthest that two sound passes lie apart here, of the vector's length: in each, every site is moved "
            "by up to one step of the model's dtype",
            at_least=0,
            null="a backend other than the reference",
            since=2,
        ),
    ),
    key=("run_id", "backend", "prompt_id", "layer", "site", "pos"),
    order=("backend", "layer", "site", "prompt_id", "pos"),
)
