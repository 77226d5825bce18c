"""bfloat16 weights in twelve bits a value, without loss: a quarter less to keep in memory, and to read for every token.

Of the eight bits of a bfloat16's exponent trained weights use few: nearly every 64 neighbours lie within sixteen powers
of two. So a block of 64 keeps its largest exponent and four bits a value for the distance to it; the few blocks that
reach further are kept as they are. Compiled steps (``axk1.kernels``) unpack in registers; in plain PyTorch a matrix is
unpacked as it is used. In memory only: files stay as they are. Shapes: E experts, O outputs, I inputs, N raw blocks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from axk1.kernels import native
from axk1.kernels.conditions import is_hooked
from axk1.modeling.moe import AXK1Experts, one_by_one
from axk1.quantized.modules import restore_modules

BLOCK = 64
"""Values with one largest exponent; the rows of a matrix are a multiple of it."""
_BYTES = 96  # of a block: mantissas and signs, then distances
_WIDEST = 15  # distance to the largest exponent
_ROWS = 1 << 14  # blocks worked on at once: 32-bit copies of them stay small


class Packed(NamedTuple):
    """A matrix, or a stack of them."""

    values: torch.Tensor
    """uint8 ``[..., O, 3 I / 2]``: for each block 64 bytes, mantissa and below it the sign of each value, then 32
    bytes, the distances of values i (low half) and 32 + i."""
    side: torch.Tensor
    """uint8: the largest exponent of each block, 0 for a raw one; the first raw block of each row, int32; the raw
    blocks. Each part begins at a multiple of 64 bytes."""


def can_pack(weight: torch.Tensor) -> bool:
    """Whether ``weight`` ``[..., O, I]`` has a type and a width that are packed."""
    return weight.dtype == torch.bfloat16 and weight.is_cpu and weight.shape[-1] % BLOCK == 0


def pack(weight: torch.Tensor) -> Packed:
    """bfloat16 ``[..., O, I]``, packed.

    Raises:
        ValueError: another type or device, or I is not a multiple of 64.
    """
    if not can_pack(weight):
        kind = f"{weight.dtype} {list(weight.shape)} on {weight.device}"
        raise ValueError(f"A weight is {kind}; packed are bfloat16 ones on the CPU whose rows are a multiple of 64.")
    if native.available():
        return Packed(*native.pack_lossless(weight.detach()))
    return pack_plainly(weight.detach())


def pack_plainly(weight: torch.Tensor) -> Packed:
    """The same in PyTorch's operators."""
    blocks = weight.reshape(-1, BLOCK)
    values = torch.empty(len(blocks), _BYTES, dtype=torch.uint8)
    largest = torch.empty(len(blocks), dtype=torch.uint8)
    for some, packed, tops in zip(blocks.split(_ROWS), values.split(_ROWS), largest.split(_ROWS), strict=True):
        bits = some.view(torch.int16).int() & 0xFFFF
        exponents = bits >> 7 & 255
        top = exponents.amax(-1, keepdim=True)
        distances = top - exponents
        packed[:, :BLOCK] = bits << 1 & 255 | bits >> 15
        packed[:, BLOCK:] = (distances[:, :32] | distances[:, 32:] << 4) & 255
        tops[:] = torch.where(distances.amax(-1) <= _WIDEST, top[:, 0], 0)
    raw = largest == 0
    values[raw] = 0  # never read, and the same on every machine
    counts = raw.view(-1, weight.shape[-1] // BLOCK).sum(-1)
    starts = (counts.cumsum(0) - counts).int()
    side = torch.cat([_padded(largest), _padded(starts), _padded(blocks[raw])])
    return Packed(values.view(*weight.shape[:-1], -1), side)


def unpack(packed: Packed, first: int = 0, count: int | None = None) -> torch.Tensor:
    """bfloat16 ``[rows, I]``: ``count`` rows of the matrix or stack from ``first`` on, all by default."""
    width = packed.values.shape[-1] // _BYTES  # blocks of a row
    rows = packed.values.numel() // packed.values.shape[-1]
    chosen = slice(first, rows if count is None else first + count)
    largest, starts, raw = _parts(packed.side, rows, width)
    blocks = packed.values.view(rows, width, _BYTES)[chosen].reshape(-1, _BYTES).int()
    tops = largest.view(rows, width)[chosen].reshape(-1)
    distances = torch.cat([blocks[:, BLOCK:] & 15, blocks[:, BLOCK:] >> 4], dim=-1)
    signed = blocks[:, :BLOCK]
    bits = (tops[:, None].int() - distances) << 7 | signed >> 1 | (signed & 1) << 15
    found = bits.to(torch.int16).view(torch.bfloat16)
    wide = tops == 0
    if wide.any():
        start = int(starts[first])
        found[wide] = raw[start : start + int(wide.sum())]
    return found.view(-1, width * BLOCK)


class PackedLinear(nn.Module):
    """``x W^T + b`` with a packed W ``[O, I]``; buffers ``values`` and ``side`` as in :class:`Packed`."""

    values: torch.Tensor
    side: torch.Tensor
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        for name, tensor in pack(linear.weight)._asdict().items():
            self.register_buffer(name, tensor)
        self.register_parameter("bias", linear.bias)

    def dequantized(self, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """The matrix ``[O, I]`` that this module multiplies by."""
        return unpack(Packed(self.values, self.side)).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., I]`` to ``[..., O]``."""
        return F.linear(x, self.dequantized(x.dtype), self.bias)


class PackedExperts(nn.Module):
    """All routed experts, ``AXK1Experts``'s two stacks packed; buffers ``gate_up_values``, ``gate_up_side``,
    ``down_values`` and ``down_side``."""

    gate_up_values: torch.Tensor
    gate_up_side: torch.Tensor
    down_values: torch.Tensor
    down_side: torch.Tensor

    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.num_experts, self.act_fn = experts.num_experts, experts.act_fn
        for stack in ("gate_up", "down"):
            for name, tensor in pack(getattr(experts, f"{stack}_proj"))._asdict().items():
                self.register_buffer(f"{stack}_{name}", tensor)

    @property
    def gate_up(self) -> Packed:
        """``[E, 2F, D]``, packed."""
        return Packed(self.gate_up_values, self.gate_up_side)

    @property
    def down(self) -> Packed:
        """``[E, D, F]``, packed."""
        return Packed(self.down_values, self.down_side)

    def forward(self, hidden_states: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """``[T, D]`` with the routing ``[T, K]`` to ``[T, D]``: the weighted sum over each token's experts."""

        def run(tokens: torch.Tensor, expert: int) -> torch.Tensor:
            if not len(tokens):  # its weights are not unpacked for nothing
                return tokens
            gate, up = F.linear(tokens, self._matrix(self.gate_up, expert, tokens.dtype)).chunk(2, dim=-1)
            return F.linear(self.act_fn(gate) * up, self._matrix(self.down, expert, tokens.dtype))

        return one_by_one(hidden_states, indices, weights, self.num_experts, run)

    def dequantized(self, matrix: str, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """The stack ``gate_up_proj`` ``[E, 2F, D]`` or ``down_proj`` ``[E, D, F]`` that this module multiplies by."""
        stack = {"gate_up_proj": self.gate_up, "down_proj": self.down}[matrix]
        return unpack(stack).view(*stack.values.shape[:-1], -1).to(dtype)

    @staticmethod
    def _matrix(stack: Packed, expert: int, dtype: torch.dtype) -> torch.Tensor:
        rows = stack.values.shape[1]
        return unpack(stack, expert * rows, rows).to(dtype)


def pack_weights(model: nn.Module) -> int:
    """Packs what a decode step reads in rows, one module after the other, in place; returns how many bytes that freed.

    These are the experts and the linear layers of all decoder layers and MTP modules. Adapted and hooked modules stay,
    and so does what :func:`can_pack` refuses.
    """
    freed = 0
    for name, module in list(model.named_modules()):
        if ".layers." not in f".{name}" or is_hooked(module):
            continue
        weights = list(module.parameters(recurse=False))
        if type(module) not in (nn.Linear, AXK1Experts) or not all(can_pack(weight) for weight in weights):
            continue
        packed = PackedLinear(module) if isinstance(module, nn.Linear) else PackedExperts(module)
        freed += sum(weight.nbytes for weight in weights) - sum(buffer.nbytes for buffer in packed.buffers())
        model.set_submodule(name, packed.train(module.training))
    return freed


def unpack_weights(model: nn.Module) -> None:
    """Puts ``nn.Linear`` and ``AXK1Experts`` with the same weights back."""
    restore_modules(model, torch.bfloat16, PackedLinear, PackedExperts)


def is_packed(model: nn.Module) -> bool:
    """Whether any of its weights are."""
    return any(isinstance(module, (PackedLinear, PackedExperts)) for module in model.modules())


def _padded(part: torch.Tensor) -> torch.Tensor:
    """The bytes of ``part``, and zeros up to a multiple of 64."""
    held = part.reshape(-1).view(torch.uint8)
    return F.pad(held, (0, -len(held) % 64))


def _parts(side: torch.Tensor, rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Largest exponents ``[rows * width]``, first raw blocks ``[rows]`` and raw blocks bfloat16 ``[N, 64]``."""
    second = rows * width + -(rows * width) % 64
    third = second + rows * 4 + -(rows * 4) % 64
    starts = side[second : second + 4 * rows].view(torch.int32)
    return side[: rows * width], starts, side[third:].view(torch.bfloat16).view(-1, BLOCK)
