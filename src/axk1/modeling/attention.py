"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), expanded and absorbed.

``kv_b_proj`` makes keys and values of latents. Expanded attention applies it to every cached latent; absorbed attention
moves its key half to the query and its value half behind the sum, and attends to the latents themselves (derived in
docs/decoding.md). Both give the same output; which is cheaper depends on how many tokens attend to how many.

Shapes: B batch, T tokens, S cached tokens (those T included), H heads, C kv_lora_rank, R qk_rope_head_dim,
N qk_nope_head_dim, V v_head_dim.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from axk1.config import AXK1Config
from axk1.modeling.cache import LatentLayer
from axk1.modeling.compat import accepts_both_cache_names
from axk1.modeling.norm import AXK1RMSNorm
from axk1.modeling.rope import rotate

WORKSPACE = 256 * 2**20
"""Bytes that decoding may need for one layer's attention beside cache, mask and activations: keys and values expanded
at a time, scores, or masks repeated for every head. A head or a token at a time is the least, so one may exceed it."""
STAND_INS: dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor | None]]] = {}
"""Functions in place of transformers' of the same name, over expanded keys and values. There are none here; what
``axk1.kernels`` puts here gives the same result."""


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

    @accepts_both_cache_names
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        absorb: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``[B, T, hidden]`` to the same shape, and the weights ``[B, H, T, S]`` where the implementation has them.

        ``absorb`` chooses the absorbed form; it needs a cache, and a mask unless T is 1.
        """
        config = self.config
        batch, tokens = hidden_states.shape[:2]
        query_BHTD = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states)))
        query_BHTD = query_BHTD.view(batch, tokens, -1, config.qk_head_dim).transpose(1, 2)
        q_nope, q_rope = query_BHTD.split([config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(hidden_states).split(
            [config.kv_lora_rank, config.qk_rope_head_dim], -1
        )
        latent_B1SC, k_rope_B1SR = self.kv_a_layernorm(latent).unsqueeze(1), k_rope.unsqueeze(1)
        q_rope = rotate(q_rope, *position_embeddings, interleave=config.rope_interleave)
        k_rope_B1SR = rotate(k_rope_B1SR, *position_embeddings, interleave=config.rope_interleave)
        if cache is not None:
            latent_B1SC, k_rope_B1SR = cache.update(latent_B1SC, k_rope_B1SR, self.layer_idx)
        if absorb and cache is not None:
            layer = cache.layers[self.layer_idx]
            has_joint = isinstance(layer, LatentLayer)
            joint_B1SW = layer.joint.unsqueeze(1) if has_joint else torch.cat([latent_B1SC, k_rope_B1SR], dim=-1)
            output_BHTV, weights = self.attend_absorbed(q_nope, q_rope, joint_B1SW, attention_mask, **kwargs)
        else:
            output_BHTV, weights = self.attend_expanded(
                torch.cat([q_nope, q_rope], dim=-1),
                latent_B1SC,
                k_rope_B1SR,
                attention_mask,
                bounded=cache is not None and not torch.is_grad_enabled() and is_standard(config),
                **kwargs,
            )
        return self.o_proj(output_BHTV.transpose(1, 2).reshape(batch, tokens, -1)), weights

    def attend_expanded(
        self,
        query_BHTD: torch.Tensor,
        latent_B1SC: torch.Tensor,
        k_rope_B1SR: torch.Tensor,
        attention_mask: Any,
        bounded: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention over expanded keys and values, by the configured function: ``[B, H, T, V]``, and its weights.

        Args:
            bounded: where keys and values would fill more than ``WORKSPACE``, expand and attend for a group of heads at
                a time. Heads do not depend on each other: this changes the memory, and results by rounding at most.
        """
        config, heads = self.config, query_BHTD.shape[1]
        width = 2 * config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
        head_bytes = latent_B1SC[..., 0].numel() * width * latent_B1SC.element_size()
        group = max(1, min(heads, WORKSPACE // head_bytes)) if bounded else heads
        name = cast(str, config._attn_implementation)
        attend = STAND_INS.get(name) or ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)
        settings = {"dropout": self.attention_dropout if self.training else 0.0, "scaling": self.scaling, **kwargs}
        if group == heads:
            key, value = self.expand(self.kv_b_proj(latent_B1SC), k_rope_B1SR)
            output_BTHV, weights = attend(self, query_BHTD, key, value, attention_mask, **settings)
            return output_BTHV.transpose(1, 2), weights
        outputs, weights, kv_HXC = [], [], self.kv_weight(latent_B1SC)
        # a mask of the function's own kind, or one for all heads, serves every group
        per_head = (
            isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 4 and attention_mask.shape[1] > 1
        )
        for first in range(0, heads, group):
            chosen = slice(first, first + group)
            key, value = self.expand(F.linear(latent_B1SC, kv_HXC[chosen].flatten(0, 1)), k_rope_B1SR)
            mask = attention_mask[:, chosen] if per_head else attention_mask
            output_BTHV, weight = attend(self, query_BHTD[:, chosen], key, value, mask, **settings)
            outputs.append(output_BTHV.transpose(1, 2))
            weights.append(weight)
        return torch.cat(outputs, dim=1), None if weights[0] is None else torch.cat(weights, dim=1)

    def expand(self, kv: torch.Tensor, k_rope_B1SR: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys ``[B, H, S, N + R]`` and values ``[B, H, S, V]``, of what ``kv_b_proj`` makes of latents for H heads."""
        config = self.config
        batch, _, cached, _ = kv.shape
        kv = kv.view(batch, cached, -1, config.qk_nope_head_dim + config.v_head_dim)
        k_nope, value = kv.transpose(1, 2).split([config.qk_nope_head_dim, config.v_head_dim], dim=-1)
        k_rope = k_rope_B1SR.to(k_nope.dtype).expand(-1, k_nope.shape[1], -1, -1)
        return torch.cat([k_nope, k_rope], dim=-1), value

    def attend_absorbed(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        joint_B1SW: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention over the latents themselves: ``[B, H, T, V]``, and the weights where there are any.

        All heads share one key of W = C + R values, which is its own value too: so heads become rows of one head's
        query, and the cache is read once for all of them.

        Args:
            q_nope: ``[B, H, T, N]``.
            q_rope: ``[B, H, T, R]``, rotated.
            joint_B1SW: latents and rotated keys side by side.
            attention_mask: ``[B or 1, H or 1, T or 1, S]``, bool or added to the scores; None: all attend to all.
        """
        config = self.config
        batch, heads, tokens, _ = q_nope.shape
        key_HNC, value_HVC = self.kv_weight(joint_B1SW).split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
        q_latent = torch.einsum("bhtn,hnc->bhtc", q_nope, key_HNC)
        query_BHTW = torch.cat([q_latent, q_rope], dim=-1)
        implementation = "eager" if config._attn_implementation == "eager" else "sdpa"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        settings = {**kwargs, "dropout": 0.0, "scaling": self.scaling, "is_causal": False}
        mask_BHTS = None if attention_mask is None else attention_mask.expand(-1, heads, tokens, -1)
        # with more than one token the mask is copied for every head
        rows = max(1, WORKSPACE // (batch * heads * joint_B1SW.shape[2] * query_BHTW.element_size()))
        outputs, weights = [], []
        for first in range(0, tokens, rows):
            query = query_BHTW[:, :, first : first + rows]
            mask = None if mask_BHTS is None else mask_BHTS[:, :, first : first + rows].flatten(1, 2).unsqueeze(1)
            output, weight = attend(self, query.flatten(1, 2).unsqueeze(1), joint_B1SW, joint_B1SW, mask, **settings)
            outputs.append(output.view(query.shape)[..., : config.kv_lora_rank])
            weights.append(None if weight is None else weight.view(*query.shape[:3], -1))
        latent_BHTC, weights_BHTS = outputs[0], weights[0]
        if len(outputs) > 1:
            latent_BHTC = torch.cat(outputs, dim=2)
            weights_BHTS = None if weights[0] is None else torch.cat(weights, dim=2)
        return torch.einsum("bhtc,hvc->bhtv", latent_BHTC, value_HVC), weights_BHTS

    def kv_weight(self, like: torch.Tensor) -> torch.Tensor:
        """The matrix of ``kv_b_proj``, ``[H, N + V, C]``; where it has to be made, in dtype and device of ``like``."""
        config, layer = self.config, self.kv_b_proj
        if type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and not layer.weight.is_meta:
            weight = layer.weight
        elif hasattr(layer, "dequantized"):
            weight = cast(Any, layer).dequantized(like.dtype)
        else:  # an adapter, or offloaded: what the module makes of the unit vectors is its matrix
            weight = layer(torch.eye(config.kv_lora_rank, dtype=like.dtype, device=like.device)).T
        return weight.reshape(-1, config.qk_nope_head_dim + config.v_head_dim, config.kv_lora_rank)


def products(config: AXK1Config, tokens: int, cached: int) -> tuple[int, int]:
    """Multiplications with which T tokens attend to S cached ones, expanded and absorbed, for a layer and a sequence.

    Expanded: S C (N + V) a head to make keys and values, T S (N + R) for the scores, T S V for the sum. Absorbed:
    T C N to bring the query to the latents, T S (C + R) for the scores and again for the sum, T C V to bring it back.
    """
    heads, rank, rope = config.num_attention_heads, config.kv_lora_rank, config.qk_rope_head_dim
    nope_and_value = config.qk_nope_head_dim + config.v_head_dim
    expanded = cached * rank * nope_and_value + tokens * cached * (nope_and_value + rope)
    absorbed = tokens * rank * nope_and_value + tokens * cached * 2 * (rank + rope)
    return heads * expanded, heads * absorbed


def absorbing_pays(config: AXK1Config, tokens: int, cached: int) -> bool:
    """Whether T tokens attend to S cached ones, themselves included, with fewer multiplications when absorbed.

    What expanded keys and values cost in memory traffic counts for absorbing too, and is left out. Tokens that attend
    to themselves alone expand: that is prefill, whose results stay those of transformers to the bit.
    """
    expanded, absorbed = products(config, tokens, cached)
    return tokens < cached and absorbed < expanded


def is_standard(config: AXK1Config) -> bool:
    """Whether the configured attention is one of transformers' ways to the ordinary result, so that steps may take
    another form; nobody's own function."""
    name = config._attn_implementation or ""
    return name in ("eager", "sdpa", "flex_attention") or name.startswith("flash_attention")


def softmax_scale(config: AXK1Config) -> float:
    """``qk_head_dim ** -0.5``, times YaRN's squared mscale where ``mscale_all_dim`` is not 0 (released: 0)."""
    rope = config.rope_parameters or {}
    scale, factor, all_dim = config.qk_head_dim**-0.5, rope.get("factor") or 1.0, rope.get("mscale_all_dim") or 0.0
    if rope.get("rope_type", "default") == "default" or not all_dim or factor <= 1:
        return scale
    return scale * (0.1 * all_dim * math.log(factor) + 1.0) ** 2
