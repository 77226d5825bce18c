"""One decoder layer: pre-norm attention, pre-norm MLP, and A.X K1's norm after the MoE block."""

from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from axk1.config import AXK1Config
from axk1.modeling.attention import AXK1Attention
from axk1.modeling.compat import accepts_both_cache_names
from axk1.modeling.moe import AXK1MLP, AXK1MoE
from axk1.modeling.norm import AXK1RMSNorm


class AXK1DecoderLayer(GradientCheckpointingLayer):
    """``x + attention(norm(x))``, then ``x + post_mlp_layernorm(moe(norm(x)))``, in dense layers ``x + mlp(norm(x))``.

    Dense layers store a ``post_mlp_layernorm`` as the released file does, but never apply it (nor does any official
    implementation); it is frozen so that optimizers leave it alone.
    """

    def __init__(self, config: AXK1Config, layer_idx: int) -> None:
        super().__init__()
        self.is_moe = config.is_moe_layer(layer_idx)
        self.input_layernorm = AXK1RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = AXK1Attention(config, layer_idx)
        self.post_attention_layernorm = AXK1RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = AXK1MoE(config) if self.is_moe else AXK1MLP(config, config.intermediate_size)
        self.post_mlp_layernorm = AXK1RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_mlp_layernorm.requires_grad_(self.is_moe)

    @accepts_both_cache_names
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """``[batch, tokens, hidden]`` to the same shape; appends to ``cache`` in place."""
        return self.transform(self.attend(hidden_states, position_embeddings, attention_mask, cache, **kwargs))

    def attend(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The first half: ``x + attention(norm(x))``, with the arguments of ``forward``."""
        return hidden_states + self.self_attn(self.input_layernorm(hidden_states), *args, **kwargs)[0]

    def transform(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The second half, in which no token sees another: ``x + post_mlp_layernorm(moe(norm(x)))``."""
        update = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + (self.post_mlp_layernorm(update) if self.is_moe else update)
