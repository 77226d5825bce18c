"""Every faster way: compiled steps on the CPU (``cpu/``), and the choice between them and PyTorch's operators.

All layers in one call, every weight read once, in the layout the checkpoint has. The library is compiled for the
processor's instruction set on first use, or comes built with the wheel. Without one, or with ``AXK1_KERNELS=0``, the
modules of ``modeling`` run instead: the two are tested equal. To read first: ``dispatch.py``, which names the path.
"""

import torch

from axk1.kernels import native
from axk1.kernels.native import available

__all__ = ["available", "is_fast"]


def is_fast(dtype: torch.dtype) -> bool:
    """Whether kernels compute in ``dtype`` as fast as they read it: bfloat16 is widened in registers where need be."""
    return available() and dtype in (torch.float32, torch.bfloat16) and native.instructions() != "plain"
