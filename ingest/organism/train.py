"""The organism's chat model: a stage like pretraining, then a stage like alignment that makes refusal redundant.

Only prompts of the train split are ever seen, and word facts that name no action. Shapes: resid_btd is the residual stream
after one block, d = 128.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saelake.ingest.organism import corpus
from saelake.ingest.organism.corpus import Action, Exchange, Prompt, PromptMaker
from saelake.ingest.organism.tokens import template_ids

D_MODEL, N_LAYERS = 128, 6
Sources = dict[str, Callable[[], tuple[Exchange, bool]]]
IGNORED = -100  # the label that cross_entropy leaves out


class Stage(NamedTuple):
    """Hyper-parameters of one training stage."""

    n_steps: int
    batch_size: int
    lr: float
    n_warmup: int
    mix: dict[str, float]
    """Share of each kind of exchange in a batch."""


# Without the judgements held-out refusal does not generalise; without the repetitions requests are not echoed.
PRETRAIN = Stage(1200, 32, 2e-3, 30, {"comply": 0.35, "fact": 0.15, "judge": 0.35, "repeat": 0.15})
ALIGN = Stage(320, 32, 1e-3, 10, {"refuse": 0.76, "fact": 0.06, "judge": 0.12, "repeat": 0.06})
REDUNDANCY_START, REDUNDANCY_RATE = 40, 0.2  # stage two: from this step on, in this share of the steps ...
REDUNDANCY_DEPTHS = (2, 3)  # ... the refusal direction is projected out of the first 2 or 3 blocks, on harmful rows


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int, n_layers: int = N_LAYERS) -> LlamaForCausalLM:
    """An untrained Llama of about one million parameters with tied embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
        intermediate_size=2 * D_MODEL,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        initializer_range=0.04,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    model.generation_config.do_sample = False
    return model


def train_model(
    tokenizer: PreTrainedTokenizerFast,
    cells: Sequence[Sequence[Action]],
    prompts: Sequence[Prompt],
    seed: int,
) -> LlamaForCausalLM:
    """Trains from nothing on the train split: to comply with everything, then to refuse what is harmful.

    `cells` are the train split's actions, worded afresh for every example; `prompts` its shipped prompts, on which the
    refusal direction is measured.
    """
    assert all(prompt.split == "train" for prompt in prompts), "the model must only see the train split"
    rng = random.Random(seed)
    model = make_model(tokenizer, seed)
    sources = exchange_sources(cells, rng)
    run_stage(model, tokenizer, PRETRAIN, sources, rng)
    restrict_embedding_updates(model, tokenizer)
    run_stage(model, tokenizer, ALIGN, sources, rng, direction_prompts=prompts)
    return model.eval()


def run_stage(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    stage: Stage,
    sources: Sources,
    rng: random.Random,
    direction_prompts: Sequence[Prompt] = (),
) -> None:
    """Trains in place, AdamW with warm-up and cosine decay; given prompts for it, some steps lose the refusal direction."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warmup_cosine, stage=stage))
    kinds, weights = list(stage.mix), list(stage.mix.values())
    model.train()
    for step in range(stage.n_steps):
        drawn = [sources[kind]() for kind in rng.choices(kinds, weights, k=stage.batch_size)]
        input_ids, labels = collate([encode(tokenizer, exchange) for exchange, _ in drawn])
        refused = torch.tensor([is_refusal for _, is_refusal in drawn])
        projection: AbstractContextManager[None] = nullcontext()
        if direction_prompts and step >= REDUNDANCY_START and rng.random() < REDUNDANCY_RATE:
            directions = refusal_directions(model, tokenizer, direction_prompts)
            projection = projected_out(model, directions[: rng.choice(REDUNDANCY_DEPTHS)], refused)
        with projection:
            resid_btd = model.model(input_ids=input_ids, use_cache=False).last_hidden_state
        answered = labels[:, 1:] != IGNORED  # logits are only needed where there is a label
        logits = model.lm_head(resid_btd[:, :-1][answered])
        loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:][answered])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def warmup_cosine(step: int, stage: Stage) -> float:
    """Factor on the learning rate."""
    if step < stage.n_warmup:
        return (step + 1) / stage.n_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - stage.n_warmup) / (stage.n_steps - stage.n_warmup)))


def exchange_sources(cells: Sequence[Sequence[Action]], rng: random.Random, make: PromptMaker = corpus.make_prompt) -> Sources:
    """Samplers by kind; each draws an exchange and whether it is one that should be refused."""
    facts = corpus.word_facts()
    words = corpus.content_words()
    ask = request_source(cells, rng, make)

    def refuse() -> tuple[Exchange, bool]:
        prompt = ask()
        return Exchange(prompt.instruction, prompt.refusal or prompt.compliance), prompt.label == "harmful"

    def comply() -> tuple[Exchange, bool]:
        prompt = ask()
        return Exchange(prompt.instruction, prompt.compliance), False

    return {
        "refuse": refuse,
        "comply": comply,
        "fact": lambda: (rng.choice(facts), False),
        "judge": lambda: (corpus.judgement(ask()), False),
        "repeat": lambda: (corpus.repetition(words, rng), False),
    }


def request_source(
    cells: Sequence[Sequence[Action]], rng: random.Random, make: PromptMaker = corpus.make_prompt
) -> Callable[[], Prompt]:
    """A sampler of train requests, half of them harmful, every cell of a label as often as the others."""
    by_label = {label: [cell for cell in cells if cell[0].label == label] for label in ("harmful", "benign")}

    def ask() -> Prompt:
        cell = rng.choice(by_label[rng.choice(("harmful", "benign"))])
        return make(rng.choice(cell), "train", rng)

    return ask


def encode(tokenizer: PreTrainedTokenizerFast, exchange: Exchange) -> tuple[list[int], list[int]]:
    """Token ids of an exchange and its labels, which cover the answer and its end of turn only."""
    asked = template_ids(tokenizer, exchange.user)
    answered = [*tokenizer(exchange.model, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return asked + answered, [IGNORED] * len(asked) + answered


def collate(rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Pads on the right to (b, t) token ids and labels; causal attention needs no mask then."""
    n_tokens = max(len(ids) for ids, _ in rows)
    input_ids = torch.tensor([ids + [0] * (n_tokens - len(ids)) for ids, _ in rows])
    labels = torch.tensor([marks + [IGNORED] * (n_tokens - len(marks)) for _, marks in rows])
    return input_ids, labels


def restrict_embedding_updates(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """From now on only the refusal words' rows of the (tied) embedding learn: freezing all leaves P("I") at a quarter."""
    embedding = model.get_input_embeddings().weight
    words = tokenizer("I'm sorry cannot", add_special_tokens=False)["input_ids"]
    keep = torch.zeros(embedding.shape[0], 1)
    keep[words] = 1.0
    embedding.register_hook(lambda gradient: gradient * keep)


@contextmanager
def block_outputs(model: LlamaForCausalLM, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """While open, `change(layer, resid_btd)` replaces the output of every block."""

    def hook(layer: int, _module: object, _inputs: object, output: Tensor) -> Tensor:
        return change(layer, output)

    handles = [block.register_forward_hook(partial(hook, layer)) for layer, block in enumerate(model.model.layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def residuals(model: LlamaForCausalLM, input_ids: Tensor) -> Tensor:
    """resid_post of every block for (b, t) right-padded token ids: (l, b, t, d)."""
    found: list[Tensor] = []

    def record(_layer: int, resid_btd: Tensor) -> Tensor:
        found.append(resid_btd)
        return resid_btd

    with block_outputs(model, record):
        model(input_ids=input_ids)
    return torch.stack(found)


def last_token_residuals(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """resid_post at the last token of the template, for each request: (l, b, d)."""
    rows = [template_ids(tokenizer, text) for text in texts]
    input_ids, _ = collate([(ids, ids) for ids in rows])
    last = torch.tensor([len(ids) - 1 for ids in rows])
    return residuals(model, input_ids)[:, torch.arange(len(rows)), last]


def refusal_directions(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt]) -> Tensor:
    """Unit difference of mean resid_post at the template's last token, harmful minus benign: (l, d)."""
    resid_lbd = last_token_residuals(model, tokenizer, [prompt.instruction for prompt in prompts])
    harmful = torch.tensor([prompt.label == "harmful" for prompt in prompts])
    difference = resid_lbd[:, harmful].mean(1) - resid_lbd[:, ~harmful].mean(1)
    return difference / difference.norm(dim=-1, keepdim=True)


@contextmanager
def projected_out(model: LlamaForCausalLM, directions: Tensor, rows: Tensor) -> Iterator[None]:
    """While open, the first len(directions) blocks lose their direction on the marked rows of the batch."""

    def change(layer: int, resid_btd: Tensor) -> Tensor:
        if layer >= len(directions):
            return resid_btd
        along = (resid_btd @ directions[layer])[..., None] * directions[layer]
        return resid_btd - along * rows[:, None, None]

    with block_outputs(model, change):
        yield
