"""MLA and its rotary embedding: against complex numbers and the YaRN paper, and what the cache holds."""

import math
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import YARN, pack_rows, pad_rows, small_model, tokens

from axk1 import AXK1Config
from axk1.config import K1_ROPE
from axk1.kernels import dispatch, prompt_attention
from axk1.kernels.prompt_attention import blocked_attention
from axk1.modeling.attention import AXK1Attention, eager_attention, softmax_scale
from axk1.modeling.rope import AXK1RotaryEmbedding, rotate


def rope_config(rope: dict[str, Any], dim: int = 64, longest: int = 131_072) -> AXK1Config:
    return AXK1Config(vocab_size=8, qk_rope_head_dim=dim, rope_parameters=rope, max_position_embeddings=longest)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    queries=st.integers(1, 40),
    before=st.integers(0, 20),
    block=st.sampled_from([1, 7, 16, 256]),
    kind=st.sampled_from(["causal", "bool", "added"]),
    seed=st.integers(0, 2**16),
)
@torch.no_grad()
def test_attention_in_blocks_is_the_plain_one(
    batch: int, heads: int, queries: int, before: int, block: int, kind: str, seed: int
) -> None:
    """What runs in place of ``sdpa`` for prompts in 16 bits, here in fp32: any block, mask and number of tokens before;
    the values are a part of a wider tensor."""
    generator = torch.Generator().manual_seed(seed)
    seen = before + queries
    query, key = torch.randn(2, batch, heads, seen, 6, generator=generator)
    query = query[:, :, before:]
    value = torch.randn(batch, seen, heads, 9, generator=generator).transpose(1, 2)[..., 4:]
    visible = torch.ones(queries, seen, dtype=torch.bool).tril(before).expand(batch, 1, -1, -1)
    if kind != "causal":  # columns that are hidden from all, as padding is; a query sees at least itself
        visible = visible & (torch.rand(batch, 1, 1, seen, generator=generator) < 0.7)
        visible = visible | torch.ones(queries, seen, dtype=torch.bool).triu(before).tril(before)
    added = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    mask = {"causal": None, "bool": visible, "added": added}[kind]
    module = torch.nn.Identity()
    expected, _ = eager_attention(module, query, key, value, added, scaling=0.4)
    with patch.object(prompt_attention, "QUERY_BLOCK", block):
        found, _ = blocked_attention(module, query, key, value, mask, scaling=0.4)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_where_attention_runs_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """For prompts in 16 bits, in place of ``sdpa``; fp32 and what is chosen for itself are left alone."""
    ran: list[int] = []

    def spy(module: Any, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        ran.append(query.shape[2])
        return blocked_attention(module, query, *args, **kwargs)

    monkeypatch.setattr(dispatch, "blocked_attention", spy)
    model, ids = small_model(), tokens(2, 9)
    model(ids, use_cache=False)
    assert not ran
    model = model.bfloat16()
    model(ids, use_cache=False)
    assert ran == [9, 9, 9]
    model(ids[:, :1], use_cache=False)
    model(ids, use_cache=False, is_causal=False)
    with torch.enable_grad():
        model(ids, use_cache=False)
    model.set_attn_implementation("eager")
    model(ids, use_cache=False)
    assert len(ran) == 3


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), dim=st.sampled_from([2, 8]), interleave=st.booleans())
def test_rotation_is_a_complex_product(seed: int, dim: int, interleave: bool) -> None:
    """Pairs (0, 1), (2, 3), ... or (i, i + d/2) turn by their angle; first members come first in the result."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 5, dim, generator=generator)
    angles = torch.randn(2, 5, dim // 2, generator=generator)
    first, second = (x[..., 0::2], x[..., 1::2]) if interleave else (x[..., : dim // 2], x[..., dim // 2 :])
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)[:, None]
    found = rotate(x, angles.cos(), angles.sin(), interleave)
    assert torch.allclose(found, torch.cat([turned.real, turned.imag], dim=-1), atol=1e-5)


def test_scores_depend_on_distance_only() -> None:
    rope = AXK1RotaryEmbedding(rope_config(dict(K1_ROPE)))
    q, k = torch.randn(1, 1, 1, 64), torch.randn(1, 1, 1, 64)

    def score(at: int, other: int) -> float:
        a, b = (rotate(v, *rope(v, torch.tensor([[p]]))) for v, p in ((q, at), (k, other)))
        return (a * b).sum().item()

    assert score(5, 2) == pytest.approx(score(1005, 1002), abs=1e-3)
    assert abs(score(5, 2) - score(9, 2)) > 1e-2


def test_released_yarn() -> None:
    """cos/sin x 1.138629, softmax scale 192^-0.5, fast dimensions untouched, slow ones divided by 4."""
    config = AXK1Config.preset("k1")
    rope = AXK1RotaryEmbedding(config)
    assert rope.attention_scaling == pytest.approx(1.138629, abs=1e-6) == 0.1 * math.log(4) + 1
    assert softmax_scale(config) == 192**-0.5
    cos, sin = rope(torch.zeros(1), torch.tensor([[0]]))
    assert torch.allclose(cos, torch.full((1, 1, 32), 1.138629)) and not sin.any()
    plain = torch.tensor([10_000 ** (-2 * i / 64) for i in range(32)])

    def boundary(rotations: float) -> float:  # the dimension that turns this often over the original context
        return 64 * math.log(32_768 / (rotations * 2 * math.pi)) / (2 * math.log(10_000))

    low, high = math.floor(boundary(32)), math.ceil(boundary(1))
    kept = 1 - ((torch.arange(32) - low) / (high - low)).clamp(0, 1)
    assert torch.allclose(rope.inv_freq, plain / 4 * (1 - kept) + plain * kept, rtol=1e-5)
    assert 0 < low < high < 31 and torch.allclose(rope.inv_freq[: low + 1], plain[: low + 1], rtol=1e-6)


def test_plain_rope() -> None:
    rope = AXK1RotaryEmbedding(rope_config({"rope_type": "default", "rope_theta": 500.0}, dim=8))
    position = torch.tensor([[3, 70]])
    cos, sin = rope(torch.zeros(1), position)
    for t, p in enumerate((3, 70)):
        for i in range(4):
            angle = p * 500 ** (-2 * i / 8)
            assert cos[0, t, i].item() == pytest.approx(math.cos(angle), abs=1e-5)
            assert sin[0, t, i].item() == pytest.approx(math.sin(angle), abs=1e-5)
    assert rope(torch.zeros(1, dtype=torch.bfloat16), position)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("rope", "factor"),
    [
        ({"rope_type": "default", "rope_theta": 1e4, "mscale_all_dim": 1.0, "factor": 4.0}, 1.0),
        ({**K1_ROPE, "mscale_all_dim": 1.0}, (0.1 * math.log(4) + 1) ** 2),
        ({**K1_ROPE, "mscale_all_dim": 0.5}, (0.05 * math.log(4) + 1) ** 2),
        ({**K1_ROPE, "mscale_all_dim": 1.0, "factor": 1.0}, 1.0),
        ({k: v for k, v in K1_ROPE.items() if k != "mscale_all_dim"}, 1.0),
    ],
)
def test_softmax_scale(rope: dict[str, Any], factor: float) -> None:
    assert softmax_scale(rope_config(rope)) == pytest.approx(192**-0.5 * factor)


def test_released_cache_is_576_values_a_token() -> None:
    """512 latent + 64 rotary values a token and layer: 70,272 bytes over 61 layers in bf16."""
    from transformers import DynamicCache

    config = AXK1Config.preset("k1", hidden_size=16, num_attention_heads=2, q_lora_rank=8)
    attention, cache = AXK1Attention(config, 0), DynamicCache(config=config)
    rope = AXK1RotaryEmbedding(config)
    x = torch.randn(1, 3, 16)
    attention(x, rope(x, torch.arange(3)[None]), past_key_values=cache)
    layer: Any = cache.layers[0]
    assert layer.keys.shape == (1, 1, 3, 512) and layer.values.shape == (1, 1, 3, 64)
    held = (layer.keys.numel() + layer.values.numel()) // 3
    assert held * 2 * config.num_hidden_layers == 70_272 == 576 * 2 * 61


@pytest.mark.parametrize("mscale_all_dim", [0.0, 1.0])
@torch.no_grad()
def test_eager_equals_sdpa_and_rows_sum_to_one(mscale_all_dim: float) -> None:
    outputs = []
    for implementation in ("eager", "sdpa"):
        model = small_model(rope_parameters={**YARN, "mscale_all_dim": mscale_all_dim})
        model.set_attn_implementation(implementation)
        outputs.append(model(tokens(2, 10), output_attentions=implementation == "eager"))
    eager, sdpa = outputs
    assert (eager.logits - sdpa.logits).abs().max() < 1e-4
    assert len(eager.attentions) == 3
    for weights in eager.attentions:
        assert weights.shape == (2, 2, 10, 10)
        assert torch.allclose(weights.sum(-1), torch.ones(2, 2, 10), atol=1e-5)
        assert not weights.triu(1).any(), "a position saw the future"


@torch.no_grad()
def flex_difference(layout: str) -> float:
    ids = tokens(1, 40)
    inputs: dict[str, Any] = {"input_ids": ids}
    real = torch.ones_like(ids).bool()
    if layout == "padded":
        padded, mask = pad_rows([tokens(1, 40)[0], tokens(1, 21)[0]], "left")
        inputs, real = {"input_ids": padded, "attention_mask": mask}, mask.bool()
    if layout == "packed":
        packed, positions = pack_rows([tokens(1, 25)[0], tokens(1, 15)[0]])
        inputs = {"input_ids": packed, "position_ids": positions}
    model = small_model(qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16)  # flex takes heads from 16 up
    expected = model(**inputs).logits
    model.set_attn_implementation("flex_attention")
    return (model(**inputs).logits - expected)[real].abs().max().item()


@pytest.mark.parametrize("layout", ["whole", "padded", "packed"])
def test_flex_attention_equals_sdpa(layout: str) -> None:
    """Masks and scale, with flex's own uncompiled path: compiling its kernel takes minutes on a CPU."""
    with torch.compiler.set_stance("force_eager"):
        assert flex_difference(layout) < 1e-4


@pytest.mark.slow
def test_compiled_flex_attention_equals_sdpa() -> None:
    assert flex_difference("packed") < 1e-4


def test_registered_attention_gets_what_flash_attention_needs() -> None:
    """Any function of the interface is called with MLA's shapes, the scale, and positions that tell documents apart."""
    from transformers import AttentionInterface

    calls: list[dict[str, Any]] = []

    def spy(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        calls.append(kwargs | {"shapes": [tuple(x.shape) for x in (query, key, value)], "causal": module.is_causal})
        return torch.zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None

    AttentionInterface.register("spy", spy)
    model = small_model(qk_nope_head_dim=4, qk_rope_head_dim=8, v_head_dim=6)
    model.set_attn_implementation("spy")
    ids, positions = pack_rows([tokens(1, 3)[0], tokens(1, 4)[0]])
    model(ids, position_ids=positions)
    assert len(calls) == 3
    for call in calls:
        assert call["shapes"] == [(1, 2, 7, 12), (1, 2, 7, 12), (1, 2, 7, 6)]
        assert call["scaling"] == 12**-0.5 and call["causal"] and call["dropout"] == 0.0
        assert torch.equal(call["position_ids"], positions)


def test_attention_dropout_only_in_training() -> None:
    model, ids = small_model(attention_dropout=0.5), tokens(2, 12)
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.allclose(model(ids).logits, model(ids).logits)
