"""Faster decode steps, which plug in at ``modeling/runners.py``: compiled operators on the CPU, CUDA graphs on a GPU.

One operator for all layers reads every weight once, in the layout the checkpoint has; ``cpu/rows.h`` holds the
arithmetic. It is built on first use where a C++ compiler is found. Without one, or with ``AXK1_KERNELS=0``, the plain
PyTorch path of ``modeling`` runs instead: the two are tested equal.
"""

from axk1.kernels.build import available, is_fast
from axk1.kernels.graphs import CUDARunner
from axk1.kernels.step import CPURunner

__all__ = ["CPURunner", "CUDARunner", "available", "is_fast"]
