"""Hand-set JumpReLU SAEs of the planted network, one per layer, with the same latent at the same index in every layer.

The encoder is the dual basis of the live decoder rows, so latents read their own concept only, although primary and backup
overlap (cosine 0.6). Evidence, answer flag and next-token directions have no latent: they stay in the reconstruction error,
which an ablation has to carry along.
"""

from pathlib import Path

import torch
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata

from saelake.ingest.planted.geometry import (
    BACKUP_COSINE,
    CATEGORIES,
    CONSTANT,
    CONTENT_CLASSES,
    D_MODEL,
    N_LATENTS,
    N_LAYERS,
    TEMPLATE_TOKENS,
    Coord,
    basis,
)

PRIMARY = 5
BACKUP = 17
DECOY = 11  # never fires, but its decoder row is the third best aligned with refusal
CATEGORY_FEATURES = dict(zip(CATEGORIES, (3, 8, 14), strict=True))
TEMPLATE_FEATURES = dict(zip(TEMPLATE_TOKENS, (0, 13, 10, 18, 4, 19), strict=True))
CONTENT_FEATURES = dict(zip(CONTENT_CLASSES, (20, 1, 6, 12, 16), strict=True))
SAFETY_FEATURE = 7
RESPONSE_FEATURE = 15
NOISE = tuple(sorted((*TEMPLATE_FEATURES.values(), *CONTENT_FEATURES.values(), SAFETY_FEATURE, RESPONSE_FEATURE)))
DEAD = (2, 9, 21, 22, 23)

DECOY_COSINE = 0.4
THRESHOLD = 0.3  # concepts are 0 or at least 0.6 once the decoder's norm and bias are taken off
UNREACHABLE = 1e3  # the threshold of a latent that never fires
TEMPLATE_BIAS = 0.1  # part of b_dec: whoever forgets to subtract it gets wrong activations


def _decoder() -> torch.Tensor:
    """[f, coordinates]; noise rows are longer than 1, as cosines must not care and reconstructions must."""
    decoder_fc = torch.zeros(N_LATENTS, D_MODEL, dtype=torch.float64)
    decoder_fc[PRIMARY, Coord.PRIMARY] = 1
    decoder_fc[BACKUP, Coord.PRIMARY] = BACKUP_COSINE
    decoder_fc[BACKUP, Coord.BACKUP] = (1 - BACKUP_COSINE**2) ** 0.5
    for k, feature_id in enumerate(CATEGORY_FEATURES.values()):
        decoder_fc[feature_id, Coord.WORD + k] = 1.25
    for k, feature_id in enumerate(TEMPLATE_FEATURES.values()):
        decoder_fc[feature_id, Coord.TEMPLATE + k] = 1.1
    for k, feature_id in enumerate(CONTENT_FEATURES.values()):
        decoder_fc[feature_id, Coord.CONTENT + k] = 1.2
    decoder_fc[SAFETY_FEATURE, Coord.SAFETY] = 1
    decoder_fc[RESPONSE_FEATURE, Coord.RESPONSE] = 1
    decoder_fc[DECOY, Coord.PRIMARY] = DECOY_COSINE
    decoder_fc[DECOY, Coord.SPARE] = (1 - DECOY_COSINE**2) ** 0.5
    # The first is the fourth best aligned with refusal, the rest are among the worst: no rank in a top four depends on rounding.
    for feature_id, alignment in zip(DEAD, (0.2, -0.1, -0.2, -0.3, -0.4), strict=True):
        decoder_fc[feature_id, Coord.PRIMARY] = alignment
        decoder_fc[feature_id, Coord.SPARE] = 1
    return decoder_fc


def build_sae(layer: int) -> JumpReLUSAE:
    """The SAE of resid_post `layer`, [d] -> [f] -> [d]."""
    # Half of the layers subtract b_dec from the input, the others fold it into b_enc: both conventions are in use.
    subtracts = layer % 2 == 0
    config = JumpReLUSAEConfig(
        d_in=D_MODEL,
        d_sae=N_LATENTS,
        apply_b_dec_to_input=subtracts,
        metadata=SAEMetadata(model_name="planted", hook_name=f"blocks.{layer}.hook_resid_post"),
    )
    decoder_fc = _decoder()
    silent = [DECOY, *DEAD]
    live = [i for i in range(N_LATENTS) if i not in silent]
    encoder_cf = torch.zeros(D_MODEL, N_LATENTS, dtype=torch.float64)
    encoder_cf[:, live] = torch.linalg.pinv(decoder_fc[live])
    encoder_cf[:, silent] = decoder_fc[silent].T
    bias_c = torch.zeros(D_MODEL, dtype=torch.float64)
    bias_c[Coord.CONST] = CONSTANT
    bias_c[Coord.TEMPLATE : Coord.TEMPLATE + len(TEMPLATE_TOKENS)] = TEMPLATE_BIAS
    basis_cd = basis()
    sae = JumpReLUSAE(config)
    with torch.no_grad():
        sae.W_dec.copy_(decoder_fc @ basis_cd)
        sae.W_enc.copy_(basis_cd.T @ encoder_cf)
        sae.b_dec.copy_(bias_c @ basis_cd)
        sae.b_enc.copy_(torch.zeros(N_LATENTS) if subtracts else -(bias_c @ encoder_cf))
        sae.threshold.fill_(THRESHOLD)
        sae.threshold[silent] = UNREACHABLE
    return sae


def sae_folder(folder: Path, layer: int) -> Path:
    """Where the SAE of `layer` lies inside a planted study."""
    return folder / "saes" / f"layer_{layer}"


def write_saes(folder: Path) -> None:
    """Save all layers in sae-lens's own format."""
    for layer in range(N_LAYERS):
        build_sae(layer).save_model(sae_folder(folder, layer))


def load_sae(folder: Path, layer: int) -> JumpReLUSAE:
    """Read one back by sae-lens's ordinary loader."""
    sae = SAE.load_from_disk(sae_folder(folder, layer), dtype="float32")
    assert isinstance(sae, JumpReLUSAE), "planted SAEs are JumpReLU"
    return sae
