"""Quantised weights: the number formats, which matrix has which, and the modules that compute with them; and bfloat16
weights packed without loss, in memory.

Files are compressed-tensors files (``axk1 quantize`` writes them, vLLM reads them); the package of that name is not
needed. ``docs/quantization.md`` describes both.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axk1.quantized.lossless import pack_weights, unpack_weights
    from axk1.quantized.modules import QuantizedExperts, QuantizedLinear
    from axk1.quantized.plan import KINDS, Kind, Plan, Scheme

_HOME = {
    "KINDS": "plan",
    "Kind": "plan",
    "Plan": "plan",
    "QuantizedExperts": "modules",
    "QuantizedLinear": "modules",
    "Scheme": "plan",
    "pack_weights": "lossless",
    "unpack_weights": "lossless",
}

__all__ = ["KINDS", "Kind", "Plan", "QuantizedExperts", "QuantizedLinear", "Scheme", "pack_weights", "unpack_weights"]


def __getattr__(name: str) -> Any:  # what reads a plan needs no module that computes
    if name not in _HOME:
        raise AttributeError(f"module 'axk1.quantized' has no attribute {name!r}")
    return getattr(import_module(f"axk1.quantized.{_HOME[name]}"), name)
