"""The classes users load: the mathematics of ``modeling`` with A.X K1's checkpoint reading and writing."""

from axk1.modeling import (
    AXK1ForCausalLM,
    AXK1ForSequenceClassification,
    AXK1ForTokenClassification,
    AXK1Model,
    AXK1PreTrainedModel,
)

__all__ = [
    "AXK1ForCausalLM",
    "AXK1ForSequenceClassification",
    "AXK1ForTokenClassification",
    "AXK1Model",
    "AXK1PreTrainedModel",
]
