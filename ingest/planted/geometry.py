"""What each direction of the planted network's residual stream means, and every number that was set by hand.

Weights are first written in meaningful coordinates (`Coord`), then turned by a fixed rotation into the residual basis, so
that no code under test can pass by mistaking a residual dimension for a concept. Letters in tensor names: b batch, t token,
d residual width, f SAE latents, l layers, v vocabulary.
"""

from enum import IntEnum

import torch

D_MODEL = 32
N_LAYERS = 6
N_LATENTS = 24

CONSTANT = 64.0  # sits in one residual dimension of every token; |rest| << 64 makes RMSNorm linear up to about 0.2%


class Coord(IntEnum):
    """The 32 orthogonal directions; a span of several starts at the named one."""

    CONST = 0
    PRIMARY = 1  # refusal as the unembedding reads it
    BACKUP = 2  # the part of the backup's decoder row that is orthogonal to the primary's
    WORD = 3  # 3: a word of harm category k, on its own token only
    EVIDENCE = 6  # 3: how much of category k the prompt held so far (layer 0's attention writes it)
    ANSWER = 9  # the next token opens the answer
    NEXT = 10  # 8: the next token of the two fixed answers
    SAFETY = 18  # "report", "prevent": outweighs the words of harm that follow
    TEMPLATE = 19  # 6: one per template token
    CONTENT = 25  # 5: one per class of harmless words
    RESPONSE = 30  # any token of an answer
    SPARE = 31  # nothing ever writes here; dead latents decode to it


CATEGORIES = ("weapons", "poison", "fraud")
TEMPLATE_TOKENS = ("<bos>", "<start_of_turn>", "user", "<end_of_turn>", "\n", "model")
CONTENT_CLASSES = ("question", "verb", "article", "noun", "place")

# Small residual amplitudes, large read-out gains: these must steer the network without showing up in its directions or SAEs.
EVIDENCE_AMPLITUDE = 0.1  # per unit of evidence; one unit = one word of harm in a context of EVIDENCE_CONTEXT tokens
EVIDENCE_CONTEXT = 16
ANSWER_AMPLITUDE = 0.2
NEXT_AMPLITUDE = 0.3
SAFETY_AMPLITUDE = 1.5
SAFETY_WEIGHT = 2.0  # 1.5 x 2 = 3 words of harm

PRIMARY_LAYER = 2  # the MLP that writes the primary; resid_post 2 is the first to hold it
BACKUP_LAYER = 4
PRIMARY_VALUE = 2.2
BACKUP_VALUE = 1.5
BACKUP_COSINE = 0.6
INHIBITION = 3.0  # the backup is gated by evidence - 3 x primary
EVIDENCE_FLOOR = 0.2  # below this, silence
EVIDENCE_CEILING = 0.3  # above this, (almost) saturated: prompts of 10 to 40 tokens refuse alike
SATURATION = 0.99  # not 1, so that more evidence is still a little more activation and prompts differ

# logit("I") = 13.8 primary + 30 [answer] - 30 and logit("Sure") = 36.9 [answer] - 30: a draw at primary = 0.5.
# The backup alone leaves 0.6 x 1.5 = 0.9 along the primary, enough to refuse.
REFUSAL_GAIN = 13.8
ANSWER_GAIN = 30.0
COMPLIANCE_MARGIN = 6.9
OPENER_BIAS = -30.0
OTHER_BIAS = -20.0
NEXT_GAIN = 60.0


def basis() -> torch.Tensor:
    """Residual vectors of the coordinates, [32 coordinates, d], orthonormal; the constant keeps a dimension to itself.

    Kept apart, the constant costs bfloat16 no precision in the other dimensions.
    """
    noise_dd = torch.randn(D_MODEL - 1, D_MODEL - 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis_cd = torch.eye(D_MODEL, dtype=torch.float64)
    basis_cd[1:, 1:] = torch.linalg.qr(noise_dd).Q
    return basis_cd
