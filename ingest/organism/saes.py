"""The organism's sparse autoencoders: what they are trained on, with which settings, and how their files are made small.

One SAE reads resid_post of one block. Nothing is normalised, so the files need no scale.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import sae_lens
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saelake.ingest.organism import corpus
from saelake.ingest.organism.corpus import Action, Exchange, PromptMaker
from saelake.ingest.organism.train import N_LAYERS, collate, encode, exchange_sources, residuals
from saelake.ingest.saes.training import Settings, metadata_of, train_sae

# At 200 steps the saved threshold lags behind.
SETTINGS = Settings(width=512, l0=14, n_steps=700, batch_tokens=1024, lr=3e-3, scale_inputs=False)
N_EXCHANGES = 2000
MODEL_NAME = "saelake/organism"


def training_residuals(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    cells: Sequence[Sequence[Action]],
    seed: int,
    make: PromptMaker = corpus.make_prompt,
) -> Tensor:
    """resid_post of train-split requests with their answers, refusals and compliances alike, every token: (l, tokens, d)."""
    rng = random.Random(seed)
    prompts = [make(rng.choice(rng.choice(cells)), "train", rng) for _ in range(N_EXCHANGES)]
    exchanges = [Exchange(prompt.instruction, rng.choice((prompt.refusal, prompt.compliance))) for prompt in prompts]
    exchanges = [Exchange(said.user, said.model or prompt.compliance) for said, prompt in zip(exchanges, prompts, strict=True)]
    sources = exchange_sources(cells, rng, make)
    exchanges += [sources[kind]()[0] for kind in ("fact", "judge") for _ in range(N_EXCHANGES // 10)]
    found = []
    for start in range(0, len(exchanges), 64):
        rows = [encode(tokenizer, exchange) for exchange in exchanges[start : start + 64]]
        input_ids, _ = collate(rows)
        real = torch.arange(input_ids.shape[1]) < torch.tensor([len(ids) for ids, _ in rows])[:, None]
        found.append(residuals(model, input_ids)[:, real])
    return torch.cat(found, dim=1)


def train_layer(resid_td: Tensor, layer: int, seed: int, model_name: str = MODEL_NAME) -> sae_lens.BatchTopKTrainingSAE:
    """Trains the SAE of one layer on (tokens, d) residuals; deterministic for a seed."""
    return train_sae(resid_td, SETTINGS, metadata_of(model_name, layer, seed), seed, torch_seed=seed * N_LAYERS + layer)


def save_half(sae: sae_lens.BatchTopKTrainingSAE, folder: Path) -> None:
    """Writes the JumpReLU form in float16; its cfg.json says float32, so that the plain loader computes in float32."""
    sae.save_inference_model(folder)
    saved = sae_lens.SAE.load_from_disk(folder)
    saved.half().save_model(folder)
    config = json.loads((folder / "cfg.json").read_text())
    config["dtype"] = "float32"
    (folder / "cfg.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
