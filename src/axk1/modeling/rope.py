"""Rotary position embedding of A.X K1: interleaved pairs, plain or YaRN (arXiv 2309.00071)."""

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from axk1.config import AXK1Config


class AXK1RotaryEmbedding(nn.Module):
    """Angles for positions. YaRN's frequencies and its factor on cos/sin come from transformers' rope table."""

    inv_freq: torch.Tensor
    original_inv_freq: torch.Tensor

    def __init__(self, config: AXK1Config) -> None:
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]  # pyright: ignore[reportOptionalSubscript]
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.rope_init_fn = (
            self.compute_default_rope_parameters if self.rope_type == "default" else ROPE_INIT_FUNCTIONS[self.rope_type]
        )
        inv_freq, self.attention_scaling = self.rope_init_fn(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(
        config: AXK1Config, device: torch.device | None = None, seq_len: int | None = None
    ) -> tuple[torch.Tensor, float]:
        """Frequencies ``theta^(-2i/d)`` ``[qk_rope_head_dim / 2]``; the factor on cos/sin is 1."""
        exponents = torch.arange(0, config.qk_rope_head_dim, 2, dtype=torch.float, device=device)
        theta = config.rope_parameters["rope_theta"]  # pyright: ignore[reportOptionalSubscript]
        return 1.0 / theta ** (exponents / config.qk_rope_head_dim), 1.0

    @property
    def changes_with_length(self) -> bool:
        """Whether asking for angles may change the frequencies, which then depend on the longest position so far."""
        return self.rope_type in ("dynamic", "longrope")

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin ``[batch, tokens, qk_rope_head_dim / 2]`` of ``position_ids`` ``[batch, tokens]``, as ``x``."""
        angles = position_ids[..., None].float() * self.inv_freq.float().to(x.device)
        return (angles.cos() * self.attention_scaling).to(x.dtype), (angles.sin() * self.attention_scaling).to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleave: bool = True) -> torch.Tensor:
    """Rotates the last dimension of ``x`` ``[batch, heads, tokens, d]`` by ``cos``/``sin`` ``[batch, tokens, d / 2]``.

    ``interleave`` takes the pairs (0, 1), (2, 3), ... as the released weights need; otherwise (i, i + d/2). The result
    holds the first members of all pairs, then the second: queries and keys are permuted alike, so scores are unchanged.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    # contiguous: every element is read four times below, and every other one is slow to read
    first, second = (x[..., 0::2].contiguous(), x[..., 1::2].contiguous()) if interleave else x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
