"""Compiled operators for decoding on the CPU, built on first use where a C++ compiler is found.

Two operators a layer read every weight once, in the layout the checkpoint has; ``cpu/rows.h`` holds the arithmetic.
They run with ``AXK1_KERNELS=1`` only: on a machine with other work their threads wait for each other at barriers, far too
long for a small model. Otherwise, and without a compiler, the plain PyTorch path of ``modeling`` runs; the two are
tested equal.
"""

from axk1.kernels.build import available
from axk1.kernels.step import linear, run_layers

__all__ = ["available", "linear", "run_layers"]
