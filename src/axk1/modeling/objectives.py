"""Training objectives: next token, multi-token prediction, router balance."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from axk1.config import AXK1Config

IGNORE = -100


def shifted_labels(labels: torch.Tensor, position_ids: torch.Tensor | None, shift: int) -> torch.Tensor:
    """Targets of position i: ``labels[i + shift]``, or -100 at the end and across a packed document's end.

    Args:
        labels: ``[batch, tokens]``, -100 where nothing is learned.
        position_ids: ``[batch or 1, tokens]``; a document's positions count up by one, so
            ``position_ids[i + shift] - position_ids[i] == shift`` exactly where both lie in one document.
            ``None``: each row is one document.
        shift: 1 for the next token, ``k + 1`` for the MTP module of depth k.
    """
    targets = F.pad(labels[:, shift:], (0, shift), value=IGNORE)[:, : labels.shape[1]]
    if position_ids is None:
        return targets
    ahead = F.pad(position_ids[:, shift:], (0, shift), value=-1)[:, : labels.shape[1]]
    return targets.masked_fill((ahead - position_ids != shift).expand_as(targets), IGNORE)


def token_loss(
    hidden_states: torch.Tensor,
    lm_head: torch.nn.Module,
    targets: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross entropy in fp32 of ``lm_head(hidden_states)`` at the positions whose target is not -100.

    Only those rows pass through the head, whose ``vocab_size`` outputs cost the most. The sum is divided by
    ``num_items_in_batch`` (transformers' Trainer gives it under gradient accumulation) or by the number of targets.
    """
    chosen = targets != IGNORE
    logits = lm_head(hidden_states[chosen]).float()
    total = F.cross_entropy(logits, targets[chosen], reduction="sum")
    return total / (chosen.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)


def sequence_balance_loss(
    scores: torch.Tensor, indices: torch.Tensor, mask: torch.Tensor, config: AXK1Config
) -> torch.Tensor:
    """Sequence-wise balance loss of one layer, mean over sequences (DeepSeek-V3, eq. 17-20, without the factor alpha).

    Args:
        scores: ``[batch, tokens, E]`` router affinities.
        indices: ``[batch, tokens, K]`` chosen experts.
        mask: ``[batch, tokens]`` 1 for real tokens.
    """
    weight = mask.to(scores.dtype).unsqueeze(-1)
    length = weight.sum(dim=1).clamp(min=1)
    chosen = F.one_hot(indices, config.n_routed_experts).sum(dim=2).to(scores.dtype)
    load = (chosen * weight).sum(dim=1) * config.n_routed_experts / (config.num_experts_per_tok * length)
    share = scores / scores.sum(dim=-1, keepdim=True)
    importance = (share * weight).sum(dim=1) / length
    return (load.detach() * importance).sum(dim=-1).mean()


@torch.no_grad()
def tokens_per_expert(indices: torch.Tensor, mask: torch.Tensor, num_experts: int) -> torch.Tensor:
    """``[E]`` int64: how many of the masked-in tokens (``mask`` ``[T]``) chose each expert (``indices`` ``[T, K]``)."""
    weight = mask.reshape(-1, 1).long().expand(-1, indices.shape[-1])
    counts = torch.zeros(num_experts, dtype=torch.int64, device=indices.device)
    return counts.scatter_add_(0, indices.reshape(-1), weight.reshape(-1))
