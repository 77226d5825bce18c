"""How often the MTP module guesses the trunk's second token."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from axk1.chat import Chat
    from axk1.evaluation.held_out import Result


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


def reply_acceptance(chat: Chat, results: Iterable[Result], batch_size: int = 32) -> float:
    """MTP second-token acceptance over the generated tokens of ``results`` (greedy replies of ``chat``'s own model)."""
    total, accepted = 0, 0.0
    stream = iter(results)
    while chosen := list(islice(stream, batch_size)):
        prompts = [chat.prompt([{"role": "user", "content": r.question}], r.think) for r in chosen]
        replies = [_reply_ids(chat, r) for r in chosen]
        rows = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
        batch = chat.tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        share = mtp_acceptance(chat.model, batch["input_ids"], batch["attention_mask"], lengths)  # pyright: ignore
        counted = sum(len(reply) - 1 for reply in replies)
        total, accepted = total + counted, accepted + share * counted
    return accepted / total


def _reply_ids(chat: Chat, result: Result) -> list[int]:
    text = f"{result.reasoning}</think>{result.answer}" if result.think else result.answer
    return chat.tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]  # pyright: ignore
