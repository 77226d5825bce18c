"""Compiled decoders plug in here: whole decoder layers over some tokens, in one call instead of one a module.

A runner belongs to a device type. ``AXK1Model`` asks it before every step that it could take, and runs the modules
itself where there is no runner or it declines. Both ways give the same states: a runner changes nothing but speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn
from transformers.cache_utils import Cache

from axk1.modeling.cache import LatentCache
from axk1.modeling.conditions import is_hooked, is_inference

if TYPE_CHECKING:
    from axk1.modeling.layer import AXK1DecoderLayer
    from axk1.modeling.norm import AXK1RMSNorm
    from axk1.modeling.trunk import AXK1Model


class Runner(Protocol):
    """Runs a device's steps.

    It declines, with None, whatever it cannot reproduce: adapters, offloaded weights, hooks on modules inside a layer.
    """

    def layers(
        self,
        model: AXK1Model,
        layers: Sequence[AXK1DecoderLayer],
        norm: AXK1RMSNorm,
        hidden_states: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: LatentCache,
    ) -> torch.Tensor | None:
        """States behind the last of ``layers`` and ``norm``, ``[B, T, hidden]``; or None, the cache untouched.

        Args:
            model: the trunk that ``layers`` belong to.
            layers: each runs as :class:`AXK1DecoderLayer` does (of an MTP module: its block alone). Their caches are
                ``cache.layers[layer.self_attn.layer_idx]``, all S - T tokens long; each gains T.
            norm: the RMSNorm that follows the last layer.
            hidden_states: ``[B, T, hidden]``: one token, a few to verify, or a prompt; not to be written.
            position_ids: ``[1, T]`` or ``[B, T]`` int64, for the rotation. A token attends by column: to all before
                it and itself.
            attention_mask: ``[B, S]`` of any dtype, 0 where a column is not attended to; None for all.
            cache: holds B rows, or none yet.
        """
        ...

    def linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
        """``[..., I]``, a few rows, times the transposed ``[O, I]``, to x's dtype."""
        ...


RUNNERS: dict[str, Runner] = {}
"""By ``torch.device.type``."""


def run_compiled(
    model: AXK1Model,
    layers: Sequence[AXK1DecoderLayer],
    norm: AXK1RMSNorm,
    hidden_states: torch.Tensor,
    position_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Cache | None,
) -> torch.Tensor | None:
    """What the device's runner makes of this step, or None where the modules have to run."""
    runner = RUNNERS.get(hidden_states.device.type)
    if runner is None or not isinstance(cache, LatentCache) or not hidden_states.shape[1]:
        return None
    if model.training or not is_inference():
        return None
    if attention_mask is not None:
        seen = cache.get_seq_length(layers[0].self_attn.layer_idx)
        if attention_mask.shape != (hidden_states.shape[0], seen + hidden_states.shape[1]):
            return None
    return runner.layers(model, layers, norm, hidden_states, position_ids, attention_mask, cache)


def project(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """``linear(x)`` of a decode step, by the device's runner where it can stand in for the module."""
    runner = RUNNERS.get(x.device.type)
    plain = type(linear) is nn.Linear and linear.bias is None and not is_hooked(linear)
    if runner is None or not plain or not is_inference():
        return linear(x)
    result = runner.linear(x, linear.weight)
    return linear(x) if result is None else result
