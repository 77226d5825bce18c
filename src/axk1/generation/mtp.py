"""How often the MTP module guesses the trunk's second token."""

import torch
from torch import Tensor
from transformers import PreTrainedModel


@torch.no_grad()
def mtp_acceptance(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, prompt_lengths: Tensor) -> float:
    """Share of generated tokens that the MTP module's greedy draft equals.

    Teacher-forced over sequences that the trunk generated greedily. The draft at position i, made from the trunk's
    state there and token i+1, is for token i+2; it is counted where both i+1 and i+2 lie in the generated part.

    Args:
        model: an ``AXK1ForCausalLM`` with at least one MTP module (the first is measured).
        input_ids: [batch, length] int64, prompt and generated tokens, padded on either side.
        attention_mask: [batch, length], 1 where a token is, 0 for padding.
        prompt_lengths: [batch] int64, prompt tokens of each row, padding left out.

    Raises:
        ValueError: when the model has no MTP module, or no row has two generated tokens.
    """
    if not getattr(model.config, "num_nextn_predict_layers", 0):
        raise ValueError("The model has no MTP module to measure: num_nextn_predict_layers is 0 in its configuration.")
    mtp_logits = model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=1, output_mtp_logits=True
    ).mtp_logits
    targets = input_ids[:, 2:]
    drafts = mtp_logits[0][:, : targets.shape[1]].argmax(-1)
    rank = attention_mask.cumsum(1) - 1  # index within the row, padding left out
    counted = (rank[:, 1:-1] >= prompt_lengths.to(rank.device)[:, None]) & attention_mask[:, 2:].bool()
    if not counted.any():
        raise ValueError("No row has two generated tokens, so MTP acceptance is undefined; generate longer sequences.")
    return (drafts == targets)[counted].float().mean().item()
