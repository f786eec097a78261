"""Token ids as one batch, padded on the left, and back."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def padded(token_ids: Sequence[Sequence[int]], device: torch.device) -> dict[str, Tensor]:
    """input_ids, attention_mask and position_ids (b, t), as transformers names them; padding, which is masked, is token 0."""
    width = max(map(len, token_ids))
    ids_bt = torch.zeros(len(token_ids), width, dtype=torch.int64)
    mask_bt = torch.zeros_like(ids_bt)
    for row, ids in enumerate(token_ids):
        ids_bt[row, width - len(ids) :] = torch.tensor(ids)
        mask_bt[row, width - len(ids) :] = 1
    positions_bt = (mask_bt.cumsum(1) - 1).clamp(min=0)
    return {
        name: x.to(device)
        for name, x in zip(("input_ids", "attention_mask", "position_ids"), (ids_bt, mask_bt, positions_bt), strict=True)
    }


def unpadded(batch: Mapping[str, Tensor], values_btd: Tensor) -> list[Tensor]:
    """(t, d) of each row, without its padding; some modules work on all tokens as one row (OPT's MLP)."""
    mask_bt = batch["attention_mask"].bool()
    rows_btd = values_btd if values_btd.dim() == 3 else values_btd.view(*mask_bt.shape, -1)
    return [row[kept.to(row.device)] for row, kept in zip(rows_btd, mask_bt, strict=True)]
