"""What the models return."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.utils.generic import ModelOutput


@dataclass
class AXK1ModelOutput(MoeModelOutputWithPast):
    """The trunk's output, plus what the MTP modules and the training objectives need."""

    router_indices: tuple[torch.Tensor, ...] | None = None
    """One ``[batch * tokens, K]`` a MoE layer, beside ``router_logits`` ``[batch * tokens, E]``."""


@dataclass
class AXK1MTPOutput(ModelOutput):
    """Post-norm states ``[batch, tokens, hidden]`` of every MTP depth, and their routers' decisions."""

    mtp_states: tuple[torch.Tensor, ...] | None = None
    router_logits: tuple[torch.Tensor, ...] | None = None
    router_indices: tuple[torch.Tensor, ...] | None = None


@dataclass
class AXK1CausalLMOutput(MoeCausalLMOutputWithPast):
    """``loss`` is ``lm_loss + mtp_loss_weight * mtp_loss + router_aux_loss_coef * aux_loss``."""

    lm_loss: torch.Tensor | None = None
    mtp_loss: torch.Tensor | None = None
    mtp_logits: tuple[torch.Tensor, ...] | None = None
    """One ``[batch, tokens, vocab]`` a depth k: at position i the logits of token i + k + 1 (``output_mtp_logits``)."""
    router_indices: tuple[torch.Tensor, ...] | None = None
