"""Attention of a prompt in 16-bit floats on the CPU, by PyTorch's operators: where compiled kernels do not run."""

from typing import Any

import torch
from torch import nn

from axk1.modeling.attention import WORKSPACE

QUERY_BLOCK = 256
"""Queries whose scores are held at once."""


def blocked_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention without gradients, ``QUERY_BLOCK`` queries at a time, each against what they may see only.

    PyTorch's own function makes the scores of all pairs where keys and values differ in width: this one needs a quarter
    of its time. Scores are rounded to the dtype, sums are not.

    Args:
        query, key, value: ``[B, H, T, D]``, ``[B, H, S, D]``, ``[B, H, S, V]``.
        attention_mask: ``[B or 1, H or 1, T, S]``, bool or added to the scores; None: causal, the last query sees all.

    Returns:
        ``[B, T, H, V]``; no weights.
    """
    (batch, heads, tokens, _), cached = query.shape, key.shape[2]
    output = query.new_empty(batch, tokens, heads, value.shape[-1])
    query, lowest = (query * scaling).flatten(0, 1), torch.finfo(query.dtype).min
    key, value = key.flatten(0, 1), value.flatten(0, 1)
    rows = max(1, min(QUERY_BLOCK, WORKSPACE // (batch * heads * cached * query.element_size())))
    space = query.new_empty(batch * heads * min(rows, tokens) * cached)  # all blocks' scores, one after the other
    for first in range(0, tokens, rows):
        last = min(first + rows, tokens)
        seen = cached - tokens + last
        if attention_mask is not None:
            mask = attention_mask[:, :, first:last]
            visible = mask if mask.dtype == torch.bool else mask > lowest
            columns = visible.flatten(0, 2).any(0).nonzero()
            seen = int(columns[-1]) + 1 if len(columns) else 1
        scores = space[: batch * heads * (last - first) * seen].view(-1, last - first, seen)
        torch.bmm(query[:, first:last], key[:, :seen].transpose(1, 2), out=scores)
        by_head = scores.view(batch, heads, last - first, seen)
        if attention_mask is None:
            future = torch.ones(last - first, last - first, dtype=torch.bool, device=query.device).triu(1)
            scores[..., seen - (last - first) :].masked_fill_(future, lowest)
        elif mask.dtype == torch.bool:
            by_head.masked_fill_(~mask[..., :seen], lowest)
        else:
            by_head += mask[..., :seen]
        torch.softmax(scores, -1, out=scores)
        output[:, first:last] = (scores @ value[:, :seen]).view(batch, heads, last - first, -1).transpose(1, 2)
    return output, None
