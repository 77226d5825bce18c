"""Gradients and the training loss equal transformers' own, for every parameter."""

from typing import Any

import pytest
import torch
from tiny import ROPES, pack_rows, pad_rows, random_fields, tokens
from torch import nn
from twin import SEEDS, Pair, difference, make_pair, their_name

TOLERANCE = 1e-5


def fresh_pair(seed: int) -> Pair:
    return make_pair(random_fields(seed, rope_parameters=dict(ROPES[seed % len(ROPES)])), seed)


def assert_same_gradients(pair: Pair, ours: nn.Module, theirs: nn.Module) -> None:
    """Every trainable parameter of ours has transformers' gradient, relative to that gradient's own size."""
    reference = dict(theirs.named_parameters())
    compared = 0
    for name, parameter in ours.named_parameters():
        if not parameter.requires_grad:
            assert "post_mlp_layernorm" in name and their_name(name) not in reference, name
            continue
        mine, other = parameter.grad, reference[their_name(name)].grad
        assert (mine is None) == (other is None), name
        if mine is None or other is None:
            continue
        assert difference(mine, other) <= TOLERANCE * max(1.0, other.abs().max().item()), name
        compared += int(other.abs().max() > 0)
    assert compared >= 0.8 * len(reference)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("layout", ["whole", "padded", "packed"])
def test_gradients(seed: int, layout: str) -> None:
    pair = fresh_pair(seed)
    inputs: dict[str, Any] = {"input_ids": tokens(2, 12)}
    real = torch.ones(2, 12, dtype=torch.bool)
    if layout == "padded":
        ids, mask = pad_rows([tokens(1, 5)[0], tokens(1, 12)[0]], "left")
        inputs, real = {"input_ids": ids, "attention_mask": mask}, mask.bool()
    if layout == "packed":
        ids, positions = pack_rows([tokens(1, 5)[0], tokens(1, 9)[0]])
        inputs, real = {"input_ids": ids, "position_ids": positions, "use_cache": False}, torch.ones_like(ids).bool()
    weight = torch.randn(int(real.sum()), pair.ours.config.vocab_size, generator=torch.Generator().manual_seed(0))
    for model in (pair.ours.train(), pair.theirs.train()):
        (model(**inputs).logits[real] * weight).mean().backward()
    assert_same_gradients(pair, pair.ours, pair.theirs)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("items", [None, 40])
def test_loss_and_its_gradients(seed: int, items: int | None) -> None:
    """Next-token loss with ignored labels, divided by the targets or by ``num_items_in_batch``."""
    pair, ids = fresh_pair(seed), tokens(3, 10)
    labels = ids.clone()
    labels[0, :4] = labels[1, 7:] = -100
    extra = {} if items is None else {"num_items_in_batch": items}
    ours = pair.ours.train()(ids, labels=labels, **extra)
    theirs = pair.theirs.train()(ids, labels=labels, **extra)
    assert abs(ours.loss.item() - theirs.loss.item()) < TOLERANCE
    assert torch.equal(ours.loss, ours.lm_loss) and ours.mtp_loss is None and ours.aux_loss is None
    ours.loss.backward()
    theirs.loss.backward()
    assert_same_gradients(pair, pair.ours, pair.theirs)
