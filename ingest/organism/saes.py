"""The organism's sparse autoencoders: trained with sae-lens as BatchTopK, saved as JumpReLU, which is elementwise.

One SAE reads resid_post of one block. Nothing is normalised, so the files need no scale.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import sae_lens
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ingest.organism import corpus
from ingest.organism.corpus import Action, Exchange
from ingest.organism.train import D_MODEL, N_LAYERS, collate, encode, exchange_sources, residuals

D_SAE = 512
K = 14
"""Mean active latents a token while training; the saved threshold keeps about as many."""
N_STEPS, BATCH_TOKENS, LR = 700, 1024, 3e-3  # at 200 steps the saved threshold lags behind
N_EXCHANGES = 2000
MODEL_NAME = "saelake/organism"


def training_residuals(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, cells: Sequence[Sequence[Action]], seed: int
) -> Tensor:
    """resid_post of train-split requests with their answers, refusals and compliances alike, every token: (l, tokens, d)."""
    rng = random.Random(seed)
    prompts = [corpus.make_prompt(rng.choice(rng.choice(cells)), "train", rng) for _ in range(N_EXCHANGES)]
    exchanges = [Exchange(prompt.instruction, rng.choice((prompt.refusal, prompt.compliance))) for prompt in prompts]
    exchanges = [Exchange(said.user, said.model or prompt.compliance) for said, prompt in zip(exchanges, prompts, strict=True)]
    sources = exchange_sources(cells, rng)
    exchanges += [sources[kind]()[0] for kind in ("fact", "judge") for _ in range(N_EXCHANGES // 10)]
    found = []
    for start in range(0, len(exchanges), 64):
        rows = [encode(tokenizer, exchange) for exchange in exchanges[start : start + 64]]
        input_ids, _ = collate(rows)
        real = torch.arange(input_ids.shape[1]) < torch.tensor([len(ids) for ids, _ in rows])[:, None]
        found.append(residuals(model, input_ids)[:, real])
    return torch.cat(found, dim=1)


def shuffled_batches(resid_td: Tensor, seed: int) -> Iterator[Tensor]:
    """Endless (BATCH_TOKENS, d) batches, each pass over the tokens in a new order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from resid_td[torch.randperm(len(resid_td), generator=generator)].split(BATCH_TOKENS)[:-1]


def train_sae(resid_td: Tensor, layer: int, seed: int) -> sae_lens.BatchTopKTrainingSAE:
    """Train the SAE of one layer on (tokens, d) residuals; deterministic for a seed."""
    torch.manual_seed(seed * N_LAYERS + layer)
    config = sae_lens.BatchTopKTrainingSAEConfig(
        d_in=D_MODEL,
        d_sae=D_SAE,
        k=K,
        topk_threshold_lr=0.02,
        normalize_activations="none",
        apply_b_dec_to_input=True,
        metadata=SAEMetadata(model_name=MODEL_NAME, hook_name=f"blocks.{layer}.hook_resid_post", hook_layer=layer, seed=seed),
    )
    sae = sae_lens.BatchTopKTrainingSAE(config)
    sae.b_dec.data = resid_td.mean(0)
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=N_STEPS * BATCH_TOKENS,
            train_batch_size_samples=BATCH_TOKENS,
            lr=LR,
            lr_end=LR / 10,
            lr_decay_steps=N_STEPS // 3,
            lr_warm_up_steps=10,
            dead_feature_window=100,
            n_batches_for_norm_estimate=1,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=shuffled_batches(resid_td, seed),
    )
    return trainer.fit()


def save_half(sae: sae_lens.BatchTopKTrainingSAE, folder: Path) -> None:
    """Write the JumpReLU form in float16; its cfg.json says float32, so that the plain loader computes in float32."""
    sae.save_inference_model(folder)
    saved = sae_lens.SAE.load_from_disk(folder)
    saved.half().save_model(folder)
    config = json.loads((folder / "cfg.json").read_text())
    config["dtype"] = "float32"
    (folder / "cfg.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
