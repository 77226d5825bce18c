"""Multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2).

The module of depth k is stored as decoder layer ``num_hidden_layers + k - 1`` with the extra keys ``enorm``, ``hnorm``,
``eh_proj`` and ``shared_head.norm``; embedding and head are the trunk's. Its contract:

* it sees the trunk's hidden state **after** the final norm (at depth > 1: the previous module's, after its
  ``shared_head.norm``); the state before the norm still decodes correctly and only lowers acceptance;
* ``eh_proj`` takes ``[enorm(embedding), hnorm(hidden)]``, in that order;
* position i combines the hidden state of i with the embedding of token i + k and predicts token i + k + 1.
"""

from typing import Any

import torch
from torch import nn

from axk1.config import AXK1Config
from axk1.modeling.layer import AXK1DecoderLayer
from axk1.modeling.norm import AXK1RMSNorm


class AXK1SharedHead(nn.Module):
    """The module's own final norm; the projection is the trunk's ``lm_head``."""

    def __init__(self, config: AXK1Config) -> None:
        super().__init__()
        self.norm = AXK1RMSNorm(config.hidden_size, config.rms_norm_eps)


class AXK1MTPLayer(AXK1DecoderLayer):
    """One MTP module: a MoE decoder layer (post-MLP norm included) over a projected pair of states."""

    def __init__(self, config: AXK1Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.enorm = AXK1RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = AXK1RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.shared_head = AXK1SharedHead(config)

    def combine(self, hidden_states: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """The decoder block's input, of post-norm states and next-token embeddings, all ``[batch, tokens, hidden]``."""
        return self.eh_proj(torch.cat([self.enorm(embeddings), self.hnorm(hidden_states)], dim=-1))

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden_states: torch.Tensor, embeddings: torch.Tensor | None, **kwargs: Any
    ) -> torch.Tensor:
        """Post-norm hidden states and next-token embeddings, both ``[batch, tokens, hidden]``, to post-norm states.

        Without ``embeddings``, ``hidden_states`` are what ``combine`` made of both.
        """
        combined = hidden_states if embeddings is None else self.combine(hidden_states, embeddings)
        return self.shared_head.norm(super().forward(combined, **kwargs))
