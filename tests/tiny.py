"""Random tiny models of the architecture: shapes drawn from lists, weights large enough that every part matters."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from axk1 import AXK1Config, AXK1ForCausalLM, modeling

VOCAB = 61
PAD, BOS = 0, 1

# (routed experts, groups, groups kept, experts a token)
ROUTINGS = [(8, 4, 2, 3), (8, 2, 1, 2), (12, 3, 2, 4), (6, 1, 1, 2), (16, 4, 3, 1), (8, 4, 4, 8)]
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.0,
}
ROPES = [
    YARN,
    {**YARN, "mscale": 0.7, "mscale_all_dim": 0.5, "factor": 2.0},
    {"rope_type": "default", "rope_theta": 500.0},
    {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0},
]
LAYERS = [
    ["dense", "sparse"],
    ["dense", "sparse", "sparse"],
    ["sparse", "sparse"],
    ["dense", "dense", "sparse"],
    ["sparse", "dense", "sparse"],
]


def draw_fields(choose: Callable[[list[Any]], Any]) -> dict[str, Any]:
    """Keyword arguments of a tiny configuration; ``choose`` takes one of a list."""
    experts, groups, kept, chosen = choose(ROUTINGS)
    layers = choose(LAYERS)
    return dict(
        vocab_size=VOCAB,
        hidden_size=choose([24, 32]),
        intermediate_size=choose([40, 48]),
        moe_intermediate_size=choose([8, 16]),
        num_hidden_layers=len(layers),
        mlp_layer_types=list(layers),
        num_attention_heads=choose([1, 2, 4]),
        n_shared_experts=choose([1, 2]),
        n_routed_experts=experts,
        n_group=groups,
        topk_group=kept,
        num_experts_per_tok=chosen,
        norm_topk_prob=choose([True, False]),
        routed_scaling_factor=choose([1.0, 2.5]),
        q_lora_rank=choose([8, 20]),
        kv_lora_rank=choose([12, 16]),
        qk_nope_head_dim=choose([4, 8]),
        qk_rope_head_dim=choose([4, 8]),
        v_head_dim=choose([6, 8]),
        max_position_embeddings=64,
        rope_parameters=dict(choose(ROPES)),
        rope_interleave=choose([True, False]),
        attention_bias=choose([False, True]),
        initializer_range=0.2,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=None,
    )


def random_fields(seed: int, **overrides: Any) -> dict[str, Any]:
    """The same fields for the same seed."""
    return {**draw_fields(random.Random(seed).choice), **overrides}


@st.composite
def tiny_fields(draw: st.DrawFn, **overrides: Any) -> dict[str, Any]:
    """Hypothesis strategy of the same fields."""
    return {**draw_fields(lambda options: draw(st.sampled_from(options))), **overrides}


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Gives norms, biases and the router's correction bias values that a wrong use of them would show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                centre = 1.0 if "norm" in name else 0.0
                parameter.copy_(centre + 0.5 * (torch.rand(parameter.shape, generator=generator) - 0.5))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.6 * (torch.rand(buffer.shape, generator=generator) - 0.5))


def build(
    fields: dict[str, Any], seed: int = 0, cls: type[modeling.AXK1PreTrainedModel] = AXK1ForCausalLM, **overrides: Any
) -> Any:
    """A randomised model in eval mode."""
    torch.manual_seed(seed)
    model = cls(AXK1Config(**{**fields, **overrides}))
    randomise(model, seed)
    return model.eval()


def small_model(seed: int = 0, cls: type[modeling.AXK1PreTrainedModel] = AXK1ForCausalLM, **overrides: Any) -> Any:
    """One fixed shape (a dense and two MoE layers, YaRN) for tests that do not need many."""
    shape = dict(
        mlp_layer_types=list(LAYERS[1]),
        num_hidden_layers=3,
        n_routed_experts=8,
        n_group=4,
        topk_group=2,
        num_experts_per_tok=3,
        num_attention_heads=2,
        n_shared_experts=1,
        hidden_size=32,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        rope_parameters=dict(YARN),
        rope_interleave=True,
        attention_bias=False,
    )
    return build(random_fields(0, **shape), seed, cls, **overrides)


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """``[batch, length]`` ids without pad and begin tokens."""
    return torch.randint(2, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def pad_rows(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows ``[length]`` of any length, padded on one side: ids and attention mask ``[batch, longest]``."""
    longest = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), longest), PAD), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), None) if side == "left" else slice(len(row))
        ids[i, where], mask[i, where] = row, 1
    return ids, mask


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Position ids of padded rows, counted from the first real token."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def pack_rows(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows behind each other in one row of ids, and position ids that restart, both ``[1, total]``."""
    return torch.cat(rows)[None], torch.cat([torch.arange(len(row)) for row in rows])[None]
