"""The mathematics of A.X K1: no parallelism, no quantisation, no serving, no I/O.

To read top-down: ``causal_lm.py``, ``trunk.py``, ``layer.py``, ``attention.py``, ``moe.py``, ``mtp.py``,
``objectives.py``.
"""

from axk1.modeling.causal_lm import AXK1ForCausalLM
from axk1.modeling.classification import AXK1ForSequenceClassification, AXK1ForTokenClassification
from axk1.modeling.outputs import AXK1CausalLMOutput, AXK1ModelOutput
from axk1.modeling.trunk import AXK1Model, AXK1PreTrainedModel

__all__ = [
    "AXK1CausalLMOutput",
    "AXK1ForCausalLM",
    "AXK1ForSequenceClassification",
    "AXK1ForTokenClassification",
    "AXK1Model",
    "AXK1ModelOutput",
    "AXK1PreTrainedModel",
]
