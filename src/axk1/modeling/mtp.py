"""Multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2).

The module of depth k is stored as decoder layer ``num_hidden_layers + k - 1`` with the extra keys ``enorm``, ``hnorm``,
``eh_proj`` and ``shared_head.norm``; embedding and head are the trunk's. Its contract:

* it sees the trunk's hidden state **after** the final norm (at depth > 1: the previous module's, after its
  ``shared_head.norm``); the state before the norm still decodes correctly and only lowers acceptance;
* ``eh_proj`` takes ``[enorm(embedding), hnorm(hidden)]``, in that order;
* position i combines the hidden state of i with the embedding of token i + k and predicts token i + k + 1.

Drafts may be read off some rows of the head only (:class:`DraftHead`).
"""

from collections.abc import Sequence
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


class DraftHead:
    """The head's rows of the tokens that are worth drafting: most of what a module reads is the head, most of what a
    model writes are few tokens (FR-Spec, arXiv 2502.14856). Other tokens are never drafted, and never lost: the trunk
    checks drafts with its whole head.

    Args:
        lm_head: ``[V, D]``.
        ids: the tokens, each once.

    Raises:
        ValueError: ``ids`` are none, not all different, or not all of the vocabulary.
    """

    def __init__(self, lm_head: torch.Tensor, ids: Sequence[int]) -> None:
        self.vocabulary = len(lm_head)
        if not ids or len(set(ids)) < len(ids) or min(ids) < 0 or max(ids) >= self.vocabulary:
            raise ValueError(
                f"generation_config.draft_token_ids must be different ids below the vocabulary's {self.vocabulary}; "
                "write them with axk1 tokenizer draft-tokens, or remove the entry to draft from the whole vocabulary."
            )
        self.ids = torch.tensor(sorted(ids), device=lm_head.device)
        """``[N]`` int64, ascending: the first of equal logits is the first of the vocabulary."""
        self.weight = lm_head.detach()[self.ids]
        """``[N, D]``, a copy."""
        self._source = ids, lm_head.data_ptr(), _version(lm_head)

    def is_of(self, lm_head: torch.Tensor, ids: Sequence[int]) -> bool:
        """Whether nothing has changed since it was made of these."""
        mine, pointer, version = self._source
        return mine is ids and (pointer, version) == (lm_head.data_ptr(), _version(lm_head))

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Logits ``[..., V]`` of states ``[..., D]``; -inf for all other tokens."""
        logits = states.new_full((*states.shape[:-1], self.vocabulary), -torch.inf)
        logits[..., self.ids] = nn.functional.linear(states, self.weight)
        return logits


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version  # inference tensors do not count their changes


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
