"""Weights to int4 and int3 by the compiled kernels: the bits that :mod:`axk1.quantized.formats` gives, in less time."""

import torch

from axk1.kernels import native
from axk1.quantized import formats
from axk1.quantized.formats import CLIPS, LARGEST, Quantized
from axk1.quantized.plan import Scheme


def rounded(weight: torch.Tensor, scheme: Scheme) -> tuple[Quantized, tuple[float, float]]:
    """``weight`` ``[O, I]`` in ``scheme``, and the sums of the squared errors and of the squared weights; in this
    thread. Other formats, and what no kernel reads, are left to PyTorch.

    Raises:
        ValueError: the weight is not finite.
    """
    if not scheme.packed or weight.dtype not in native.DTYPES or not native.available():
        return formats.rounded(weight, scheme)
    bits, group = (4 if scheme.kind == "int4" else 3), scheme.group_size or weight.shape[1]
    arguments = (bits, group, CLIPS[scheme.kind], LARGEST[scheme.kind])
    packed, scale, squares = native.round_packed(weight.contiguous(), *arguments)
    return Quantized(packed, scale), squares
