"""Quantised weights: the number formats, which matrix has which, and the modules that compute with them.

Files are compressed-tensors files (``axk1 quantize`` writes them, vLLM reads them); the package of that name is not
needed. ``docs/quantization.md`` describes both.
"""

from axk1.quantized.modules import QuantizedExperts, QuantizedLinear
from axk1.quantized.plan import KINDS, Kind, Plan, Scheme

__all__ = ["KINDS", "Kind", "Plan", "QuantizedExperts", "QuantizedLinear", "Scheme"]
