"""Weights packed without loss: every bit comes back, and a step has the bits it has with the weights as they were."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import axk1.chat
from axk1 import AXK1Config, AXK1ForCausalLM
from axk1.generation.sampling import GREEDY
from axk1.kernels import available
from axk1.kernels.dispatch import executor
from axk1.kernels.lossless import (
    BLOCK,
    Packed,
    PackedExperts,
    PackedLinear,
    pack,
    pack_plainly,
    pack_weights,
    unpack,
    unpack_weights,
)
from axk1.modeling.cache import LatentCache

READ = available()
kernels = pytest.mark.skipif(not READ, reason="no kernels for packed weights on this machine")


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    """bfloat16 stacks: normal values, and any bits at all (infinities, NaN, denormals) in some blocks."""
    shape = draw(st.sampled_from([(1, 64), (3, 128), (2, 3, 192)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    weight = torch.randn(shape, generator=generator) * draw(st.sampled_from([0.0, 1e-38, 1e-3, 1.0, 1e38]))
    weight = weight.bfloat16()
    anything = torch.randint(-(2**15), 2**15, shape, generator=generator).to(torch.int16).view(torch.bfloat16)
    chosen = torch.rand(*shape[:-1], shape[-1] // BLOCK, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    return torch.where(chosen.repeat_interleave(BLOCK, -1), anything, weight)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int16)


@settings(max_examples=80, deadline=None)
@given(weights())
def test_every_bit_comes_back(weight: torch.Tensor) -> None:
    packed, width = pack(weight), weight.shape[-1]
    flat = bits(weight).view(-1, width)
    assert torch.equal(bits(unpack(packed)), flat)
    assert torch.equal(bits(unpack(packed, 1)), flat[1:]) and torch.equal(bits(unpack(packed, 0, 1)), flat[:1])
    plain = pack_plainly(weight)
    assert all(torch.equal(mine, reference) for mine, reference in zip(packed, plain, strict=True))


def test_a_quarter_is_saved() -> None:
    weight = torch.randn(512, 1024).bfloat16()
    packed = pack(weight)
    assert sum(part.nbytes for part in packed) < 0.77 * weight.nbytes


@pytest.mark.parametrize("weight", [torch.zeros(2, 64), torch.zeros(2, 96, dtype=torch.bfloat16)])
def test_what_cannot_be_packed_is_refused(weight: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="bfloat16 ones on the CPU whose rows are a multiple of 64"):
        pack(weight)


def model() -> Any:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 192,
        "moe_intermediate_size": 64,
        "vocab_size": 96,
    }
    latent: dict[str, Any] = {
        "q_lora_rank": 64,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
    }
    experts: dict[str, Any] = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4}
    config = AXK1Config(num_hidden_layers=3, num_attention_heads=4, **shape, **latent, **experts)
    made: Any = AXK1ForCausalLM(config).bfloat16().eval()
    with torch.no_grad():  # a few blocks that are kept as they are
        for weight in (made.model.layers[0].self_attn.o_proj.weight, made.model.layers[1].mlp.experts.down_proj):
            weight.view(-1)[::1000] = 1e-20
    return made


def steps(given: Any, lengths: list[int]) -> list[torch.Tensor]:
    """Logits of steps of these many tokens, one behind the other."""
    torch.manual_seed(1)
    ids = torch.randint(0, given.config.vocab_size, (2, sum(lengths)))
    cache, found, start = LatentCache(given.config), [], 0
    for length in lengths:
        here = slice(start, start + length)
        found.append(given(input_ids=ids[:, here], past_key_values=cache, use_cache=True).logits)
        start += length
    return found


@kernels
@torch.no_grad()
def test_a_step_has_the_same_bits() -> None:
    given, lengths = model(), [40, 1, 1, 2, 3, 5, 7, 70, 1]  # prompts, single tokens, several to verify
    before = steps(given, lengths)
    freed = pack_weights(given)
    kinds = [type(module) for module in given.modules()]
    assert PackedExperts in kinds and PackedLinear in kinds and freed > 0
    assert executor(given, torch.bfloat16) is not None, "packed weights are read by the kernels"
    after = steps(given, lengths)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@torch.no_grad()
def test_the_plain_path_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("axk1.kernels.native.available", lambda: False)
    given = model()
    before = {name: weight.clone() for name, weight in given.state_dict().items()}
    linear = given.model.layers[0].self_attn.o_proj
    experts = given.model.layers[1].mlp.experts
    x = torch.randn(6, 128).bfloat16()
    indices, shares = torch.randint(0, 8, (6, 4)), torch.rand(6, 4)
    expected = experts.float()(x.float(), indices, shares)
    experts.bfloat16()
    product = linear(x)
    pack_weights(given)
    packed = given.model.layers[1].mlp.experts
    assert torch.equal(given.model.layers[0].self_attn.o_proj(x), product)
    torch.testing.assert_close(packed(x.float(), indices, shares), expected)
    assert packed(x, indices, shares).dtype == torch.bfloat16
    unpack_weights(given)
    after = given.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


@torch.no_grad()
def test_float32_states_take_the_plain_path() -> None:
    given, lengths = model(), [5, 1]
    pack_weights(given)
    found = steps(given.float(), lengths)  # packed weights stay as they are
    unpack_weights(given)
    torch.testing.assert_close(found, steps(given.float(), lengths))


def test_packed_weights_are_not_saved(tmp_path: Path) -> None:
    given = model()
    pack_weights(given)
    with pytest.raises(ValueError, match=r"unpack_weights\(model\) first"):
        given.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@kernels
def test_the_nano_packed_replies_as_in_bfloat16() -> None:
    question: list[dict[str, Any]] = [{"role": "user", "content": "What is 17 + 25 - 9?"}]
    replies = [
        axk1.chat.load(dtype=dtype).reply(question, think=True, sampling=GREEDY) for dtype in ("bfloat16", "packed")
    ]
    assert (
        replies[0].reasoning == replies[1].reasoning and replies[1].answer == replies[0].answer == "The answer is 33."
    )


@torch.no_grad()
def test_a_stack_is_unpacked_by_matrix() -> None:
    stack = torch.randn(4, 8, 128).bfloat16()
    stack[1, 3, :64] = 1e-30
    stack[1, 3, 5] = 1.0  # this block is wide
    packed = pack(stack)
    for expert in range(4):
        assert torch.equal(unpack(Packed(*packed), expert * 8, 8), stack[expert])
