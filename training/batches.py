"""Rows of token ids as one batch, padded on the left so that the last position decides, and its logits there.

What all rows begin with (a task's question, its examples) can be computed once for all of them.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor


def batched(rows: Sequence[Sequence[int]], pad_id: int, *, share: bool = False, own: int = 1) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` [B, T], and `shared` [1, S].

    Args:
        rows: token ids.
        pad_id: what shorter rows are filled up with, on the left.
        share: what all rows begin with goes into `shared`, which is empty otherwise.
        own: so many tokens at its end every row keeps.
    """
    common = 0
    if share and len(rows) > 1:
        most = min(map(len, rows)) - own
        same = (len({row[i] for row in rows}) == 1 for i in range(max(most, 0)))
        common = sum(takewhile(bool, same))
    ends = [list(row[common:]) for row in rows]
    width = max(map(len, ends))
    return {
        "shared": torch.tensor([list(rows[0][:common])], dtype=torch.int64),
        "input_ids": torch.tensor([[pad_id] * (width - len(row)) + row for row in ends]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ends]),
    }


def last_logits(model: Any, inputs: Mapping[str, Tensor], length: int = 1) -> Tensor:
    """Logits [B, length, V] at the last positions of a batch that `batched` made.

    Gradients go through the keys and values of what is shared.
    """
    mask, shared = inputs["attention_mask"], inputs["shared"]
    cache = None
    if shared.shape[1]:
        cache = model(input_ids=shared, use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(len(mask))
    width = mask.shape[1]
    logits: Tensor = model(
        input_ids=inputs["input_ids"],
        attention_mask=torch.cat([mask.new_ones(len(mask), shared.shape[1]), mask], dim=1),
        position_ids=shared.shape[1] + (mask.cumsum(-1) - 1).clamp(min=0),
        past_key_values=cache,
        # By place, which makes a copy: behind a slice some dtypes copy the whole output layer for every row.
        logits_to_keep=torch.arange(width - length, width, device=mask.device),
        use_cache=cache is not None,
    ).logits
    return logits
