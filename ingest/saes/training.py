"""Trains one sparse autoencoder with sae-lens, and measures it: BatchTopK in training, saved as JumpReLU, which is elementwise.

    sae = train_sae(resid_td, settings, metadata_of("me/model", layer, seed), seed)
    sae.save_inference_model(folder)
    fit(SAE.load_from_disk(folder), held_out_td)

Letters of shapes: t tokens, d residual width, f latents. Nothing but the trainer's own state is random: a seed gives one SAE.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

import sae_lens
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from saelake.warehouse.progress import Quiet

ROWS_AT_ONCE = 4096
"""Tokens that `fit` encodes at a time."""
FIRST_WEIGHTS = Lock()
"""Held while torch's one generator is seeded and drawn from, by trainings in several threads."""


@dataclass(frozen=True)
class Settings:
    """How an SAE is trained."""

    width: int
    l0: int
    """Mean active latents a token while training; the saved threshold keeps about as many."""
    n_steps: int
    batch_tokens: int
    lr: float
    """At first; it falls to a tenth over the last third of the steps."""
    scale_inputs: bool
    """Train on inputs of mean norm sqrt(d), the factor folded into the saved weights: lr then means the same for every model."""


class Fit(NamedTuple):
    """How well one SAE reads some tokens."""

    explained_variance: float
    """1 - squared error / squared distance from the mean."""
    l0: float
    """Mean number of active latents a token."""
    dead: float
    """Share of latents that no token activates."""


def metadata_of(model_name: str, layer: int, seed: int) -> SAEMetadata:
    """What a saved SAE says of itself: it reads resid_post of a block."""
    return SAEMetadata(model_name=model_name, hook_name=f"blocks.{layer}.hook_resid_post", hook_layer=layer, seed=seed)


def shuffled_batches(resid_td: Tensor, batch_tokens: int, seed: int) -> Iterator[Tensor]:
    """Endless float32 batches (batch_tokens, d): each pass over the tokens has a new order, and leaves its last batch out."""
    assert len(resid_td) > batch_tokens, f"{len(resid_td)} tokens make no batch of {batch_tokens}"
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(resid_td), generator=generator).split(batch_tokens)[:-1]:
            yield resid_td[rows].float()


def train_sae(
    resid_td: Tensor,
    settings: Settings,
    metadata: SAEMetadata,
    seed: int,
    *,
    torch_seed: int | None = None,
    device: torch.device | str = "cpu",
    progress: Quiet | None = None,
) -> sae_lens.BatchTopKTrainingSAE:
    """Trains an SAE on residuals (t, d), which may lie in main memory while the SAE is on a device.

    Args:
        seed: of the order of the tokens.
        torch_seed: of the first weights, if it is another one.
        progress: hears of every step.
    """
    config = sae_lens.BatchTopKTrainingSAEConfig(
        d_in=resid_td.shape[1],
        d_sae=settings.width,
        k=settings.l0,
        topk_threshold_lr=0.02,
        normalize_activations="none",
        apply_b_dec_to_input=True,
        device=str(device),
        metadata=metadata,
    )
    with FIRST_WEIGHTS:
        torch.manual_seed(seed if torch_seed is None else torch_seed)
        sae = sae_lens.BatchTopKTrainingSAE(config)
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=settings.n_steps * settings.batch_tokens,
            train_batch_size_samples=settings.batch_tokens,
            lr=settings.lr,
            lr_end=settings.lr / 10,
            lr_decay_steps=settings.n_steps // 3,
            lr_warm_up_steps=10,
            dead_feature_window=100,
            device=str(device),
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=shuffled_batches(resid_td, settings.batch_tokens, seed),
    )
    scale = _scale(resid_td) if settings.scale_inputs else 1.0
    sae.b_dec.data = (resid_td.mean(0, dtype=torch.float32) * scale).to(device)
    if settings.scale_inputs:
        trainer.activation_scaler.scaling_factor = scale
    # The trainer's own loop (`fit`), without its bar on standard error.
    for _ in range(settings.n_steps):
        trainer.maybe_reset_sparsity()
        trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1
        if progress is not None:
            progress.advance()
    if settings.scale_inputs:
        sae.fold_activation_norm_scaling_factor(scale)
    trainer.set_final_sae_metadata()
    return sae


def _scale(resid_td: Tensor) -> float:
    """The factor by which the mean norm becomes sqrt(d)."""
    return resid_td.shape[1] ** 0.5 / torch.linalg.vector_norm(resid_td, dim=1, dtype=torch.float32).mean().item()


@torch.no_grad()
def fit(sae: sae_lens.SAE, resid_td: Tensor) -> Fit:
    """Explained variance, L0 and dead latents of one SAE on residuals (t, d)."""
    mean_d = resid_td.mean(0, dtype=torch.float32)
    error = variance = n_active = 0.0
    fired_f = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    for part_td in resid_td.split(ROWS_AT_ONCE):
        rows_td = part_td.float()
        acts_tf = sae.encode(rows_td.to(sae.device))
        error += (rows_td - sae.decode(acts_tf).to(rows_td.device)).pow(2).sum().item()
        variance += (rows_td - mean_d).pow(2).sum().item()
        n_active += (acts_tf > 0).sum().item()
        fired_f |= (acts_tf > 0).any(0).cpu()
    return Fit(1 - error / variance, n_active / len(resid_td), 1 - fired_f.float().mean().item())
