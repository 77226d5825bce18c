"""The same weights give the same outputs as transformers' own ``axk1``, on drawn shapes.

Both run the same operations in the same order wherever they run on the same path, so most differences are exactly 0;
``EXACT`` leaves room for another library version. ``REORDERED`` applies where one side sums in another order: chunks
through a cache against the whole sequence, other expert kernels.
"""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import PAD, VOCAB, pack_rows, pad_rows, positions_of, random_fields, tiny_fields, tokens
from twin import SEEDS, Pair, TheirConfig, difference, drawn_pair, make_pair

EXACT, REORDERED = 1e-5, 1e-4
each_shape = pytest.mark.parametrize("seed", SEEDS)


def rows(*lengths: int) -> list[torch.Tensor]:
    return [tokens(1, length, seed=length)[0] for length in lengths]


@torch.no_grad()
def both(pair: Pair, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    return pair.ours(*args, **kwargs), pair.theirs(*args, **kwargs)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(fields=tiny_fields(), seed=st.integers(0, 10_000), length=st.integers(1, 33))
def test_logits_on_drawn_shapes(fields: dict[str, Any], seed: int, length: int) -> None:
    ours, theirs = both(make_pair(fields, seed), tokens(2, length, seed))
    assert difference(ours.logits, theirs.logits) < EXACT


def test_drawn_weights_make_every_part_matter() -> None:
    """Guards the tests of this file: a model whose router, bias, rope or norms change must change its logits."""
    pair, ids = make_pair(random_fields(0, mlp_layer_types=["dense", "sparse"], num_hidden_layers=2)), tokens(2, 12)
    before = pair.ours(ids).logits
    layer = pair.ours.model.layers[1]
    with torch.no_grad():
        for tensor in (
            layer.mlp.gate.weight,
            layer.mlp.gate.e_score_correction_bias,
            layer.post_mlp_layernorm.weight,
            layer.self_attn.q_a_layernorm.weight,
            layer.mlp.shared_experts.up_proj.weight,
            pair.ours.model.rotary_emb.inv_freq,
        ):
            kept = tensor.clone()
            tensor.copy_(kept.flip(0) * 1.1)
            assert difference(pair.ours(ids).logits, before) > 1e-2
            tensor.copy_(kept)


@pytest.mark.skipif(not hasattr(TheirConfig, "output_router_logits"), reason="this transformers records no routing")
@each_shape
def test_recorded_outputs(seed: int) -> None:
    """Hidden states of every layer, router logits of every MoE layer, attention weights of every layer."""
    pair = drawn_pair(seed)
    pair.ours.set_attn_implementation("eager")
    pair.theirs.set_attn_implementation("eager")
    flags = dict(output_hidden_states=True, output_router_logits=True, output_attentions=True)
    ours, theirs = both(pair, tokens(2, 9), **flags)
    pair.ours.set_attn_implementation("sdpa")
    pair.theirs.set_attn_implementation("sdpa")
    for name in ("hidden_states", "router_logits", "attentions"):
        mine, reference = getattr(ours, name), getattr(theirs, name)
        assert len(mine) == len(reference) > 0, name
        assert max(difference(a, b) for a, b in zip(mine, reference, strict=True)) < EXACT, name
    assert len(ours.hidden_states) == pair.ours.config.num_hidden_layers + 1
    assert difference(ours.logits, theirs.logits) < EXACT


@each_shape
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("counted", [True, False])
def test_padded(seed: int, side: str, counted: bool) -> None:
    """Padding on either side, positions counted from the first real token or not at all."""
    ids, mask = pad_rows(rows(4, 11, 7), side)
    extra = {"position_ids": positions_of(mask)} if counted else {}
    ours, theirs = both(drawn_pair(seed), ids, attention_mask=mask, **extra)
    real = mask.bool()
    assert difference(ours.logits[real], theirs.logits[real]) < EXACT


@each_shape
def test_packed(seed: int) -> None:
    """Several documents in a row, told apart by positions that restart; theirs needs ``use_cache=False`` for it."""
    pair, documents = drawn_pair(seed), rows(5, 1, 8, 3)
    ids, positions = pack_rows(documents)
    ours, theirs = both(pair, ids, position_ids=positions, use_cache=False)
    assert difference(ours.logits, theirs.logits) < EXACT
    assert torch.equal(ours.logits, pair.ours(ids, position_ids=positions).logits)
    alone = torch.cat([pair.ours(document[None]).logits[0] for document in documents])
    assert difference(ours.logits[0], alone) < REORDERED


@each_shape
@pytest.mark.parametrize("sizes", [(1,) * 13, (6, 1, 1, 5), (12, 1)], ids=["one-by-one", "chunks", "prefill-decode"])
@torch.no_grad()
def test_cached(seed: int, sizes: tuple[int, ...]) -> None:
    """Chunks through the cache: equal to transformers' chunks, and to the whole sequence at once."""
    pair, ids = drawn_pair(seed), tokens(2, sum(sizes))
    caches: list[Any] = [None, None]
    parts: list[list[torch.Tensor]] = [[], []]
    for chunk in ids.split(list(sizes), dim=1):
        for i, model in enumerate((pair.ours, pair.theirs)):
            output = model(chunk, past_key_values=caches[i], use_cache=True)
            caches[i] = output.past_key_values
            parts[i].append(output.logits)
    ours, theirs = (torch.cat(part, dim=1) for part in parts)
    assert difference(ours, theirs) < EXACT
    assert difference(ours, pair.ours(ids).logits) < REORDERED
    assert caches[0].get_seq_length() == sum(sizes)
    for mine, reference in zip(caches[0].layers, caches[1].layers, strict=True):
        assert difference(mine.keys, reference.keys) < EXACT  # kv latents
        assert difference(mine.values, reference.values) < EXACT  # rotated keys, in the same order of dimensions


@each_shape
def test_greedy_tokens(seed: int) -> None:
    """The same greedy continuation of left-padded prompts, with and without a cache."""
    pair = drawn_pair(seed)
    ids, mask = pad_rows(rows(3, 9, 6), "left")
    settings = dict(attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=PAD)
    ours, theirs = pair.ours.generate(ids, **settings), pair.theirs.generate(ids, **settings)
    assert ours.shape == (3, 9 + 12)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours, pair.ours.generate(ids, use_cache=False, **settings))


@each_shape
def test_bf16_within_their_own_distance(seed: int) -> None:
    """bf16 strays from fp32 as transformers' bf16 does: 1.1 times its rms and its largest distance bound ours."""
    exact = drawn_pair(seed)
    pair = make_pair(random_fields(seed, rope_parameters=exact.ours.config.rope_parameters), seed)
    # routing jumps between experts at rounding distance; a bias this strong keeps every choice where it is
    for model in (pair.ours, pair.theirs):
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.linspace(-60, 60, len(buffer)))
    ids = tokens(2, 24, seed)
    with torch.no_grad():
        reference = pair.theirs(ids).logits
        ours, theirs = pair.ours.to(torch.bfloat16)(ids).logits, pair.theirs.to(torch.bfloat16)(ids).logits
    assert ours.dtype == torch.bfloat16
    own = (theirs.float() - reference).pow(2).mean().sqrt().item()
    distance = (ours.float() - reference).pow(2).mean().sqrt().item()
    assert 0 < own < 0.2, "the reference itself is too far for this comparison to mean anything"
    assert distance <= own * 1.1
    assert difference(ours, reference) <= difference(theirs, reference) * 1.1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
def test_implementations(attention: str, experts: str) -> None:
    """Every attention and experts implementation equals transformers' reference path (eager, eager)."""
    ids, mask = pad_rows(rows(10, 7), "right")
    for seed in SEEDS:
        pair = make_pair(random_fields(seed), seed)
        pair.theirs.set_attn_implementation("eager")
        pair.theirs.set_experts_implementation("eager")
        pair.ours.set_attn_implementation(attention)
        pair.ours.set_experts_implementation(experts)
        assert pair.ours.config._attn_implementation == attention
        assert pair.ours.config._experts_implementation == experts
        ours, theirs = both(pair, ids, attention_mask=mask)
        assert difference(ours.logits[mask.bool()], theirs.logits[mask.bool()]) < REORDERED


def test_classification_heads() -> None:
    """Sequence and token classification give transformers' scores and losses."""
    from transformers.models.axk1.modeling_axk1 import AXK1ForSequenceClassification, AXK1ForTokenClassification
    from twin import their_state

    import axk1

    ids, mask = pad_rows(rows(6, 9), "right")
    for mine, reference, labels in (
        (axk1.AXK1ForSequenceClassification, AXK1ForSequenceClassification, torch.tensor([2, 0])),
        (axk1.AXK1ForTokenClassification, AXK1ForTokenClassification, torch.randint(0, 3, ids.shape)),
    ):
        pair = make_pair(random_fields(1), seed=1)
        pair.ours.config.num_labels = pair.theirs.config.num_labels = 3
        ours, theirs = mine(pair.ours.config).eval(), reference(pair.theirs.config).eval()
        theirs.load_state_dict(their_state(ours), strict=True)
        a, b = ours(ids, attention_mask=mask, labels=labels), theirs(ids, attention_mask=mask, labels=labels)
        assert a.logits.shape == b.logits.shape and a.logits.shape[-1] == 3
        assert difference(a.logits, b.logits) < EXACT
        assert abs(a.loss.item() - b.loss.item()) < EXACT


def test_vocabulary_is_complete() -> None:
    """The drawn ids reach the last row of embedding and head."""
    assert tokens(50, 50).max() == VOCAB - 1
