"""axk1: the open system for A.X K1 (SK Telecom, 519B parameters) and any model of its architecture.

Importing the package registers the architecture with transformers' Auto classes and stays fast: torch and transformers
are only loaded when something needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from axk1._auto import register_when_transformers_loads

if TYPE_CHECKING:
    from axk1.config import AXK1Config
    from axk1.pretrained import (
        AXK1ForCausalLM,
        AXK1ForSequenceClassification,
        AXK1ForTokenClassification,
        AXK1Model,
        AXK1PreTrainedModel,
    )

__version__ = "0.1.0"
_EXPORTS = {
    "AXK1Config": "axk1.config",
    "AXK1ForCausalLM": "axk1.pretrained",
    "AXK1ForSequenceClassification": "axk1.pretrained",
    "AXK1ForTokenClassification": "axk1.pretrained",
    "AXK1Model": "axk1.pretrained",
    "AXK1PreTrainedModel": "axk1.pretrained",
}
__all__ = [
    "AXK1Config",
    "AXK1ForCausalLM",
    "AXK1ForSequenceClassification",
    "AXK1ForTokenClassification",
    "AXK1Model",
    "AXK1PreTrainedModel",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'axk1' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


register_when_transformers_loads()
