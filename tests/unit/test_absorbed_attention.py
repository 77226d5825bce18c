"""Absorbed attention, and expanded attention in groups of heads, against expanded attention; what each needs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import ROPES, build, pad_rows, positions_of, random_fields, small_model, tiny_fields, tokens
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, StaticCache

from axk1 import AXK1Config
from axk1.modeling import attention
from axk1.modeling.attention import AXK1Attention, absorbing_pays, products
from axk1.modeling.cache import LatentCache

DECODING = Path(__file__).parents[2] / "docs" / "decoding.md"
FP32 = 1e-5
MASKS = ["causal", "left", "right", "holes", "none"]


@pytest.fixture(autouse=True)
def no_kernels(modules_only: None) -> None:
    """Kernels would take the steps that are looked at here."""


def draw_mask(kind: str, batch: int, new: int, cached: int, generator: torch.Generator) -> torch.Tensor | None:
    """``[batch, 1, new, cached]`` bool: causal, less padding or holes; a token always sees itself."""
    if kind == "none":
        return None
    columns = torch.arange(cached)
    causal = columns <= (torch.arange(new) + cached - new)[:, None]
    lengths = torch.randint(0, cached - new + 1, (batch, 1), generator=generator)
    real = torch.ones(batch, cached, dtype=torch.bool)
    if kind == "left":
        real = columns >= lengths
    elif kind == "right":  # behind the prompt, before the new tokens
        real = (columns < lengths) | (columns >= cached - new)
    elif kind == "holes":
        real = torch.rand(batch, cached, generator=generator) < 0.6
    itself = columns == (torch.arange(new) + cached - new)[:, None]
    return ((causal & real[:, None]) | itself)[:, None]


class Drawn:
    """One attention module and its arguments: queries, latents and a mask."""

    def __init__(
        self, fields: dict[str, Any], seed: int, batch: int, new: int, cached: int, mask: str, implementation: str
    ) -> None:
        torch.manual_seed(seed)
        config = AXK1Config(**fields)
        config._attn_implementation = implementation
        self.module = AXK1Attention(config, 0).eval()
        with torch.no_grad():
            self.module.kv_b_proj.weight.normal_(std=config.kv_lora_rank**-0.5)
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(batch, *shape, generator=generator)

        heads = config.num_attention_heads
        self.q_nope = normal(heads, new, config.qk_nope_head_dim)
        self.q_rope = normal(heads, new, config.qk_rope_head_dim)
        self.joint = normal(1, cached, config.kv_lora_rank + config.qk_rope_head_dim)
        drawn = draw_mask(mask, batch, new, cached, generator)
        if drawn is not None and implementation == "eager":
            drawn = torch.zeros(drawn.shape).masked_fill(~drawn, torch.finfo(torch.float32).min)
        self.mask, self.rank = drawn, config.kv_lora_rank

    def to(self, dtype: torch.dtype) -> None:
        self.module.to(dtype)
        self.q_nope, self.q_rope, self.joint = (x.to(dtype) for x in (self.q_nope, self.q_rope, self.joint))

    @torch.no_grad()
    def absorbed(self, workspace: int = attention.WORKSPACE) -> tuple[torch.Tensor, Any]:
        with patch.object(attention, "WORKSPACE", workspace):
            return self.module.attend_absorbed(self.q_nope, self.q_rope, self.joint, self.mask)

    @torch.no_grad()
    def expanded(self, workspace: int | None = None) -> tuple[torch.Tensor, Any]:
        """All heads at once, or as many at a time as ``workspace`` allows."""
        query = torch.cat([self.q_nope, self.q_rope], dim=-1)
        latent, k_rope = self.joint[..., : self.rank], self.joint[..., self.rank :]
        with patch.object(attention, "WORKSPACE", workspace or 0):
            return self.module.attend_expanded(
                query, latent, k_rope, self.mask, bounded=workspace is not None, is_causal=False
            )


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    fields=tiny_fields(),
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    new=st.integers(1, 16),
    past=st.integers(0, 40),
    mask=st.sampled_from(MASKS),
    implementation=st.sampled_from(["eager", "sdpa"]),
    workspace=st.sampled_from([1, 3_000, 40_000]),
)
def test_all_forms_agree(
    fields: dict[str, Any],
    seed: int,
    batch: int,
    new: int,
    past: int,
    mask: str,
    implementation: str,
    workspace: int,
) -> None:
    """Absorbed at once and in parts, expanded at once and in groups of heads: outputs, and weights where there are."""
    drawn = Drawn(fields, seed, batch, new, new + past, mask, implementation)
    expected, weights = drawn.expanded()
    heads, v_dim = fields["num_attention_heads"], fields["v_head_dim"]
    assert expected.shape == (batch, heads, new, v_dim) and expected.abs().max() > 0.01
    for found, found_weights in (drawn.absorbed(), drawn.absorbed(workspace), drawn.expanded(workspace)):
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < FP32 * max(1.0, expected.abs().max().item())
        assert (found_weights is None) == (weights is None) == (implementation == "sdpa")
        if weights is not None:
            assert found_weights.shape == (batch, heads, new, new + past)
            assert (found_weights - weights).abs().max() < FP32


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("shape", ["tiny", "released"])
def test_bf16_within_the_expanded_forms_own_distance(shape: str, implementation: str) -> None:
    """In bf16 groups of heads are as far from fp32 as all heads at once, which is transformers' form; absorbed, which
    rounds the sum once more (in the latent space), is at most sqrt(2) times as far. A whole model shows no difference:
    tests/parity."""
    released = dict(num_attention_heads=4, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    squares = {"absorbed": 0.0, "grouped": 0.0, "expanded": 0.0}
    for seed in range(8):
        fields = random_fields(seed, **(released if shape == "released" else {}))
        drawn = Drawn(
            fields, seed, batch=2, new=1 + seed, cached=300, mask=MASKS[seed % 4], implementation=implementation
        )
        drawn.to(torch.bfloat16)
        forms = {"absorbed": drawn.absorbed()[0], "grouped": drawn.expanded(1)[0], "expanded": drawn.expanded()[0]}
        drawn.to(torch.float32)
        exact = drawn.expanded()[0]
        for name, found in forms.items():
            assert found.dtype == torch.bfloat16
            squares[name] += (found.float() - exact).pow(2).mean().item() / exact.pow(2).mean().item()
    assert 0 < squares["absorbed"] <= squares["expanded"] * 2
    assert 0 < squares["grouped"] <= squares["expanded"] * 1.01


def test_masks_that_differ_between_heads() -> None:
    drawn = Drawn(
        random_fields(0, num_attention_heads=4), 0, batch=2, new=5, cached=20, mask="causal", implementation="sdpa"
    )
    assert drawn.mask is not None
    drawn.mask = drawn.mask.repeat(1, 4, 1, 1)
    drawn.mask[:, 1, :, 3:9] = drawn.mask[:, 3, :, 0] = False
    expected = drawn.expanded()[0]
    for found in (drawn.absorbed()[0], drawn.absorbed(2_000)[0], drawn.expanded(1)[0]):
        assert (found - expected).abs().max() < FP32


def test_adapted_projection_is_what_gets_absorbed() -> None:
    """Whatever stands in for ``kv_b_proj``: its matrix is what it makes of unit vectors."""

    class Adapter(torch.nn.Module):
        def __init__(self, base: torch.nn.Linear) -> None:
            super().__init__()
            self.base = base
            self.down = torch.nn.Linear(base.in_features, 3, bias=False)
            self.up = torch.nn.Linear(3, base.out_features, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + self.up(self.down(x))

    drawn = Drawn(random_fields(1), 1, batch=2, new=3, cached=20, mask="left", implementation="sdpa")
    plain = drawn.expanded()[0]
    drawn.module.kv_b_proj = Adapter(drawn.module.kv_b_proj)  # pyright: ignore
    expected = drawn.expanded()[0]
    assert (expected - plain).abs().max() > 1e-3
    for found in (drawn.absorbed()[0], drawn.expanded(1)[0]):
        assert (found - expected).abs().max() < FP32


def test_when_absorbing_pays() -> None:
    """The arithmetic at the released shapes, which docs/decoding.md quotes."""
    config, page = AXK1Config.preset("k1"), DECODING.read_text(encoding="utf-8")

    def longest(cached: int) -> int:
        return max((t for t in range(1, 300) if absorbing_pays(config, t, cached)), default=0)

    assert [longest(cached) for cached in (1, 200, 131_072)] == [0, 88, 157]
    assert "up to 88 new tokens at 200 and up to 157 at 131,072" in page
    for cached in (2_048, 8_192, 131_072):
        expanded_values = cached * config.num_attention_heads * (128 + 64 + 128)
        row = [cached, *products(config, 1, cached)]
        sizes = [2 * expanded_values, 2 * cached * (config.kv_lora_rank + config.qk_rope_head_dim)]
        assert "| " + " | ".join([f"{n:,}" for n in row] + [f"{n:,} B" for n in sizes]) + " |" in page
    for length in (1, 16, 500):
        assert not absorbing_pays(config, length, length), "prefill is expanded"


# the whole model


def calls_of(model: Any, run: Callable[[], Any]) -> tuple[Any, list[int]]:
    """What ``run`` returns, and the tokens of every absorbed call."""
    absorbed, plain = [], AXK1Attention.attend_absorbed

    def counted(self: AXK1Attention, q_nope: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        absorbed.append(q_nope.shape[2])
        return plain(self, q_nope, *args, **kwargs)

    with patch.object(AXK1Attention, "attend_absorbed", counted):
        return run(), absorbed


def new_cache(kind: str, model: Any) -> Any:
    if kind == "static":
        return StaticCache(config=model.config, max_cache_len=48)
    return DynamicCache(config=model.config) if kind == "plain" else LatentCache(model.config)


@pytest.mark.parametrize("cache", ["latent", "plain", "static"])
@pytest.mark.parametrize("side", ["left", "right", "none"])
@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_steps_behind_a_cache(seed: int, side: str, cache: str) -> None:
    """A prompt, then steps of 1 to 16 tokens: logits of the whole sequence at once, which is all expanded."""
    model = build(random_fields(seed, rope_parameters=dict(ROPES[seed % 4])), seed)
    model.set_attn_implementation("eager" if seed % 2 else "sdpa")
    rows = [tokens(1, n, seed=n)[0] for n in ((20, 20) if side == "none" else (20, 13, 17))]
    ids, mask = pad_rows(rows, "left" if side == "none" else side)
    mask = torch.cat([mask, torch.ones(len(rows), 22, dtype=torch.long)], dim=1)
    ids = torch.cat([ids, tokens(len(rows), 22, seed=5)], dim=1)
    inputs = {} if side == "none" else {"attention_mask": mask, "position_ids": positions_of(mask)}

    def run() -> torch.Tensor:
        filled, parts = new_cache(cache, model), []
        for start, end in ((0, 20), (20, 21), (21, 37), (37, 38), (38, 42)):
            cut = {
                name: value[:, :end] if name == "attention_mask" else value[:, start:end]
                for name, value in inputs.items()
            }
            parts.append(model(ids[:, start:end], past_key_values=filled, **cut).logits)
        return torch.cat(parts, dim=1)

    found, absorbed = calls_of(model, run)
    expected, none = calls_of(model, lambda: model(ids, use_cache=False, **inputs).logits)
    assert (found - expected)[mask.bool()].abs().max() < 1e-4
    layers = model.config.num_hidden_layers
    assert absorbed[-2 * layers :] == [1] * layers + [4] * layers and not none


@torch.no_grad()
def test_any_attention_function_decodes_absorbed() -> None:
    """flex (and by the same way the flash kernels, whose heads are too narrow for latents) lends sdpa the step."""
    ids, mask = pad_rows([tokens(1, 24)[0], tokens(1, 15)[0]], "left")
    model = small_model(qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16)
    expected = model(ids, attention_mask=mask).logits
    for name in ("flex_attention", "flash_attention_2"):
        model = small_model(qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16)
        for part in (None, mask):
            cache = model(ids[:, :20], attention_mask=mask[:, :20] if part is not None else None).past_key_values
            model.config._attn_implementation_internal = name

            def steps(model: Any = model, cache: Any = cache, part: Any = part) -> torch.Tensor:
                parts = []
                for start, end in ((20, 23), (23, 24)):
                    cut = None if part is None else part[:, :end]
                    parts.append(model(ids[:, start:end], past_key_values=cache, attention_mask=cut).logits)
                return torch.cat(parts, dim=1)

            found, absorbed = calls_of(model, steps)
            assert absorbed == [3] * 3 + [1] * 3
            model.config._attn_implementation_internal = "sdpa"
            row = slice(None) if part is not None else slice(1)
            assert (found - expected[:, 20:])[row].abs().max() < 1e-4


def test_someones_own_attention_is_never_bypassed() -> None:
    from transformers import AttentionInterface

    shapes = []

    def own(module: Any, query: Any, key: Any, value: Any, mask: Any, **_: Any) -> tuple[torch.Tensor, None]:
        shapes.append((query.shape[2], key.shape[2]))
        return torch.zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None

    AttentionInterface.register("own", own)
    model, ids = small_model(), tokens(1, 9)
    model.set_attn_implementation("own")
    with torch.no_grad():
        cache = model(ids[:, :8], use_cache=True).past_key_values
        model(ids[:, 8:], past_key_values=cache)
    assert shapes == [(8, 8)] * 3 + [(1, 9)] * 3


def test_training_and_gradients_expand() -> None:
    model, ids = small_model(), tokens(1, 9)
    cache = model(ids[:, :8], use_cache=True).past_key_values
    assert calls_of(model, lambda: model(ids[:, 8:], past_key_values=cache))[1] == []
    model.train()
    with torch.no_grad():
        assert calls_of(model, lambda: model(ids[:, 8:], past_key_values=cache))[1] == []


@torch.no_grad()
def test_weights_of_absorbed_steps() -> None:
    """``output_attentions`` of a decode step has a row a head, as ever."""
    model, ids = small_model(attn_implementation="eager"), tokens(2, 9)
    cache = model(ids[:, :6], use_cache=True).past_key_values
    found = model(ids[:, 6:], past_key_values=cache, output_attentions=True).attentions
    expected = model(ids, output_attentions=True, use_cache=False).attentions
    for mine, reference in zip(found, expected, strict=True):
        assert (mine - reference[:, :, 6:]).abs().max() < FP32


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [x for x in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(x, torch.Tensor)]
        inputs = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        for tensor in made:
            if tensor.untyped_storage().data_ptr() not in inputs:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def test_expanding_needs_the_workspace_and_no_more() -> None:
    """64 heads over 3,000 latents, in as much memory as one to three heads' keys and values."""
    fields = random_fields(
        0, num_attention_heads=64, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8
    )
    drawn = Drawn(fields, 0, batch=1, new=20, cached=3_000, mask="causal", implementation="sdpa")
    head = 3_000 * (8 + 8 + 8 + 8) * 4
    found = {}
    for workspace in (head, 3 * head, None):
        with Largest() as largest:
            drawn.expanded(workspace)
        found[workspace] = largest.bytes
    assert found[head] <= head and found[3 * head] <= 3 * head
    assert found[None] >= 3_000 * 64 * 16 * 4, "guards the measurement: unbounded expansion shows"


@torch.no_grad()
def test_chunked_prefill_needs_the_latents() -> None:
    """1,024 tokens in chunks: no tensor as large as the expanded keys of a layer, and the logits of one pass."""
    model = small_model(num_attention_heads=16, max_position_embeddings=4_096)
    config, ids = model.config, tokens(1, 1_024)
    expanded_keys = 1_024 * 16 * config.qk_head_dim * 4
    cache, budget = LatentCache(config, capacity=1_024), expanded_keys // 8
    with patch.object(attention, "WORKSPACE", budget), Largest() as largest:
        for start in range(0, 1_024, 64):
            logits = model.model(ids[:, start : start + 64], past_key_values=cache).last_hidden_state
    mask = 64 * 1_024 * 4  # sdpa adds masks in the dtype of the scores
    assert largest.bytes <= max(budget, mask) < expanded_keys
    assert cache.nbytes == 1_024 * 3 * (config.kv_lora_rank + config.qk_rope_head_dim) * 4
    expected = model.model(ids, use_cache=False).last_hidden_state[:, -64:]
    assert (logits - expected).abs().max() < 1e-3
