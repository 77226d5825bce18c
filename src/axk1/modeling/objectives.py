"""Training objectives: next token, multi-token prediction, router balance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from axk1.config import AXK1Config
from axk1.modeling.moe import AXK1Router

IGNORE = -100
CHUNK_ROWS = 256
"""Rows of logits at once: of the released vocabulary 168 MB in fp32."""
WHOLE_LOGITS = 2**26
"""Up to so many logits (268 MB) are computed at once."""


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


def targets_at(
    depth: int, labels: torch.Tensor | None, shift_labels: torch.Tensor | None, position_ids: torch.Tensor | None
) -> torch.Tensor:
    """Targets of the trunk (depth 0) or of the MTP module of this depth, from labels or from already shifted ones.

    ``shift_labels`` ``[batch, tokens]`` are what position i predicts, as loops give them that cut sequences over ranks
    (where the next rank's tokens are not seen); they are taken as they are, and shifted by ``depth`` only.
    """
    if shift_labels is None:
        assert labels is not None
        return shifted_labels(labels, position_ids, depth + 1)
    return shift_labels if depth == 0 else shifted_labels(shift_labels, position_ids, depth)


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
    rows, labels = hidden_states[chosen], targets[chosen]
    if rows.shape[0] * getattr(lm_head, "out_features", 0) > WHOLE_LOGITS:
        total = chunked_cross_entropy(rows, lm_head, labels)
    else:
        total = F.cross_entropy(lm_head(rows).float(), labels, reduction="sum")
    return total / (chosen.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)


def chunked_cross_entropy(rows: torch.Tensor, lm_head: torch.nn.Module, labels: torch.Tensor) -> torch.Tensor:
    """Summed cross entropy in fp32 of ``lm_head(rows)`` ``[rows, vocab]``, of which ``CHUNK_ROWS`` rows exist at once.

    A plain head's gradients are computed in the same pass (torch 2.13); any other head, such as one with an adapter or
    whose weight is shared out over ranks, runs a second time for its gradients.
    """
    if torch.is_grad_enabled() and _is_plain(lm_head) and hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions(
            batch_chunk_size=CHUNK_ROWS, chunking_method=None, acc_policy="accurate"
        )
        return F.linear_cross_entropy(rows, lm_head.weight, labels, reduction="sum", options=options)  # pyright: ignore

    def part(some: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(lm_head(some).float(), wanted, reduction="sum")

    pieces = zip(rows.split(CHUNK_ROWS), labels.split(CHUNK_ROWS), strict=True)
    return torch.stack([cast(torch.Tensor, checkpoint(part, *piece, use_reentrant=False)) for piece in pieces]).sum()


def _is_plain(head: torch.nn.Module) -> bool:
    """Whether ``head`` is its weight and nothing else, in fp32: 16 bits keep their own rounding of logits."""
    hooked = head._forward_hooks or head._forward_pre_hooks or head._backward_hooks
    if type(head) is not torch.nn.Linear or head.bias is not None or hooked or torch.is_autocast_enabled():
        return False
    return type(head.weight) is torch.nn.Parameter and head.weight.element_size() == 4


def sequence_balance_loss(
    scores: torch.Tensor,
    indices: torch.Tensor,
    mask: torch.Tensor,
    config: AXK1Config,
    shares: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sequence-wise balance loss of one layer, mean over sequences (DeepSeek-V3, eq. 17-20, without the factor alpha).

    Args:
        scores: ``[batch, tokens, E]`` router affinities.
        indices: ``[batch, tokens, K]`` chosen experts.
        mask: ``[batch, tokens]`` 1 for real tokens.
        shares: ``[batch]``, what each sequence counts in place of the mean (:func:`label_shares`).
    """
    weight = mask.to(scores.dtype).unsqueeze(-1)
    length = weight.sum(dim=1).clamp(min=1)
    chosen = F.one_hot(indices, config.n_routed_experts).sum(dim=2).to(scores.dtype)
    load = (chosen * weight).sum(dim=1) * config.n_routed_experts / (config.num_experts_per_tok * length)
    share = scores / scores.sum(dim=-1, keepdim=True)
    importance = (share * weight).sum(dim=1) / length
    losses = (load.detach() * importance).sum(dim=-1)
    return losses.mean() if shares is None else (losses * shares).sum()


def label_shares(labels: torch.Tensor, shifted: bool, num_items_in_batch: torch.Tensor | int) -> torch.Tensor:
    """``[batch]``: each sequence's part of the labels of a whole step, over all its micro-batches and ranks.

    Weighed by these, losses that are no sums over labels add up to the same however a step is split.

    Args:
        labels: ``[batch, tokens]``; the first of each sequence is predicted by nothing, unless they are ``shifted``.
    """
    return ((labels if shifted else labels[:, 1:]) != IGNORE).sum(dim=1) / num_items_in_batch


@torch.no_grad()
def tokens_per_expert(indices: torch.Tensor, mask: torch.Tensor, num_experts: int) -> torch.Tensor:
    """``[E]`` int64: how many of the masked-in tokens (``mask`` ``[T]``) chose each expert (``indices`` ``[T, K]``)."""
    weight = mask.reshape(-1, 1).long().expand(-1, indices.shape[-1])
    counts = torch.zeros(num_experts, dtype=torch.int64, device=indices.device)
    return counts.scatter_add_(0, indices.reshape(-1), weight.reshape(-1))


def balance_loss(
    routers: Sequence[AXK1Router],
    logits: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor],
    mask: torch.Tensor,
    config: AXK1Config,
    shares: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean of :func:`sequence_balance_loss` over the MoE layers whose ``routers`` made ``logits`` and ``indices``.

    Args:
        logits, indices: ``[batch * tokens, E]`` and ``[batch * tokens, K]`` a layer.
        mask: ``[batch, tokens]``, 1 for real tokens.
        shares: ``[batch]`` of each sequence in a step that is split.
    """
    shape = (*mask.shape, -1)
    losses = [
        sequence_balance_loss(router.scores(scores).view(shape), chosen.view(shape), mask, config, shares)
        for router, scores, chosen in zip(routers, logits, indices, strict=True)
    ]
    return torch.stack(losses).mean()


@torch.no_grad()
def update_biases(routers: Sequence[AXK1Router], rate: float, summed: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Auxiliary-loss-free balancing (arXiv 2408.15664) from the choices counted since the last call.

    Routers whose weights are frozen keep their biases.

    Args:
        summed: makes this process's counts ``[layers, E]`` those of all ranks, so that all move their biases alike.
    """
    if not routers:
        return
    counts = summed(torch.stack([router.tokens_per_expert for router in routers]))
    for router, count in zip(routers, counts, strict=True):
        router.tokens_per_expert.copy_(count)
        router.update_bias(rate if router.weight.requires_grad else 0.0)


def attached(states: torch.Tensor, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """``states`` as they are, with ``parameters`` in their graph, for which no gradient comes of it.

    What a step leaves out would otherwise end data-parallel training: it waits for every parameter's gradient. Not for
    parameters that the step does use: under reentrant checkpointing they would be reported twice.
    """
    if not parameters or torch.compiler.is_compiling():
        return states
    return _Attached.apply(states, *parameters)  # pyright: ignore[reportReturnType]


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.count = len(parameters)
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return (*gradients, *[None] * ctx.count)
