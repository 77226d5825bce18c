"""Weights to int4 by the compiled kernels: the bits that :mod:`axk1.quantized.formats` gives, in less time."""

import torch

from axk1.kernels import native
from axk1.quantized import formats
from axk1.quantized.formats import CLIPS, LARGEST, Quantized
from axk1.quantized.plan import Scheme


def rounded(weight: torch.Tensor, scheme: Scheme) -> tuple[Quantized, tuple[float, float]]:
    """``weight`` ``[O, I]`` in ``scheme``, and the sums of the squared errors and of the squared weights; in this
    thread. Other formats than int4, and what no kernel reads, are left to PyTorch.

    Raises:
        ValueError: the weight is not finite.
    """
    if scheme.kind != "int4" or weight.dtype not in native.DTYPES or not native.available():
        return formats.rounded(weight, scheme)
    packed, scale, squares = native.round_int4(
        weight.contiguous(), scheme.group_size or weight.shape[1], CLIPS, LARGEST["int4"]
    )
    return Quantized(packed, scale), squares
