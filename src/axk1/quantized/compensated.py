"""Rounding that is fitted to a matrix's inputs: the error of each column is made up for by the columns after it.

GPTQ (arXiv 2210.17323) with the scales of all groups chosen first, and columns in the order of their inputs' size. The
formats are those of :mod:`axk1.quantized.formats`. Shapes: O outputs, I inputs, N tokens.
"""

from __future__ import annotations

import torch

from axk1.quantized.formats import (
    CLIPS,
    Quantized,
    dequantize,
    pack,
    quantize,
    scale_for,
    stored_numbers,
)
from axk1.quantized.plan import BLOCK, Scheme

WIDEST = 8192
"""Inputs whose second moments are one matrix (268 MB); of more, groups of columns are taken for independent."""
DAMPING = 0.01
"""Share of the inputs' mean square that is added to each: columns that hardly ever had inputs stay near rounding."""
JUDGED = 8
"""One token of so many is not fitted to: it tells whether fitting helped."""
MOST_JUDGED = 512
"""Tokens that are kept for that at most."""
_COLUMNS = 128  # compensated among themselves at once, before the others; groups of all sizes divide it, blocks too


class Inputs:
    """What a matrix with ``width`` inputs is multiplied by: second moments, and some tokens to judge by."""

    def __init__(self, width: int) -> None:
        parts = -(-width // WIDEST)
        step = min(-(-width // (parts * _COLUMNS)), WIDEST // _COLUMNS) * _COLUMNS
        self.columns = [slice(start, min(width, start + step)) for start in range(0, width, step)]
        self.moments = [torch.zeros(each.stop - each.start, each.stop - each.start) for each in self.columns]
        self.judged = torch.empty(0, width)
        self.tokens = 0

    @classmethod
    def of(cls, x: torch.Tensor) -> Inputs:
        """Of the inputs ``[N, I]`` alone."""
        inputs = cls(x.shape[-1])
        inputs.add(x)
        return inputs

    def add(self, x: torch.Tensor) -> None:
        """Takes ``[N, I]`` more, any float type."""
        apart = torch.zeros(len(x), dtype=torch.bool)
        apart[JUDGED - 1 :: JUDGED] = True
        fitted = x[~apart].float()
        for columns, moment in zip(self.columns, self.moments, strict=True):
            moment.addmm_(fitted[:, columns].T, fitted[:, columns])
        room = MOST_JUDGED - len(self.judged)
        self.judged = torch.cat([self.judged, x[apart][:room].float()])
        self.tokens += len(fitted)


def fitted(weight: torch.Tensor, scheme: Scheme, inputs: Inputs) -> Quantized:
    """``weight`` ``[O, I]`` rounded so that its products with ``inputs`` change least; by plain rounding, where that is
    as good for the tokens it was not fitted to, or there are none.

    Raises:
        ValueError: the weight is not finite.
    """
    plain = quantize(weight, scheme)
    if not inputs.tokens or not len(inputs.judged):
        return plain
    found = _compensated(weight.float(), scheme, inputs, plain.scale)
    return found if _error(weight, found, inputs.judged) < _error(weight, plain, inputs.judged) else plain


def _error(weight: torch.Tensor, quantized: Quantized, tokens: torch.Tensor) -> float:
    off = dequantize(*quantized) - weight.float()
    return (tokens @ off.T).square().sum(dtype=torch.float64).item()


def _compensated(weight: torch.Tensor, scheme: Scheme, inputs: Inputs, plain: torch.Tensor) -> Quantized:
    """``plain``: the scales of plain rounding, which stay where no clips are tried."""
    importance = torch.cat([moment.diagonal() for moment in inputs.moments])
    scale = _scales(weight, importance, scheme) if scheme.packed else plain
    group = scheme.columns or weight.shape[1]
    numbers = torch.empty_like(weight)
    for columns, moment in zip(inputs.columns, inputs.moments, strict=True):
        held = slice(columns.start // group, -(-columns.stop // group))
        of_each = scale[:, held].repeat_interleave(group, dim=1)[:, : columns.stop - columns.start]
        if scheme.in_blocks:
            of_each = of_each.repeat_interleave(BLOCK, dim=0)[: len(weight)]
        numbers[:, columns] = _compensated_columns(weight[:, columns], of_each, moment, scheme)
    return Quantized(pack(numbers, scheme), scale)


def _scales(weight: torch.Tensor, importance: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """``[O, groups]``: of the clips that are tried, those of least squared error, columns weighed by ``importance``."""
    grouped = weight.unflatten(-1, (-1, scheme.group_size or weight.shape[-1]))
    weighed = (importance / importance.mean().clamp(min=1e-30)).view(grouped.shape[1:])
    largest = grouped.abs().amax(-1, keepdim=True)
    best = torch.ones_like(largest)
    least = torch.full_like(largest, float("inf"))
    for clip in CLIPS[scheme.kind]:
        scale = scale_for(largest * clip, scheme)
        off = stored_numbers(grouped / scale, scheme) * scale - grouped
        error = (off.square() * weighed).sum(-1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best.squeeze(-1)


def _compensated_columns(
    weight: torch.Tensor, scale: torch.Tensor, moment: torch.Tensor, scheme: Scheme
) -> torch.Tensor:
    """The stored numbers of ``weight`` ``[O, n]``, with a scale for each, whose inputs have ``moment`` ``[n, n]``."""
    order = moment.diagonal().argsort(descending=True)
    factor = _factor(moment[order][:, order])
    left, scales = weight.T[order].contiguous(), scale.T[order].contiguous()  # a column of the matrix is a row here
    numbers = torch.empty_like(left)
    for start in range(0, len(left), _COLUMNS):
        stop = min(start + _COLUMNS, len(left))
        errors = torch.empty_like(left[start:stop])
        for i in range(start, stop):
            numbers[i] = stored_numbers(left[i] / scales[i], scheme)
            errors[i - start] = (left[i] - numbers[i] * scales[i]) / factor[i, i]
            left[i + 1 : stop].addr_(factor[i, i + 1 : stop], errors[i - start], alpha=-1)
        left[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    return numbers[order.argsort()].T


def _factor(moment: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of ``moment``, damped as far as is needed for there to be one."""
    mean, damping = moment.diagonal().mean(), DAMPING
    while True:
        damped = moment + torch.eye(len(moment)) * (mean * damping).clamp(min=1e-30)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return upper
        damping *= 10
