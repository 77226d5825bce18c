"""The number formats: rounding to int8, int4, int3 and fp8, packing, and back.

All are symmetric: a weight is its stored value times a scale. Shapes: O outputs, I inputs, G inputs that share a scale,
B = 128 rows and columns of a block; ``/`` rounds up where a matrix ends within a block. A scale is rounded to bfloat16
before the weights are, so that storing it in bfloat16 loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from axk1.quantized.plan import BLOCK, FP8, Scheme

LARGEST = {"int8": 127.0, "int4": 7.0, "int3": 3.0, **dict.fromkeys(FP8, torch.finfo(torch.float8_e4m3fn).max)}
"""The stored value that the largest weight of a row, group or block gets (int4 reaches to -8 on the other side, int3 to
-4)."""
CLIPS = {
    "int4": (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7),
    "int3": tuple(sign * share for share in (1.0, 0.85, 0.75, 0.68, 0.6) for sign in (1, -1)),
}
"""Each group is tried with its largest weight clipped to these shares; the one of least squared error stays. A negative
one makes a negative scale: with so few values it matters on which side of zero there is one more."""
_AT_ONCE = 1 << 22  # values worked on at once: a matrix of K1 in fp32, seven times over, would be 3.7 GB


class Quantized(NamedTuple):
    """A matrix in a format of this module."""

    values: torch.Tensor
    """int8 ``[..., O, I]``, float8_e4m3fn ``[..., O, I]``, int4 packed into int32 ``[..., O, I / 8]``, or int3
    packed into uint8 ``[..., O, 3 I / 8]``."""
    scale: torch.Tensor
    """float32 ``[..., O, 1]``, int4 and int3 ``[..., O, I / G]``, fp8 in blocks ``[..., O / B, I / B]``."""


Rounder = Callable[[torch.Tensor, Scheme], tuple[Quantized, tuple[float, float]]]
"""Rounds a matrix; returns the sums of the squared errors and of the squared weights with it."""


def quantize(weight: torch.Tensor, scheme: Scheme) -> Quantized:
    """Rounds ``weight`` ``[O, I]``, any float type, to ``scheme``; rows at a time, so that little memory is needed.

    Raises:
        ValueError: the weight is not finite.
    """
    parts = [_quantize(part.float(), scheme) for part in weight.split(_rows_at_once(weight))]
    return Quantized(torch.cat([part.values for part in parts]), torch.cat([part.scale for part in parts]))


def dequantize(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """``[..., O, I]`` of what :class:`Quantized` holds: multiplied in float32, rounded to ``dtype`` once."""
    unpack = {torch.int32: unpack_int4, torch.uint8: unpack_int3}.get(values.dtype)
    numbers = unpack(values) if unpack else values
    shared = (BLOCK, BLOCK) if _is_in_blocks(values, scale) else (1, numbers.shape[-1] // scale.shape[-1])
    grouped = _grouped(numbers.float(), *shared)
    return _whole(grouped * scale.float().unsqueeze(-1).unsqueeze(-3), numbers.shape).to(dtype)


def squares(weight: torch.Tensor, quantized: Quantized) -> tuple[float, float]:
    """The sums of the squared errors of ``quantized`` and of the squared values of ``weight`` ``[O, I]``."""
    rows = _rows_at_once(weight)
    scales = quantized.scale.split(rows // BLOCK if _is_in_blocks(*quantized) else rows)
    error = size = 0.0
    for part, values, scale in zip(weight.split(rows), quantized.values.split(rows), scales, strict=True):
        exact = part.float()
        error += (dequantize(values, scale) - exact).square().sum(dtype=torch.float64).item()
        size += exact.square().sum(dtype=torch.float64).item()
    return error, size


def rounded(weight: torch.Tensor, scheme: Scheme) -> tuple[Quantized, tuple[float, float]]:
    """:func:`quantize` and :func:`squares`: what :mod:`axk1.kernels.rounding` does in less time."""
    quantized = quantize(weight, scheme)
    return quantized, squares(weight, quantized)


def pack_int4(values: torch.Tensor) -> torch.Tensor:
    """Whole numbers from -8 to 7 ``[..., I]`` to int32 ``[..., I / 8]``: value + 8 in four bits, the first lowest."""
    nibbles = (values.to(torch.int16) + 8).to(torch.uint8)
    return (nibbles[..., ::2] | nibbles[..., 1::2] << 4).view(torch.int32)


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """int32 ``[..., I / 8]`` to int8 ``[..., I]``."""
    pairs = packed.contiguous().view(torch.uint8)
    return torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(-2).to(torch.int8) - 8


def pack_int3(values: torch.Tensor) -> torch.Tensor:
    """Whole numbers from -4 to 3 ``[..., I]``, I a multiple of 32, to uint8 ``[..., 3 I / 8]``.

    Of each 32 values, plus 4, come the lower two bits, eight bytes: of value ``8 j + i`` in byte i, from bit 2 j on;
    then the upper bits, four bytes: of value ``8 j + i`` in byte j, bit i.
    """
    octets = (values.to(torch.int16) + 4).to(torch.uint8).unflatten(-1, (-1, 4, 8))
    shifts, bits = _places(values)
    twos, ones = (octets & 3) << shifts, (octets >> 2) << bits
    return torch.cat([twos.sum(-2, dtype=torch.uint8), ones.sum(-1, dtype=torch.uint8)], dim=-1).flatten(-2)


def unpack_int3(packed: torch.Tensor) -> torch.Tensor:
    """uint8 ``[..., 3 I / 8]`` to int8 ``[..., I]``."""
    twos, ones = packed.unflatten(-1, (-1, 12)).split([8, 4], dim=-1)
    shifts, bits = _places(packed)
    octets = (twos.unsqueeze(-2) >> shifts & 3) | (ones.unsqueeze(-1) >> bits & 1) << 2
    return octets.flatten(-3).to(torch.int8) - 4


def _places(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """From which bit on the lower two bits of four values stand in a byte, and the upper one of eight."""
    eight = torch.arange(8, dtype=torch.uint8, device=like.device)
    return 2 * eight[:4].unsqueeze(-1), eight


def stored_scale(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``scale`` as a file of ``dtype`` weights holds it: in that type, unless it would change."""
    narrow = scale.to(dtype)
    return narrow if torch.equal(narrow.to(scale.dtype), scale) else scale


def _rows_at_once(weight: torch.Tensor) -> int:
    """A multiple of ``BLOCK``, so that no block is split."""
    return max(1, _AT_ONCE // weight.shape[-1] // BLOCK) * BLOCK


def _is_in_blocks(values: torch.Tensor, scale: torch.Tensor) -> bool:
    """Whether scales are those of blocks; that of a single row and a single block is both."""
    return values.dtype is torch.float8_e4m3fn and scale.shape[-2:] != (values.shape[-2], 1)


def _grouped(matrix: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """``[..., O, I]`` to ``[..., O / rows, rows, I / columns, columns]``; zeros where a matrix ends within a block."""
    missing = (-matrix.shape[-1] % columns, -matrix.shape[-2] % rows)
    padded = F.pad(matrix, (0, missing[0], 0, missing[1])) if any(missing) else matrix
    return padded.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))


def _whole(grouped: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The reverse, of a matrix of this shape."""
    padded = grouped.flatten(-2).flatten(-3, -2)
    return padded[..., : shape[-2], : shape[-1]].contiguous()


def _quantize(weight: torch.Tensor, scheme: Scheme) -> Quantized:
    grouped = _grouped(weight, BLOCK if scheme.in_blocks else 1, scheme.columns or weight.shape[-1])
    largest = grouped.abs().amax((-3, -1), keepdim=True)
    if not largest.isfinite().all():
        raise ValueError("holds NaN or infinity")
    scale = scale_for(largest, scheme)
    if scheme.packed:
        scale = _best_scale(grouped, largest, scheme)
    numbers = grouped * (1 / scale) if scheme.packed else grouped / scale
    return Quantized(pack(_whole(_round(numbers, scheme), weight.shape), scheme), scale.squeeze(-1).squeeze(-2))


def pack(numbers: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Stored numbers ``[..., I]`` as the values of ``Quantized``."""
    if scheme.packed:
        return pack_int4(numbers) if scheme.kind == "int4" else pack_int3(numbers)
    return numbers.to(torch.int8 if scheme.kind == "int8" else torch.float8_e4m3fn)


def stored_numbers(numbers: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """The numbers that ``scheme`` can store which are nearest to ``numbers``, float32."""
    rounded = _round(numbers, scheme)
    return rounded.to(torch.float8_e4m3fn).float() if scheme.kind in FP8 else rounded


def scale_for(largest: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """The scale with which ``largest`` becomes the largest number that is stored; bfloat16's values, float32."""
    scale = (largest / LARGEST[scheme.kind]).bfloat16().float()
    # a group of zeros, or of numbers so small that their scale would be none
    return torch.where(scale.abs() < torch.finfo(torch.bfloat16).tiny, 1.0, scale)


def _round(numbers: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    limit = LARGEST[scheme.kind]
    lowest = -limit - scheme.packed
    clamped = numbers.clamp(lowest, limit)
    return clamped if scheme.kind in FP8 else clamped.round()


def _best_scale(grouped: torch.Tensor, largest: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Of least squared error. Errors are compared as whole numbers: in whatever order they are summed, and by whatever
    processor, the same scale is found."""
    best, least = torch.ones_like(largest), torch.full_like(largest, 2**62, dtype=torch.int64)
    for clip in CLIPS[scheme.kind]:
        scale = scale_for(largest * clip, scheme)
        numbers = grouped * (1 / scale)
        factor = torch.where(largest > 0, scale / largest * 2**13, 0.0)  # errors in shares of the largest weight
        steps = ((_round(numbers, scheme) - numbers) * factor).clamp(-(2**12), 2**12)
        error = steps.round().to(torch.int32).square().sum(-1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best
