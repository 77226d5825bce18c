"""The mathematics of A.X K1: no parallelism, no quantisation, no serving, no I/O. Start reading at ``model.py``."""

from axk1.modeling.model import (
    AXK1CausalLMOutput,
    AXK1ForCausalLM,
    AXK1ForSequenceClassification,
    AXK1ForTokenClassification,
    AXK1Model,
    AXK1ModelOutput,
    AXK1PreTrainedModel,
)

__all__ = [
    "AXK1CausalLMOutput",
    "AXK1ForCausalLM",
    "AXK1ForSequenceClassification",
    "AXK1ForTokenClassification",
    "AXK1Model",
    "AXK1ModelOutput",
    "AXK1PreTrainedModel",
]
