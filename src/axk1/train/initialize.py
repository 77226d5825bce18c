"""Starting weights for small models trained from scratch.

The released configuration draws every matrix with a standard deviation of 0.02, which suits a width of 7,168. At a
width of 192 it leaves the embedding at a fiftieth of what the normed MoE blocks add to the residual stream, and
attention uniform; the nano then learns to look back five times later (LOG.md).
"""

from __future__ import annotations

import torch

from axk1.modeling import AXK1ForCausalLM
from axk1.modeling.layer import AXK1DecoderLayer

_BRANCH = 0.3  # what attention and MLP add at first, against an embedding of 1


@torch.no_grad()
def initialize(model: AXK1ForCausalLM) -> None:
    """Unit-variance activations: matrices by their fan-in, embeddings of size 1, residual branches at 0.3."""
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        std = parameter.shape[-1] ** -0.5
        if "embed_tokens" in name:
            std = 1.0
        elif "lm_head" in name:
            std = model.config.initializer_range  # near-uniform predictions at first
        elif "o_proj" in name or "down_proj" in name:
            std *= _BRANCH
        parameter.normal_(0.0, std)
    for layer in model.modules():
        if isinstance(layer, AXK1DecoderLayer) and layer.is_moe:
            layer.post_mlp_layernorm.weight.fill_(_BRANCH)
