"""Routed experts of a prompt in 16-bit floats on the CPU, by PyTorch's operators: where compiled kernels do not run.

Shapes: T tokens, K experts per token, D hidden.
"""

from typing import Any

import torch
import torch.nn.functional as F

from axk1.modeling.moe import by_expert


def one_by_one(experts: Any, hidden_states: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What :func:`axk1.modeling.moe.one_by_one` computes of ``AXK1Experts`` without gradients, in less time.

    All experts write to one tensor, since allocating megabytes for each costs more than filling them; and one operator
    adds up: it takes the weights rounded to the dtype, and rounds no product.

    Args:
        experts: ``AXK1Experts``, a type that transformers' decorator hides.
        hidden_states, indices, weights: ``[T, D]`` and the routing, ``[T, K]`` each.

    Returns:
        ``[T, D]``.
    """
    order, counts = by_expert(indices, experts.num_experts)
    held = sum(counts)
    tokens = (order[:held] // indices.shape[-1]).split(counts)
    outputs = hidden_states.new_empty(len(order), hidden_states.shape[-1])
    outputs[held:] = 0  # other ranks' experts
    places = outputs[:held].split(counts)
    stacks = zip(experts.gate_up_proj.unbind(), experts.down_proj.unbind(), strict=True)
    for expert, (gate_up, down) in enumerate(stacks):
        gate, up = F.linear(hidden_states.index_select(0, tokens[expert]), gate_up).chunk(2, dim=-1)
        torch.mm(experts.act_fn(gate) * up, down.t(), out=places[expert])
    slots, shares = order.argsort().view_as(weights), weights.to(outputs.dtype)
    return F.embedding_bag(slots, outputs, per_sample_weights=shares, mode="sum")
