"""Compiled operators for decoding on the CPU, built on first use where a C++ compiler is found.

One operator for all layers reads every weight once, in the layout the checkpoint has; ``cpu/rows.h`` holds the
arithmetic. Without a compiler, or with ``AXK1_KERNELS=0``, the plain PyTorch path of ``modeling`` runs instead: the two
are tested equal.
"""

from axk1.kernels.build import available, is_fast
from axk1.kernels.step import CPURunner

__all__ = ["CPURunner", "available", "is_fast"]
