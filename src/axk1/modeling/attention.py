"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

Shapes: B batch, T tokens, S cached tokens, H heads, C kv_lora_rank, R qk_rope_head_dim, N qk_nope_head_dim,
V v_head_dim.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from axk1.config import AXK1Config
from axk1.modeling.norm import AXK1RMSNorm
from axk1.modeling.rope import rotate


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention: the reference for every other implementation. Returns ``[B, T, H, V]`` and the weights."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class AXK1Attention(nn.Module):
    """MLA whose cache holds the latents: ``kv_lora_rank + qk_rope_head_dim`` values a token and layer (512 + 64)."""

    def __init__(self, config: AXK1Config, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        heads, bias = config.num_attention_heads, config.attention_bias
        self.q_a_proj = nn.Linear(config.hidden_size, config.q_lora_rank, bias=bias)
        self.q_a_layernorm = AXK1RMSNorm(config.q_lora_rank)
        self.q_b_proj = nn.Linear(config.q_lora_rank, heads * config.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(
            config.hidden_size, config.kv_lora_rank + config.qk_rope_head_dim, bias=bias
        )
        self.kv_a_layernorm = AXK1RMSNorm(config.kv_lora_rank)
        self.kv_b_proj = nn.Linear(
            config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim), bias=False
        )
        self.o_proj = nn.Linear(heads * config.v_head_dim, config.hidden_size, bias=bias)
        self.scaling = softmax_scale(config)
        # read by transformers' attention functions
        self.is_causal, self.num_key_value_groups, self.attention_dropout = True, 1, config.attention_dropout

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``[B, T, hidden]`` to the same shape, and the weights ``[B, H, T, S]`` where the implementation has them."""
        config = self.config
        batch, tokens = hidden_states.shape[:2]
        query_BHTD = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states)))
        query_BHTD = query_BHTD.view(batch, tokens, -1, config.qk_head_dim).transpose(1, 2)
        q_nope, q_rope = query_BHTD.split([config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(hidden_states).split(
            [config.kv_lora_rank, config.qk_rope_head_dim], -1
        )
        latent_B1TC, k_rope_B1TR = self.kv_a_layernorm(latent).unsqueeze(1), k_rope.unsqueeze(1)
        q_rope = rotate(q_rope, *position_embeddings, interleave=config.rope_interleave)
        k_rope_B1TR = rotate(k_rope_B1TR, *position_embeddings, interleave=config.rope_interleave)
        if past_key_values is not None:
            latent_B1TC, k_rope_B1TR = past_key_values.update(latent_B1TC, k_rope_B1TR, self.layer_idx)
        key, value = self.expand(latent_B1TC, k_rope_B1TR)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(cast(str, config._attn_implementation), eager_attention)
        output_BTHV, weights = attend(
            self,
            torch.cat([q_nope, q_rope], dim=-1),
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output_BTHV.reshape(batch, tokens, -1)), weights

    def expand(self, latent_B1SC: torch.Tensor, k_rope_B1SR: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys ``[B, H, S, N + R]`` and values ``[B, H, S, V]`` of the cached latents (``kv_b_proj``)."""
        config = self.config
        batch, _, cached, _ = latent_B1SC.shape
        kv = self.kv_b_proj(latent_B1SC).view(batch, cached, -1, config.qk_nope_head_dim + config.v_head_dim)
        k_nope, value = kv.transpose(1, 2).split([config.qk_nope_head_dim, config.v_head_dim], dim=-1)
        k_rope = k_rope_B1SR.to(k_nope.dtype).expand(-1, k_nope.shape[1], -1, -1)
        return torch.cat([k_nope, k_rope], dim=-1), value


def softmax_scale(config: AXK1Config) -> float:
    """``qk_head_dim ** -0.5``, times YaRN's squared mscale where ``mscale_all_dim`` is not 0 (released: 0)."""
    rope = config.rope_parameters or {}
    scale, factor, all_dim = config.qk_head_dim**-0.5, rope.get("factor") or 1.0, rope.get("mscale_all_dim") or 0.0
    if rope.get("rope_type", "default") == "default" or not all_dim or factor <= 1:
        return scale
    return scale * (0.1 * all_dim * math.log(factor) + 1.0) ** 2
