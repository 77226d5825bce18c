"""Every faster way: compiled steps on the CPU (``cpu/``), CUDA graphs on a GPU, and the choice between them.

All layers in one call, every weight read once, in the layout the checkpoint has. The library is compiled for the
processor's instruction set on first use, or comes built with the wheel. Without one, or with ``AXK1_KERNELS=0``, the
plain PyTorch path of ``modeling`` runs instead: the two are tested equal.
"""

import torch

from axk1.kernels import native
from axk1.kernels.graphs import CUDARunner
from axk1.kernels.native import available
from axk1.kernels.step import CPURunner

__all__ = ["CPURunner", "CUDARunner", "available", "is_fast"]


def is_fast(dtype: torch.dtype) -> bool:
    """Whether there are kernels, with this processor's own instructions for ``dtype``."""
    return available() and (dtype == torch.float32 or (dtype == torch.bfloat16 and native.instructions() == "avx512_bf16"))
