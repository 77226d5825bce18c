"""The states of some texts on their way through the layers of a checkpoint, of which one is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from axk1.files import remove_unfinished, replacing
from axk1.layerwise.weights import EXPERTS, NORM, Weights, layer_name
from axk1.modeling.context import attention_context
from axk1.modeling.layer import AXK1DecoderLayer
from axk1.modeling.moe import AXK1MLP, AXK1MoE
from axk1.modeling.mtp import AXK1MTPLayer
from axk1.modeling.norm import AXK1RMSNorm
from axk1.modeling.rope import AXK1RotaryEmbedding

TOKENS = 2048
"""Tokens that a module is computed of at once: keys and values of K1 are 84 KB a token, expanded."""
DTYPE = torch.float32
Progress = Callable[[int, int], None]
"""Called with (parts of layers that are done, all): an attention is one, and so is an expert."""


@dataclass(frozen=True)
class Rows:
    """Packed rows of tokens, ``[S, T]`` int64 each; documents begin where positions are 0."""

    ids: torch.Tensor
    labels: torch.Tensor
    """The ids again, -100 where a token is not to be counted."""
    positions: torch.Tensor

    @classmethod
    def of(cls, packed: np.ndarray) -> Rows:
        """Of ``[S, 3, T]`` as packing makes them."""
        return cls(*torch.from_numpy(packed.astype(np.int64)).unbind(1))


class Compute:
    """Computes the modules of a layer; whoever inherits from it may change their weights on the way.

    Args:
        name: of the module, as in the released layout, experts by their numbers.
    """

    def attend(self, name: str, layer: AXK1DecoderLayer, some: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The first half of a layer; ``some`` computes it, ``[S, T, D]``."""
        return some()

    def linear(self, name: str, linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        """``[N, I]`` to ``[N, O]``."""
        return torch.cat([linear(some) for some in x.split(TOKENS)])

    def mlp(self, name: str, mlp: AXK1MLP, x: torch.Tensor) -> torch.Tensor:
        """``[N, D]`` to the same; N may be 0."""
        return torch.cat([mlp(some) for some in x.split(TOKENS)])


class Pass:
    """Takes ``rows`` through the layers of ``weights``.

    Args:
        folder: where the states are kept after each layer, so that a run that was cut off goes on; None: nowhere.

    Attributes:
        states: ``[S, T, D]`` in float32, what the next layer gets.
        reached: the number of that layer.
    """

    def __init__(
        self,
        weights: Weights,
        rows: Rows,
        compute: Compute,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.weights, self.rows, self.compute, self.folder = weights, rows, compute, folder
        self.config, self.progress = weights.config, progress
        self.rotary, self.reached = AXK1RotaryEmbedding(self.config), 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(folder)
            self.reached = max((int(path.suffix[1:]) for path in folder.glob("states.[0-9]*")), default=0)
        if folder is not None and self.reached:
            held = np.fromfile(folder / f"states.{self.reached}", np.float32)
            self.states = torch.from_numpy(held).view(*rows.ids.shape, self.config.hidden_size)
        else:
            self.states = weights.embedded(rows.ids, DTYPE)
        layers = range(self.config.num_hidden_layers + weights.mtp_layers)
        self._parts = [1 + (self.config.n_routed_experts if self.config.is_moe_layer(i) else 1) for i in layers]
        self._done = sum(self._parts[: self.reached])

    @torch.no_grad()
    def run(self, finished: Callable[[int], object] = lambda index: None) -> torch.Tensor:
        """All layers that are left; returns the states after the final norm, ``[S, T, D]``.

        Args:
            finished: called with the number of each layer once it is done, before its states are kept.
        """
        for index in range(self.reached, self.config.num_hidden_layers):
            self.states = self._through(index, self.states)
            finished(index)
            self._keep(index + 1)
        norm = AXK1RMSNorm(self.config.hidden_size, self.config.rms_norm_eps)
        self.weights.fill(norm, NORM, DTYPE)
        return norm(self.states)

    @torch.no_grad()
    def run_mtp(self, states: torch.Tensor, finished: Callable[[int], object] = lambda index: None) -> torch.Tensor:
        """The MTP modules, over what ``run`` returned: ``[S, T, D]``."""
        depth = self.config.num_hidden_layers
        for index in range(depth, depth + self.weights.mtp_layers):
            states = self._through(index, states)
            finished(index)
        return states

    def _through(self, index: int, states: torch.Tensor) -> torch.Tensor:
        """One layer, or one MTP module."""
        layer, name = self.weights.layer(index, DTYPE, without=(EXPERTS,)), layer_name(index)
        if isinstance(layer, AXK1MTPLayer):
            layer.eh_proj = cast(Any, _Flat(layer.eh_proj, f"{name}.eh_proj", self.compute.linear))
            ahead = index - self.config.num_hidden_layers + 1
            embeddings = F.pad(self.weights.embedded(self.rows.ids[:, ahead:], DTYPE), (0, 0, 0, ahead))
            states = layer.combine(states, embeddings)
        states = self.compute.attend(name, layer, lambda: self._attended(layer, states))
        self._advance()
        if layer.is_moe:
            moe = cast(AXK1MoE, layer.mlp)
            moe.experts = cast(Any, _Experts(self, index))
            if moe.shared_experts is not None:
                shared = _Flat(moe.shared_experts, f"{name}.mlp.shared_experts", self.compute.mlp)
                moe.shared_experts = cast(Any, shared)
        else:
            layer.mlp = cast(Any, _Flat(cast(nn.Module, layer.mlp), f"{name}.mlp", self.compute.mlp))
        states = layer.transform(states)
        if not layer.is_moe:
            self._advance()
        return layer.shared_head.norm(states) if isinstance(layer, AXK1MTPLayer) else states

    def _attended(self, layer: AXK1DecoderLayer, states: torch.Tensor) -> torch.Tensor:
        rows, attended = max(1, TOKENS // states.shape[1]), torch.empty_like(states)
        for start in range(0, len(states), rows):
            some = slice(start, start + rows)
            context = attention_context(
                self.config, self.rotary, states[some], None, self.rows.positions[some], None, training=True
            )
            attended[some] = layer.attend(states[some], **context)
        return attended

    def _keep(self, reached: int) -> None:
        self.reached = reached
        if self.folder is None:
            return
        with replacing(self.folder / f"states.{reached}") as stream:
            stream.write(self.states.contiguous().view(torch.uint8).numpy().data)
        for path in self.folder.glob("states.[0-9]*"):
            if path.suffix != f".{reached}":
                path.unlink()

    def _advance(self) -> None:
        self._done += 1
        if self.progress:
            self.progress(self._done, sum(self._parts))


class _Flat(nn.Module):
    """A module whose tokens are computed by ``compute``, in one dimension."""

    def __init__(self, module: nn.Module, name: str, compute: Callable[[str, Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.module, self.name, self.compute = module, name, compute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.compute(self.name, self.module, x.flatten(0, -2)).view(*x.shape[:-1], -1)


class _Experts(nn.Module):
    """The routed experts of a layer, each read once, in order, those included that no token chose."""

    def __init__(self, owner: Pass, index: int) -> None:
        super().__init__()
        self.owner, self.index = [owner], index

    def forward(self, hidden_states: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """``[T, D]`` with the routing ``[T, K]`` to ``[T, D]``."""
        (owner,), total = self.owner, torch.zeros_like(hidden_states)
        for expert in range(owner.config.n_routed_experts):
            tokens, slots = (indices == expert).nonzero(as_tuple=True)
            name = f"{layer_name(self.index)}.{EXPERTS}.{expert}"
            made = owner.compute.mlp(name, owner.weights.expert(self.index, expert, DTYPE), hidden_states[tokens])
            total.index_add_(0, tokens, made * weights[tokens, slots].unsqueeze(-1))
            owner._advance()
        return total
