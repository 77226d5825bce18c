"""What all layers of one call share: positions, the form of attention, mask and rotary angles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask

from axk1.config import AXK1Config
from axk1.modeling.attention import absorbing_pays, is_standard
from axk1.modeling.rope import AXK1RotaryEmbedding


def next_positions(inputs: torch.Tensor, cache: Cache | None, layer_idx: int = 0) -> torch.Tensor:
    """Positions ``[1, tokens]`` of ``inputs`` ``[batch, tokens, ...]`` behind what layer ``layer_idx`` has cached."""
    seen = cache.get_seq_length(layer_idx) if cache is not None else 0
    return (torch.arange(inputs.shape[1], device=inputs.device) + seen).unsqueeze(0)


def check_shapes(inputs: torch.Tensor, position_ids: torch.Tensor, hidden_size: int) -> None:
    """Refuses what does not fit together, before anything is cached.

    Raises:
        ValueError: ``inputs`` are not ``[batch, tokens, hidden_size]`` with a token at least, or ``position_ids`` not
            ``[1 or batch, tokens]``.
    """
    if inputs.dim() != 3 or inputs.shape[-1] != hidden_size or not inputs.shape[1]:
        raise ValueError(
            f"The embeddings have the shape {list(inputs.shape)}; [batch, tokens, hidden_size={hidden_size}] with at "
            "least one token is needed."
        )
    if position_ids.dim() != 2 or position_ids.shape[1] != inputs.shape[1]:
        raise ValueError(
            f"position_ids have the shape {list(position_ids.shape)}; give [1 or batch, tokens], one for each of the "
            f"{inputs.shape[1]} tokens."
        )


@dataclass
class MaskConfig:
    """As much of a configuration as transformers reads to make a mask, for the attention that absorbed steps use."""

    is_causal: bool
    _attn_implementation: str = "sdpa"


def attention_context(
    config: AXK1Config,
    rotary_emb: AXK1RotaryEmbedding,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor,
    cache: Cache | None,
    layer_idx: int | None = None,
    training: bool = False,
) -> dict[str, Any]:
    """Arguments of every layer of a call, except its states and the cache.

    Args:
        inputs_embeds: ``[batch, tokens, hidden]``.
        attention_mask: ``[batch, columns]``, 0 at padding; or what transformers takes beside that.
        position_ids: ``[1 or batch, tokens]``.
        cache: tells how many columns the tokens attend to. Given, ``position_ids`` separate no documents.
        layer_idx: the layer whose cache counts, where not all are equally long.
        training: attention is expanded, as it is wherever gradients are recorded.
    """
    tokens, absorb = inputs_embeds.shape[1], False
    if cache is not None and is_standard(config) and not training and not torch.is_grad_enabled():
        columns, _ = cache.get_mask_sizes(tokens, layer_idx or 0)
        absorb = absorbing_pays(config, tokens, columns)
    # absorbed heads are rows of one query, which masks of other kinds cannot express
    borrowed = absorb and config._attn_implementation not in ("eager", "sdpa")
    mask = create_causal_mask(
        MaskConfig(getattr(config, "is_causal", True)) if borrowed else config,  # pyright: ignore
        inputs_embeds,
        attention_mask,
        cache,
        position_ids,
        layer_idx=layer_idx,
        allow_is_causal_skip=not borrowed,
    )
    return {
        "absorb": absorb and (mask is not None or tokens == 1),
        "attention_mask": mask,
        "position_embeddings": rotary_emb(inputs_embeds, position_ids),
        "position_ids": position_ids,
    }


def repeated_context(
    context: dict[str, Any], inputs: torch.Tensor, rotary_emb: AXK1RotaryEmbedding, repeats: int
) -> dict[str, Any]:
    """The context of an MTP module that runs on its own states, for the ``repeats``-th time, over whole sequences.

    What position i makes then stands for a draft ``repeats`` tokens on: it is rotated there, and attends to what i
    attended to in the first pass, and to what i itself made in those since.

    Args:
        context: of the first pass, with a mask ``[B or 1, H or 1, T, T]``, bool or added to the scores, or none.
        inputs: ``[B, T, hidden]``; for device and dtype.

    Returns:
        A context for T tokens, and keys of all passes in turn, ``(repeats + 1) T``.
    """
    mask, position_ids, tokens = context["attention_mask"], context["position_ids"] + repeats, inputs.shape[1]
    if mask is None:
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=inputs.device).tril()
    itself = torch.eye(tokens, dtype=torch.bool, device=inputs.device)
    if mask.dtype != torch.bool:
        itself = torch.zeros_like(itself, dtype=mask.dtype).masked_fill(~itself, torch.finfo(mask.dtype).min)
    own = itself.expand(*mask.shape[:2], tokens, tokens)
    return {
        **context,
        "attention_mask": torch.cat([mask] + [own] * repeats, dim=-1),
        "position_embeddings": rotary_emb(inputs, position_ids),
        "position_ids": position_ids,
    }
