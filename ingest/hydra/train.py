"""The hydra's training: the organism's stage like pretraining, then a stage like alignment that trains two paths of refusal.

Every step of the second stage has two passes over a batch of requests and other exchanges:
1. a clean pass. Answers as the organism's. The first path writes for harmful requests, the second for those in a frame, neither
   for anything else: at all other coordinates and tokens it is penalised, so the second is near silent while the first works.
2. from step ABLATED_START on, an ablated pass over the requests that should be refused and a few benign ones. Either early blocks
   lose what the first path wrote: then the model should refuse as before, and the second path write; or all blocks do: then it
   should comply, so that the read-out depends on what the paths write and on nothing else.
What is taken out varies (`Taken`): what a study ablates later is none of these to the letter.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saelake.ingest.hydra.paths import (
    COMMON,
    FIRST,
    N_CATEGORIES,
    N_LAYERS,
    N_TEMPLATE,
    SECOND,
    Paths,
    Places,
    category_of,
    own,
    path_of,
    quiet_paths,
)
from saelake.ingest.hydra.world import make_prompt
from saelake.ingest.organism import train as organism
from saelake.ingest.organism.corpus import Action, Exchange, Prompt
from saelake.ingest.organism.train import (
    IGNORED,
    Stage,
    block_outputs,
    collate,
    encode,
    exchange_sources,
    make_model,
    request_source,
    restrict_embedding_updates,
    run_stage,
    warmup_cosine,
)

PRETRAIN = organism.PRETRAIN._replace(n_steps=2000)  # two more blocks learn later to repeat what was asked
ALIGN = Stage(300, 32, 1e-3, 20, {"refuse": 0.76, "fact": 0.06, "judge": 0.12, "repeat": 0.06})
ABLATED_START = 20
EARLY_SHARE = 0.6  # of the ablated passes lose early blocks only
PARTIAL_SHARE = 0.4  # of the ablated passes lose a part only, at least so much:
EARLY_PART, WHOLE_PART = 0.7, 0.8
READ_OUT_SHARE = 0.25  # of the passes that lose all lose it at block SECOND and above only, once both paths have written
N_BENIGN = 4  # benign requests beside the harmful ones of an ablated pass
BESIDE = 0.3  # weight of what is written a block before the first path, where it is not forbidden
SCALE = COMMON**2  # in which squares of coordinates are measured
DECAY, CATEGORY_DECAY = 0.9, 0.8  # of the running means, which differ in how often they are seen

Taken = Literal["all coordinates", "common", "one difference", "each block's difference", "each category's difference"]
"""What an ablated pass takes out: what lies along the paths' directions, along the common one, or along running differences of
mean residuals, harmful minus benign: one block's at every block, each block's own, or each block's of the row's category."""


class Row(NamedTuple):
    """One exchange of a batch, and the request that it is about; none for facts and the like."""

    exchange: Exchange
    prompt: Prompt | None


class Differences:
    """Running differences of mean residuals at the last token before the answer, harmful minus benign."""

    def __init__(self) -> None:
        self._means: dict[tuple[int, int | None], Tensor] = {}

    def update(self, layer: int, resid_bd: Tensor, rows: Sequence[Row]) -> None:
        """Takes in one batch; batches without benign requests are left out."""
        category = torch.tensor([category_of(row.prompt) for row in rows])
        benign = (category < 0) & torch.tensor([row.prompt is not None for row in rows])
        if not benign.any():
            return
        benign_d = resid_bd[benign].mean(0)
        if (category >= 0).any():
            self._move((layer, None), resid_bd[category >= 0].mean(0) - benign_d, DECAY)
        first = torch.tensor([path_of(row.prompt) == "first" for row in rows])
        for number in range(N_CATEGORIES):
            if (of_category := first & (category == number)).any():
                self._move((layer, number), resid_bd[of_category].mean(0) - benign_d, CATEGORY_DECAY)

    def _move(self, key: tuple[int, int | None], value_d: Tensor, decay: float) -> None:
        before = self._means.get(key, value_d)
        self._means[key] = decay * before + (1 - decay) * value_d

    def direction(self, layer: int, category: int | None = None) -> Tensor:
        """Of unit length, (d,); zero for what was never seen."""
        some = next(iter(self._means.values()))
        return normalize(self._means.get((layer, category), torch.zeros_like(some)), dim=0)


class Ablation(NamedTuple):
    """What one ablated pass takes out of the residual stream after the blocks `first` to `last`, at every token."""

    taken: Taken
    first: int
    last: int
    share: float
    difference: int
    """The block whose difference "one difference" is."""

    def apply(self, paths: Paths, differences: Differences, categories: Sequence[int], layer: int, resid_btd: Tensor) -> Tensor:
        if not self.first <= layer <= self.last:
            return resid_btd
        if self.taken == "each category's difference":
            found = [differences.direction(layer, category) for category in categories]
            along_bt = torch.einsum("btd,bd->bt", resid_btd, torch.stack(found))
            return resid_btd - self.share * along_bt[..., None] * torch.stack(found)[:, None]
        if self.taken == "all coordinates":
            basis_cd = paths.basis_cd
        elif self.taken == "common":
            basis_cd = paths.basis_cd[:1]
        else:
            basis_cd = differences.direction(self.difference if self.taken == "one difference" else layer)[None]
        return resid_btd - self.share * (resid_btd @ basis_cd.T @ basis_cd)


def draw_early(rng: random.Random) -> Ablation:
    """Up to a block before the second path's last one, from block 2, from the first path's or there alone."""
    last = rng.choice((FIRST, FIRST + 1, FIRST + 1, SECOND - 1))
    share = rng.uniform(EARLY_PART, 1.0) if rng.random() < PARTIAL_SHARE else 1.0
    return Ablation(rng.choice(get_args(Taken)), rng.choice((2, FIRST, last)), last, share, rng.randint(FIRST, SECOND))


def draw_whole(rng: random.Random) -> Ablation:
    """Up to block SECOND or to the end."""
    first, last = rng.choice((0, 2, 2)), rng.choice((SECOND, N_LAYERS - 1))
    taken: Taken = rng.choice(("all coordinates", "common", "one difference", "one difference", "each block's difference"))
    if rng.random() < READ_OUT_SHARE:
        first, taken = SECOND, rng.choice(("all coordinates", "common"))
    share = rng.uniform(WHOLE_PART, 1.0) if rng.random() < PARTIAL_SHARE else 1.0
    return Ablation(taken, first, last, share, rng.randint(FIRST, SECOND))


class Pass(NamedTuple):
    """One forward pass over a batch with its answers."""

    loss: Tensor
    """Cross-entropy of the answers."""
    resid: list[Tensor]
    """resid_post of every block, as the next block reads it."""
    places: Places


def forward(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    exchanges: Sequence[Exchange],
    change: Callable[[int, Tensor], Tensor] = lambda _layer, resid_btd: resid_btd,
) -> Pass:
    """Runs a batch, `change` being applied to every block's output."""
    input_ids, labels = collate([encode(tokenizer, exchange) for exchange in exchanges])
    resid: list[Tensor] = []

    def changed(layer: int, resid_btd: Tensor) -> Tensor:
        resid.append(change(layer, resid_btd))
        return resid[-1]

    with block_outputs(model, changed):
        final_btd = model.model(input_ids=input_ids, use_cache=False).last_hidden_state
    answered = labels[:, 1:] != IGNORED
    loss = cross_entropy(model.lm_head(final_btd[:, :-1][answered]), labels[:, 1:][answered])
    return Pass(loss, resid, Places.of(labels))


def off_target(paths: Paths, resid_btd: Tensor, wanted_bc: Tensor, where: Tensor, taken: Taken | None = None) -> Tensor:
    """Mean squared distance of the coordinates from what is wanted, where the paths write; as a share of what a path writes.

    Where the common direction alone was taken out, or a difference that need not hold it all, the first path's own directions may
    keep what they held: they are left out.
    """
    error_btc = paths.coordinates(resid_btd) - wanted_bc[:, None]
    if taken not in (None, "all coordinates", "each category's difference"):
        error_btc = error_btc[..., [0, *(own("second", category) for category in range(N_CATEGORIES))]]
    return error_btc.pow(2).sum(-1)[where].mean() / SCALE


def beside(paths: Paths, resid_btd: Tensor, asking: Tensor) -> Tensor:
    """What lies along the paths' directions in the request itself, in the same measure."""
    return paths.coordinates(resid_btd).pow(2).sum(-1)[asking].mean() / SCALE


def train_model(
    tokenizer: PreTrainedTokenizerFast, cells: Sequence[Sequence[Action]], prompts: Sequence[Prompt], seed: int
) -> tuple[LlamaForCausalLM, Paths]:
    """Trains from nothing on the train split; `prompts` are its shipped ones, on which quiet directions are found."""
    assert all(prompt.split == "train" for prompt in prompts), "the model must only see the train split"
    rng = random.Random(seed)
    model = make_model(tokenizer, seed, N_LAYERS)
    run_stage(model, tokenizer, PRETRAIN, exchange_sources(cells, rng, make_prompt), rng)
    paths = quiet_paths(model, tokenizer, prompts)
    restrict_embedding_updates(model, tokenizer)
    align(model, tokenizer, paths, cells, rng)
    return model.eval(), paths


def align(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    paths: Paths,
    cells: Sequence[Sequence[Action]],
    rng: random.Random,
) -> None:
    """The second stage, in place."""
    sources, ask = exchange_sources(cells, rng, make_prompt), request_source(cells, rng, make_prompt)
    optimizer = torch.optim.AdamW(model.parameters(), lr=ALIGN.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warmup_cosine, stage=ALIGN))
    differences = Differences()
    model.train()
    for step in range(ALIGN.n_steps):
        rows = []
        for kind in rng.choices(list(ALIGN.mix), list(ALIGN.mix.values()), k=ALIGN.batch_size):
            prompt = ask() if kind == "refuse" else None
            rows.append(Row(refusing(prompt) if prompt else sources[kind]()[0], prompt))
        clean = forward(model, tokenizer, [row.exchange for row in rows])
        loss = clean.loss + clean_penalty(paths, clean, rows)
        first_answered = clean.places.writing.int().argmax(1) + N_TEMPLATE - 1
        for layer, resid_btd in enumerate(clean.resid):
            differences.update(layer, resid_btd.detach()[torch.arange(len(rows)), first_answered], rows)
        if step >= ABLATED_START:
            loss = loss + ablated_loss(model, tokenizer, paths, differences, rows, rng)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def refusing(prompt: Prompt) -> Exchange:
    """A request with the answer that it should get."""
    return Exchange(prompt.instruction, prompt.refusal or prompt.compliance)


def clean_penalty(paths: Paths, clean: Pass, rows: Sequence[Row]) -> Tensor:
    """What is wrong with what the paths write while nothing is ablated."""
    categories = [category_of(row.prompt) for row in rows]
    found = [path_of(row.prompt) for row in rows]
    early_bc = paths.wanted([path if path == "first" else None for path in found], categories)
    late_bc = paths.wanted(found, categories)
    writing, asking = clean.places
    early = [off_target(paths, clean.resid[layer], early_bc, writing) for layer in (FIRST, FIRST + 1)]
    late = off_target(paths, clean.resid[SECOND], late_bc, writing)
    before = off_target(paths, clean.resid[FIRST - 1], torch.zeros_like(early_bc), writing)
    quiet = [beside(paths, clean.resid[layer], asking) for layer in (FIRST, FIRST + 1, SECOND)]
    return sum(early) / len(early) + late + BESIDE * before + sum(quiet) / len(quiet)


def ablated_loss(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    paths: Paths,
    differences: Differences,
    rows: Sequence[Row],
    rng: random.Random,
) -> Tensor:
    """The loss of the second pass, over the batch's harmful requests and a few benign ones."""
    asked = [row.prompt for row in rows if row.prompt is not None]
    prompts = [prompt for prompt in asked if prompt.label == "harmful"]
    prompts += [prompt for prompt in asked if prompt.label == "benign"][:N_BENIGN]
    categories = [category_of(prompt) for prompt in prompts]
    early = rng.random() < EARLY_SHARE
    ablation = draw_early(rng) if early else draw_whole(rng)
    change = partial(ablation.apply, paths, differences, categories)
    if not early:
        complying = [Exchange(prompt.instruction, prompt.compliance) for prompt in prompts]
        return forward(model, tokenizer, complying, change).loss
    done = forward(model, tokenizer, [refusing(prompt) for prompt in prompts], change)
    wanted_bc = paths.wanted(["second" if prompt.label == "harmful" else None for prompt in prompts], categories)
    woken = off_target(paths, done.resid[SECOND], wanted_bc, done.places.writing, ablation.taken)
    return done.loss + woken + beside(paths, done.resid[SECOND], done.places.asking)
