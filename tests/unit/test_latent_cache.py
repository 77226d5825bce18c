"""The latent cache against transformers' plain one, through any sequence of changes; its memory; who gets one."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import PAD, small_model, tokens
from transformers import DynamicCache, StaticCache

from axk1 import AXK1Config
from axk1.modeling.cache import GROWTH, LatentCache, LatentLayer

C, R = 12, 4
CONFIG = AXK1Config(vocab_size=8, num_hidden_layers=2, num_nextn_predict_layers=1, kv_lora_rank=C, qk_rope_head_dim=R)

CHANGES = st.one_of(
    st.tuples(st.just("update"), st.integers(1, 9)),
    st.tuples(st.just("append_space"), st.integers(1, 9)),
    st.tuples(st.just("crop"), st.integers(0, 9)),
    st.tuples(st.just("select"), st.integers(0, 99)),
    st.tuples(st.just("reorder"), st.integers(0, 99)),
    st.tuples(st.just("repeat"), st.integers(1, 3)),
)


def change(ours: LatentCache, plain: DynamicCache, kind: str, number: int) -> None:
    """Does the same to both; the plain cache must keep a token, without which it forgets its batch."""
    batch, length = plain.layers[0].keys.shape[0], plain.get_seq_length()  # pyright: ignore
    generator = torch.Generator().manual_seed(number)
    if kind in ("update", "append_space"):
        for index in range(CONFIG.num_hidden_layers):
            new = torch.randn(batch, 1, number, C + R, generator=generator)
            expected = plain.update(new[..., :C], new[..., C:], index)
            if kind == "update":
                found = ours.update(new[..., :C], new[..., C:], index)
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            else:
                ours.layers[index].append_space(batch, number, new.dtype, new.device)
                joint = ours.layers[index].joint
                assert joint.shape == (batch, length + number, C + R)
                joint[:, -number:] = new[:, 0]
    elif kind == "crop":
        for cache in (ours, plain):
            cache.crop(-min(number, length - 1))
    elif kind == "repeat":
        for cache in (ours, plain):
            cache.batch_repeat_interleave(number if batch * number <= 12 else 1)
    else:
        rows = torch.randint(batch, (batch if kind == "reorder" else 1 + number % 4,), generator=generator)
        for cache in (ours, plain):
            (cache.reorder_cache if kind == "reorder" else cache.batch_select_indices)(rows)  # pyright: ignore


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    changes=st.lists(CHANGES, max_size=25),
    batch=st.integers(1, 3),
    first=st.integers(1, 9),
    capacity=st.sampled_from([0, 1, 20, 500]),
)
def test_any_sequence_of_changes(changes: list[tuple[str, int]], batch: int, first: int, capacity: int) -> None:
    ours, plain = LatentCache(CONFIG, capacity), DynamicCache()
    new = torch.randn(batch, 1, first, C + R)
    for index in range(CONFIG.num_hidden_layers):
        for cache in (ours, plain):
            cache.update(new[..., :C], new[..., C:], index)
    for kind, number in changes:
        change(ours, plain, kind, number)
        assert ours.get_seq_length() == plain.get_seq_length()
        assert ours.get_mask_sizes(3, 0) == plain.get_mask_sizes(3, 0)
        for mine, reference in zip(ours.layers, plain.layers, strict=False):
            assert mine.keys is not None and torch.equal(mine.keys, reference.keys)  # pyright: ignore
            assert mine.values is not None and torch.equal(mine.values, reference.values)  # pyright: ignore
            assert torch.equal(mine.joint[..., :C], mine.keys[:, 0])
    module = ours.layers[2]
    assert module.get_seq_length() == 0 and module.nbytes == 0, "an MTP module's layer is filled by draft only"


def test_memory_a_token_is_the_latents() -> None:
    """Released shapes: 70,272 bytes a token where the length is known, at most ``GROWTH`` columns more where not."""
    config = AXK1Config.preset("k1")
    cache = LatentCache(config, capacity=10)
    for index in range(config.num_hidden_layers):
        for _ in range(10):
            cache.layers[index].append_space(1, 1, torch.bfloat16, torch.device("cpu"))
    assert cache.nbytes == 10 * 70_272

    layer, moves, place, most = LatentLayer(C, R), 0, 0, 3 * GROWTH
    for length in range(1, most + 1):
        layer.append_space(2, 1, torch.float32, torch.device("cpu"))
        assert layer.buffer is not None
        moves, place = moves + (layer.buffer.data_ptr() != place), layer.buffer.data_ptr()
        if length & (length - 1) == 0 or length % 1000 == 0:
            needed = length * 2 * (C + R) * 4
            assert needed <= layer.nbytes <= needed + min(length, GROWTH) * 2 * (C + R) * 4
    assert moves <= 2 + GROWTH.bit_length() + most // GROWTH, "appending copies what is there now and then only"


def test_a_long_prompt_takes_no_more_than_it_needs() -> None:
    layer = LatentLayer(C, R)
    layer.update(torch.zeros(1, 1, 100, C), torch.zeros(1, 1, 100, R))
    assert layer.nbytes == 100 * (C + R) * 4
    layer.crop(-40)
    assert layer.get_seq_length() == 60 and layer.nbytes == 100 * (C + R) * 4
    layer.update(torch.ones(1, 1, 40, C), torch.ones(1, 1, 40, R))
    assert layer.nbytes == 100 * (C + R) * 4, "cropped columns are written again"


def test_reset_serves_another_batch_and_dtype() -> None:
    layer = LatentLayer(C, R, capacity=8)
    layer.update(torch.zeros(3, 1, 5, C), torch.zeros(3, 1, 5, R))
    layer.reset()
    assert layer.get_seq_length() == 0
    keys, values = layer.update(torch.ones(2, 1, 3, C).bfloat16(), torch.ones(2, 1, 3, R).bfloat16())
    assert keys.shape == (2, 1, 3, C) and values.shape == (2, 1, 3, R) and keys.dtype == torch.bfloat16
    assert keys.eq(1).all() and values.eq(1).all()


def test_what_cannot_be_is_refused() -> None:
    layer = LatentLayer(C, R)
    layer.update(torch.zeros(3, 1, 2, C), torch.zeros(3, 1, 2, R))
    with pytest.raises(ValueError, match="holds a batch of 3, the new tokens are a batch of 1"):
        layer.update(torch.zeros(1, 1, 2, C), torch.zeros(1, 1, 2, R))
    with pytest.raises(ValueError, match="as a negative number"):
        layer.crop(1)
    layer.crop(torch.tensor(-9))  # pyright: ignore[reportArgumentType] - as older versions of transformers do
    assert type(layer.length) is int
    assert layer.get_seq_length() == 0, "no more than all can be removed"


def test_gradients_flow_through_a_cache() -> None:
    """Under autograd nothing is written in place: chunks give the gradients of the whole sequence."""
    ids, found = tokens(1, 8), []
    for sizes in ([8], [5, 1, 2]):
        model, cache, logits = small_model(), None, []
        for chunk in ids.split(sizes, dim=1):
            output = model(chunk, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits)
        torch.cat(logits, dim=1).pow(2).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-3, atol=1e-3), name


def test_filled_in_inference_mode_read_outside_it() -> None:
    model, ids = small_model(), tokens(1, 8)
    with torch.inference_mode():
        cache = model(ids[:, :6], use_cache=True).past_key_values
    with torch.no_grad():
        logits = model(ids[:, 6:], past_key_values=cache).logits
        assert (logits - model(ids).logits[:, 6:]).abs().max() < 1e-4


@torch.no_grad()
def test_a_copy_goes_its_own_way() -> None:
    """A prompt's cache, kept and continued twice."""
    model, ids = small_model(), tokens(1, 8)
    prompt = model(ids[:, :5], use_cache=True).past_key_values
    for rest in (ids[:, 5:], tokens(1, 3, seed=7)):
        logits = model(rest, past_key_values=copy.deepcopy(prompt)).logits
        expected = model(torch.cat([ids[:, :5], rest], dim=1)).logits[:, 5:]
        assert (logits - expected).abs().max() < 1e-4
    assert prompt.get_seq_length() == 5


@torch.no_grad()
def test_who_gets_one() -> None:
    model, ids = small_model(num_nextn_predict_layers=1), tokens(2, 4)
    settings: dict[str, Any] = dict(
        max_new_tokens=3, do_sample=False, pad_token_id=PAD, return_dict_in_generate=True, disable_compile=True
    )

    def made(**extra: Any) -> Any:
        return model.generate(ids, **settings, **extra).past_key_values

    assert type(made()) is LatentCache and len(made()) == model.config.num_hidden_layers + 1
    assert type(made(cache_implementation="dynamic")) is LatentCache
    assert type(made(num_beams=2)) is LatentCache
    assert isinstance(made(cache_implementation="static"), StaticCache)
    given = DynamicCache(config=model.config)
    assert made(past_key_values=given) is given
    assert type(model(ids, use_cache=True).past_key_values) is LatentCache
    assert type(model.train()(ids, use_cache=True).past_key_values) is DynamicCache
    assert model(ids, use_cache=False).past_key_values is None


@torch.no_grad()
def test_known_length_is_allocated_once() -> None:
    model, ids = small_model(), tokens(2, 12)
    cache, places = LatentCache(model.config, capacity=12), set()
    for start in range(0, 12, 3):
        model(ids[:, start : start + 3], past_key_values=cache)
        places.add(tuple(layer.joint.data_ptr() for layer in cache.layers))
    assert len(places) == 1
    width = model.config.kv_lora_rank + model.config.qk_rope_head_dim
    assert cache.nbytes == 3 * 2 * 12 * width * 4


def test_a_cache_of_another_kind_is_refused() -> None:
    """Keys and values a head (of a prefix, or of another model), or latents of another width."""
    model, other = small_model(), DynamicCache()
    other.update(torch.zeros(1, 2, 4, 16), torch.zeros(1, 2, 4, 16), 0)
    with pytest.raises(ValueError, match=r"keys of 2 heads and 16 values.*prefix tuning"):
        model(tokens(1, 3), past_key_values=other)
    narrow = LatentCache(AXK1Config.preset("nano", kv_lora_rank=10))
    narrow.update(torch.zeros(1, 1, 4, 10), torch.zeros(1, 1, 4, 64), 0)
    with pytest.raises(ValueError, match="1 heads and 10 values"):
        model(tokens(1, 3), past_key_values=narrow)
