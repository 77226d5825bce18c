"""Compiled decoders plug in here: whole decoder layers over some tokens, in one call instead of one a module.

A runner belongs to a device type. ``AXK1Model`` asks it before every step that it could take, and runs the modules
itself where there is no runner or it declines. Both ways give the same states: a runner changes nothing but speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import nn
from transformers.cache_utils import Cache

from axk1.modeling.cache import LatentCache
from axk1.modeling.conditions import is_hooked, is_inference

if TYPE_CHECKING:
    from axk1.modeling.causal_lm import AXK1ForCausalLM
    from axk1.modeling.layer import AXK1DecoderLayer
    from axk1.modeling.norm import AXK1RMSNorm
    from axk1.modeling.trunk import AXK1Model


class Step(NamedTuple):
    """What T new columns of B rows were made into; logits of the last ``keep`` of them."""

    states: torch.Tensor
    """``[B, T, hidden]``, after the norm; unless the ``whole`` is wanted, of the last ``keep`` columns only."""
    logits: torch.Tensor
    """``[B, keep, V]`` float32, rounded as the states' dtype is."""
    best: torch.Tensor
    """``[B, keep]`` int64: the most probable tokens, of equal ones the first."""


class Decoder(Protocol):
    """Whole steps of one generation behind a cache: embedding, layers, norm and head.

    All methods decline a step with None before they have touched the cache; a step that is taken grows it by T. Of
    columns whose states nobody wants, the last layer makes nothing but what it caches.
    """

    exact: bool
    """Whether a row's bits depend neither on its neighbours nor on how many of its tokens are run at once."""

    def step(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, keep: int, whole: bool = True
    ) -> Step | None:
        """The trunk over ids ``[B, T]`` at positions ``[B or 1, T]``; mask ``[B, S]``, 0 where nothing is attended."""
        ...

    def draft(
        self,
        hidden: torch.Tensor,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        keep: int,
        whole: bool = True,
    ) -> Step | None:
        """The first MTP module over post-norm states ``[B, T, D]`` at ``positions`` and the tokens after them; logits
        by :func:`axk1.kernels.draft_head.draft_head` where there is one."""
        ...

    def speculate(
        self,
        waiting: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        newest: torch.Tensor,
        positions: torch.Tensor,
        count: int,
    ) -> tuple[torch.Tensor, Step] | None:
        """A greedy step with drafts, where nothing is masked: the MTP module over ``waiting`` (states, ids, positions:
        as in ``draft``), its ``count`` most probable tokens one behind the other, and the trunk over ``newest``
        ``[B, 1]`` and these at ``positions`` ``[1 or B, count + 1]``, logits of all.

        Returns:
            The trunk's ids ``[B, count + 1]``, and what it made of them. The module's cache grows by what waited.
        """
        ...


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

    def decoder(self, model: AXK1ForCausalLM, cache: LatentCache) -> Decoder | None:
        """Whole steps of ``model`` behind ``cache``."""
        ...

    def pack(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The parts of :class:`axk1.quantized.lossless.Packed`, if steps read weights in that form."""
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


def decoder_for(model: AXK1ForCausalLM, cache: LatentCache) -> Decoder | None:
    """Whole steps by the device's runner; None where there is none, or the model is being trained or compiled."""
    runner = RUNNERS.get(model.device.type)
    if runner is None or model.training or not is_inference():
        return None
    return runner.decoder(model, cache)
