"""The module that stands for routed experts which stay in their files: compiled steps read them as they need them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from axk1.kernels.native import Stream
from axk1.modeling.moe import AXK1Experts
from axk1.quantized.modules import QuantizedExperts


class StreamedExperts(nn.Module):
    """No weights: where those of ``layer`` are, ``axk1.experts`` says once the rest of the model is loaded."""

    stream: Stream | None = None
    """What compiled steps read them by."""
    resident: Callable[[list[int]], nn.Module] | None = None
    """Some of them in memory, as a module of the kind that this one stands for."""

    def __init__(self, layer: int, experts: int) -> None:
        super().__init__()
        self.layer, self.num_experts = layer, experts

    def forward(self, hidden_states: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """``[T, D]`` with the routing ``[T, K]`` to ``[T, D]``, by PyTorch's operators: where no compiled step runs.

        The experts that these tokens chose are read into memory, and forgotten."""
        if self.resident is None:
            raise ValueError("The model was loaded without its routed experts: call axk1.experts.stream_experts.")
        chosen, places = indices.unique(return_inverse=True)
        return self.resident(chosen.tolist())(hidden_states, places, weights)


def leave_out_experts(model: nn.Module) -> int:
    """Puts :class:`StreamedExperts` in place of all routed experts of a model on the meta device; returns how many
    layers have some."""
    found = [
        (name, module) for name, module in model.named_modules() if isinstance(module, AXK1Experts | QuantizedExperts)
    ]
    for name, module in found:
        layer = int(name.split("layers.")[1].split(".")[0])
        model.set_submodule(name, StreamedExperts(layer, int(module.num_experts)))  # pyright: ignore
    return len(found)
