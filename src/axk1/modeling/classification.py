"""The trunk under transformers' generic classification heads."""

from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification

from axk1.modeling.trunk import AXK1PreTrainedModel


class AXK1ForSequenceClassification(GenericForSequenceClassification, AXK1PreTrainedModel):
    """A score a sequence, read at its last token (transformers' generic head)."""


class AXK1ForTokenClassification(GenericForTokenClassification, AXK1PreTrainedModel):
    """A score a token (transformers' generic head)."""
