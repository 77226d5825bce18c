"""Mixture of experts of A.X K1: SwiGLU, grouped sigmoid router, routed and shared experts.

Shapes: T tokens (batch and sequence flattened), D hidden, E routed experts, G groups, K experts a token,
F expert width.
Source: DeepSeek-V3 (arXiv 2412.19437, section 2.1.2); the norm after the block is A.X K1's (see ``layer.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation

from axk1.config import AXK1Config


class AXK1MLP(nn.Module):
    """SwiGLU ``down(act(gate(x)) * up(x))``: the dense layers and the shared expert."""

    def __init__(self, config: AXK1Config, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., D]`` to the same shape."""
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Routing(NamedTuple):
    """What the router decided for T tokens."""

    logits: torch.Tensor
    """``[T, E]`` fp32, before the scoring function."""
    weights: torch.Tensor
    """``[T, K]`` fp32 weights of the chosen experts, ``routed_scaling_factor`` included."""
    indices: torch.Tensor
    """``[T, K]`` int64 ids of the chosen experts."""


class AXK1Router(nn.Module):
    """Scores experts in fp32, keeps the best groups, chooses the best experts (``mlp.gate.weight`` ``[E, D]``).

    ``e_score_correction_bias`` ``[E]`` takes part in the choice, never in the weights. The released file has none,
    which means zero; training may move it (auxiliary-loss-free balancing, arXiv 2408.15664).
    """

    e_score_correction_bias: torch.Tensor
    tokens_per_expert: torch.Tensor

    def __init__(self, config: AXK1Config) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts, dtype=torch.float32))
        # Choices since the last bias update; filled by the training forward, never stored. Whole numbers, which
        # model.to(torch.bfloat16) leaves alone: bf16 cannot count past 256.
        self.register_buffer(
            "tokens_per_expert", torch.zeros(config.n_routed_experts, dtype=torch.int64), persistent=False
        )

    def forward(self, hidden_states: torch.Tensor) -> Routing:
        """Routes ``[..., D]`` hidden states, flattened to T tokens."""
        config = self.config
        with torch.autocast(hidden_states.device.type, enabled=False):
            logits = F.linear(hidden_states.reshape(-1, config.hidden_size).float(), self.weight.float())
        scores = self.scores(logits)
        choice = scores.detach() + self.e_score_correction_bias
        if config.topk_method != "greedy":
            choice = choice.masked_fill(~self.kept_experts(choice), float("-inf"))
        indices = choice.topk(config.num_experts_per_tok, dim=-1, sorted=False).indices
        weights = scores.gather(1, indices)
        if config.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing(logits, weights * config.routed_scaling_factor, indices)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """``[T, E]`` affinities in (0, 1)."""
        return logits.sigmoid() if self.config.scoring_func == "sigmoid" else logits.softmax(dim=-1)

    def kept_experts(self, choice: torch.Tensor) -> torch.Tensor:
        """``[T, E]`` bool: experts in the ``topk_group`` best groups. Ties follow ``torch.topk``."""
        config = self.config
        grouped = choice.view(choice.shape[0], config.n_group, -1)
        best = 2 if config.topk_method == "noaux_tc" else 1
        group_scores = grouped.topk(best, dim=-1).values.sum(dim=-1)
        kept_groups = group_scores.topk(config.topk_group, dim=-1, sorted=False).indices
        mask = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(1, kept_groups, True)
        return mask.unsqueeze(-1).expand_as(grouped).reshape(choice.shape[0], -1)

    @torch.no_grad()
    def update_bias(self, rate: float) -> None:
        """Moves the bias by ``rate`` towards even use of the experts and clears the counts."""
        counts = self.tokens_per_expert
        self.e_score_correction_bias += rate * torch.sign(counts.sum() - counts * len(counts))
        counts.zero_()


@use_experts_implementation
class AXK1Experts(nn.Module):
    """All routed experts in two tensors, as released.

    ``gate_up_proj`` is ``[E, 2F, D]``, gate rows first; ``down_proj`` is ``[E, D, F]``.
    This forward is the reference ("eager"): one expert after the other. transformers' experts interface replaces it by
    ``grouped_mm``, ``batched_mm`` or any function that is registered there. Under expert parallelism ``num_experts``
    and both tensors are this rank's; higher indices are other ranks' experts.
    """

    def __init__(self, config: AXK1Config) -> None:
        super().__init__()
        self.num_experts = config.n_routed_experts
        width = config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * width, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, config.hidden_size, width))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """``[T, D]`` with the routing ``[T, K]`` to ``[T, D]``: the weighted sum over each token's experts."""
        stacks = list(zip(self.gate_up_proj.unbind(), self.down_proj.unbind(), strict=True))

        def run(tokens: torch.Tensor, expert: int) -> torch.Tensor:
            gate_up, down = stacks[expert]
            gate, up = F.linear(tokens, gate_up).chunk(2, dim=-1)
            return F.linear(self.act_fn(gate) * up, down)

        return one_by_one(hidden_states, indices, weights, self.num_experts, run)


def one_by_one(
    hidden_states: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    experts: int,
    run: Callable[[torch.Tensor, int], torch.Tensor],
) -> torch.Tensor:
    """Each expert over all its tokens, then each token's weighted outputs together.

    Args:
        hidden_states, indices, weights: ``[T, D]`` and the routing, ``[T, K]`` each.
        experts: how many there are; higher indices add nothing.
        run: what an expert makes of its tokens: ``[n, D]``, n may be 0, and its number to ``[n, D]``.

    Returns:
        ``[T, D]``.
    """
    order, counts = by_expert(indices, experts)
    held = sum(counts)  # the slots after these are other ranks'
    tokens = (order[:held] // indices.shape[-1]).split(counts)
    outputs = [run(hidden_states.index_select(0, some), expert) for expert, some in enumerate(tokens)]
    joined = F.pad(torch.cat(outputs), (0, 0, 0, len(order) - held))
    weighted = (joined * weights.reshape(-1, 1)[order]).to(joined.dtype)
    by_token = weighted.index_select(0, order.argsort()).view(*indices.shape, -1)
    return by_token.sum(dim=1).to(hidden_states.dtype)


def by_expert(indices: torch.Tensor, experts: int) -> tuple[torch.Tensor, list[int]]:
    """The T K slots (token, k) of the routing ``[T, K]`` sorted by expert, ``[T K]``, and how many each expert has."""
    slots = indices.reshape(-1)
    return slots.argsort(stable=True), torch.bincount(slots, minlength=experts)[:experts].tolist()


class AXK1MoE(nn.Module):
    """Routed experts x their weights + shared expert; the post-MLP norm follows in the decoder layer."""

    def __init__(self, config: AXK1Config) -> None:
        super().__init__()
        self.gate = AXK1Router(config)
        self.experts = AXK1Experts(config)
        self.shared_experts = (
            AXK1MLP(config, config.moe_intermediate_size * config.n_shared_experts) if config.n_shared_experts else None
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``[batch, tokens, D]`` to the same shape: the complete sum, which the norm must see."""
        _, weights, indices = self.gate(hidden_states)
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        routed = self.experts(flat, indices, weights).view_as(hidden_states)
        return routed if self.shared_experts is None else routed + self.shared_experts(hidden_states)
