"""Steps behind a cache, absorbed here and expanded there, in bf16; in fp32 ``test_parity_forward`` compares them."""

from typing import Any

import torch
from tiny import random_fields, tokens
from twin import SEEDS, drawn_pair, make_pair


def steps(model: Any, ids: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    cache, parts = None, []
    for chunk in ids.split(sizes, dim=1):
        output = model(chunk, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        parts.append(output.logits)
    return torch.cat(parts, dim=1).float()


@torch.no_grad()
def test_bf16_steps_within_their_own_distance() -> None:
    """Single tokens and short drafts stray from fp32 no further than transformers' bf16 steps do."""
    squares = torch.zeros(2)
    for seed in SEEDS:
        exact = drawn_pair(seed)
        pair = make_pair(random_fields(seed, rope_parameters=exact.ours.config.rope_parameters), seed)
        # routing jumps between experts at rounding distance; a bias this strong keeps every choice where it is
        for model in (pair.ours, pair.theirs):
            for name, buffer in model.named_buffers():
                if name.endswith("e_score_correction_bias"):
                    buffer.copy_(torch.linspace(-60, 60, len(buffer)))
        ids = tokens(4, 24, seed)
        reference = pair.theirs(ids).logits
        found = [steps(m.to(torch.bfloat16), ids, [8, 1, 1, 1, 1, 4, 8]) for m in (pair.ours, pair.theirs)]
        ours, theirs = ((logits - reference).pow(2).mean() for logits in found)
        assert 0 < ours.sqrt() <= theirs.sqrt() * 1.05
        squares += torch.stack([ours, theirs])
    assert squares[0].sqrt() <= squares[1].sqrt() * 1.01
