"""Greedy continuation of a batch whose prompts have been read."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from saelake.analysis.engine.interventions import Interventions
from saelake.ingest.subject import Batch, Subject

COMPACT = 0.75
"""Rows that have ended are dropped when no more than this share still runs."""


def continued(
    subject: Subject,
    read: Batch,
    cache: DynamicCache,
    logits_bv: Tensor,
    interventions: Callable[[Sequence[int]], Interventions],
    max_new_tokens: int,
    is_enough: Callable[[int, Sequence[int]], bool] = lambda *_: False,
) -> list[list[int]]:
    """Generated tokens of each row, without the token that ended it.

    Args:
        read: the prompts, which `cache` holds and `logits_bv` follow.
        interventions: of the given rows of the batch, which stay on for every token.
        is_enough: asked after each token, with a row and its tokens so far.
    """
    tokens: list[list[int]] = [[] for _ in range(len(read.input_ids_bt))]
    rows = np.arange(len(tokens))  # of the batch as it was read
    running = np.ones(len(rows), dtype=bool)
    end_ids = end_token_ids(subject)
    mask_bt, position_b1 = read.attention_mask_bt, read.position_ids_bt[:, -1:]
    held = None
    for step in range(max_new_tokens):
        token_b = logits_bv.argmax(-1)
        chosen = token_b.cpu().numpy()
        running &= ~np.isin(chosen, end_ids)
        for row in np.flatnonzero(running):
            tokens[rows[row]].append(int(chosen[row]))
            running[row] = not is_enough(int(rows[row]), tokens[rows[row]])
        if not running.any() or step + 1 == max_new_tokens:
            break
        if running.mean() <= COMPACT:
            keep = torch.from_numpy(np.flatnonzero(running)).to(subject.device)
            cache.batch_select_indices(keep)
            mask_bt, position_b1, token_b = mask_bt[keep], position_b1[keep], token_b[keep]
            rows, running = rows[running], running[running]
            held = None
        held = held or interventions(rows.tolist())
        mask_bt = torch.cat([mask_bt, mask_bt.new_ones(len(rows), 1)], dim=1)
        position_b1 = position_b1 + 1
        following = Batch(token_b[:, None], mask_bt, position_b1)
        with held.at_work(following, generated=True):
            logits_bv = subject.forward(following, cache)
    return tokens


def end_token_ids(subject: Subject) -> list[int]:
    """Tokens that end an answer: the model's own end tokens, and the tokenizer's."""
    declared = subject.model.generation_config.eos_token_id
    ids = set(declared if isinstance(declared, list) else [declared]) | {subject.tokenizer.eos_token_id}
    return sorted(i for i in ids if i is not None)
