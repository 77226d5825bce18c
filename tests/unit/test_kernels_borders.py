"""Shapes come from files and callers: whatever the kernels are given, they compute it or refuse it."""

import shutil
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LNTuningConfig, get_peft_model

import axk1.kernels
from axk1 import AXK1Config, AXK1ForCausalLM
from axk1.kernels import native
from axk1.modeling.cache import LatentCache

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
IDS = torch.randint(1, 90, (1, 9), generator=torch.Generator().manual_seed(0))


def make_model(**fields: Any) -> AXK1ForCausalLM:
    torch.manual_seed(0)
    config = AXK1Config.preset("nano", **{"num_hidden_layers": 2, "initializer_range": 0.1, **fields})
    return AXK1ForCausalLM(config).eval()


def check_cached_equals_plain(model: Any, ids: torch.Tensor = IDS) -> None:
    """Prompt and one more token through the cache, against the modules over the whole sequence."""
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits[:, -1]
        cache = LatentCache(model.config)
        model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
        found = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1]
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def test_the_widest_rotary_keys_that_a_configuration_may_have() -> None:
    check_cached_equals_plain(make_model(qk_rope_head_dim=1024))


def test_frequencies_of_another_width_are_refused() -> None:
    assert axk1.kernels.available()
    model = make_model()
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq[:1].clone()
    cache = LatentCache(model.config)
    with torch.no_grad(), pytest.raises(ValueError, match="frequencies for another width"):
        model(input_ids=IDS, past_key_values=cache, use_cache=True)


def test_a_cache_of_another_configuration_is_refused() -> None:
    model, other = make_model(), make_model(kv_lora_rank=16)
    with torch.no_grad(), pytest.raises(ValueError, match="cache of another configuration"):
        model(input_ids=IDS, past_key_values=LatentCache(other.config), use_cache=True)


@pytest.mark.parametrize("width", [1, 32, 4096])
def test_embeddings_of_another_width_are_refused(width: int) -> None:
    model = make_model()
    with torch.no_grad(), pytest.raises((ValueError, RuntimeError)):
        model(inputs_embeds=torch.zeros(1, 3, width), past_key_values=LatentCache(model.config), use_cache=True)


@pytest.mark.parametrize("positions", [torch.empty(1, 0, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64)])
def test_positions_of_another_number_are_refused(positions: Any) -> None:
    model = make_model()
    cache = LatentCache(model.config)
    with torch.no_grad(), pytest.raises((ValueError, RuntimeError)):
        model(input_ids=IDS, position_ids=positions, past_key_values=cache, use_cache=True)


def test_weights_replaced_after_the_first_step_are_not_read_after_they_are_freed() -> None:
    model = make_model()
    cache = LatentCache(model.config)
    with torch.no_grad():
        model(input_ids=IDS, past_key_values=cache, use_cache=True)
        for parameter in model.parameters():
            parameter.data = torch.full_like(parameter.data, torch.nan)
        logits = model.model(input_ids=IDS[:, :1], past_key_values=cache, use_cache=True).last_hidden_state
    assert logits.shape == (1, 1, model.config.hidden_size)


@pytest.mark.parametrize(
    ("x", "weight", "scale"),
    [
        (torch.zeros(2, 8), torch.zeros(4, 16), None),
        (torch.zeros(2, 8), torch.zeros(2, 4, 8), None),
        (torch.zeros(2, 8), torch.zeros(4, 0), None),
        (torch.zeros(2, 0), torch.zeros(4, 8), None),
        (torch.zeros(2, 8), torch.zeros(4, 8, dtype=torch.int8), torch.ones(3, 1)),
        (torch.zeros(2, 64), torch.zeros(4, 32, dtype=torch.uint8), torch.ones(4, 0)),
        (torch.zeros(2, 64), torch.zeros(4, 32, dtype=torch.uint8), torch.ones(4, 3)),
        (torch.zeros(2, 64), torch.zeros(4, 32, dtype=torch.uint8), torch.ones(1, 2)),
        (torch.zeros(2, 64), torch.zeros(4, 96, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)),
    ],
)
def test_linear_refuses_shapes_that_do_not_fit(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None
) -> None:
    assert axk1.kernels.available()
    with pytest.raises((ValueError, RuntimeError)):
        native.linear(x, weight, scale, True)


def test_norms_with_adapters_or_another_eps_are_seen() -> None:
    """PEFT's LayerNorm tuning wraps norms, whose ``weight`` attribute still answers with the base weight."""
    model = make_model()
    adapted = get_peft_model(model, LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"]))  # pyright: ignore
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "ln_tuning_layers" in name:
                parameter.mul_(1.5)
    check_cached_equals_plain(adapted.eval())
    other = make_model()
    other.model.layers[0].input_layernorm.eps = 0.5  # pyright: ignore
    check_cached_equals_plain(other)


def shapes(s: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Rows and columns of each weight of a MoE layer of these sizes."""
    hidden, heads, latent = s["hidden"], s["heads"], s["latent"]
    return {
        "input_layernorm": (1, hidden),
        "self_attn.q_a_proj": (s["query_rank"], hidden),
        "self_attn.q_a_layernorm": (1, s["query_rank"]),
        "self_attn.q_b_proj": (heads * (s["nope"] + s["rope"]), s["query_rank"]),
        "self_attn.kv_a_proj_with_mqa": (latent + s["rope"], hidden),
        "self_attn.kv_a_layernorm": (1, latent),
        "self_attn.kv_b_proj": (heads * (s["nope"] + s["value"]), latent),
        "self_attn.o_proj": (hidden, heads * s["value"]),
        "post_attention_layernorm": (1, hidden),
        "post_mlp_layernorm": (1, hidden),
        "mlp.gate": (s["experts"], hidden),
        "mlp.gate.e_score_correction_bias": (1, s["experts"]),
        "mlp.experts.gate_up_proj": (s["experts"] * 2 * s["expert_width"], hidden),
        "mlp.experts.down_proj": (s["experts"] * hidden, s["expert_width"]),
        "mlp.shared_experts.gate_proj": (s["shared_width"], hidden),
        "mlp.shared_experts.up_proj": (s["shared_width"], hidden),
        "mlp.shared_experts.down_proj": (hidden, s["shared_width"]),
    }


SMALL = st.integers(1, 40)
WRONG = st.sampled_from([-1, 0, 1, 7, 2**31, 2**62])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_sizes_shapes_and_steps_are_computed_or_refused(data: Any) -> None:
    """Most are right, one or another is not: a sentence or a result, and nothing else (also under sanitizers)."""
    assert axk1.kernels.available()
    wrong = data.draw(st.booleans(), "a wrong size")
    sizes = {
        name: data.draw(SMALL, name) for name in ("hidden", "nope", "value", "query_rank", "latent", "expert_width")
    }
    sizes |= {"layers": 1, "vocabulary": 9, "heads": data.draw(st.integers(1, 3)), "rope": 2 * data.draw(SMALL)}
    sizes |= {"interleave": 1, "dense_width": 3, "shared_width": data.draw(SMALL), "experts": 4, "groups": 2}
    sizes |= {"kept_groups": 1, "group_best": 2, "chosen": 2, "sigmoid": 1, "normalise": 1, "grouped": 1}
    right = dict(sizes)
    if wrong:
        sizes[data.draw(st.sampled_from(sorted(sizes)))] = data.draw(WRONG)
    exact = data.draw(st.booleans(), "exact")
    dtype = torch.float32 if exact else torch.bfloat16
    numbers = {"softmax_scale": 0.3, "eps": 1e-6, "routed_scaling": 2.5, "angle_factor": 1.0}
    try:
        layers = native.Layers(**sizes, exact=int(exact), **numbers)
        given_shapes = shapes(right if wrong else sizes)
        bad = data.draw(st.sampled_from([None, None, *given_shapes]), "a wrong shape")
        for name, (rows, columns) in given_shapes.items():
            if name == bad:
                rows, columns = data.draw(
                    st.sampled_from([(rows + 1, columns), (rows, columns + 1), (0, 1), (rows, 0)])
                )
            floats = "layernorm" in name or "bias" in name
            layers.set(0, name, torch.randn(max(rows, 0), max(columns, 0)).to(torch.float32 if floats else dtype))
        layers.set(-1, "norm", torch.ones(1, right["hidden"]))
        layers.finish()
        tokens, before = (
            data.draw(st.integers(0, 70), "tokens"),
            data.draw(st.sampled_from([0, 1, 63, 64, 100]), "cached"),
        )
        width = right["latent"] + right["rope"]
        held = [torch.zeros(64, width, dtype=dtype) for _ in range(data.draw(st.integers(0, 3), "pages"))]
        pages = torch.tensor([page.data_ptr() for page in held] or [0])
        states, out = (
            torch.randn(max(tokens, 1), right["hidden"]).to(dtype),
            torch.empty(max(tokens, 1), right["hidden"]),
        )
        fields = {
            "starts": native.numbers([0, tokens]), "cached": native.numbers([before]), "layers": native.numbers([0]),
            "wanted": native.numbers([data.draw(st.integers(-1, 71), "wanted")]), "scored": native.numbers([0]),
        }  # fmt: skip
        positions, frequencies = torch.arange(max(tokens, 1)), torch.rand(right["rope"] // 2)
        step = native.StepFields(sequences=1, prompts=data.draw(st.sampled_from([0, 1, 2, -1]), "prompts"), threads=2)
        for name, value in fields.items():
            setattr(step, name, native.ctypes.addressof(value))
        step.positions, step.frequencies, step.pages = positions.data_ptr(), frequencies.data_ptr(), pages.data_ptr()
        step.most_pages, step.cache_format = len(held), native.DTYPES[dtype]
        step.hidden, step.hidden_format, step.states = states.data_ptr(), native.DTYPES[dtype], out.data_ptr()
        layers.run(step)
        assert out[: max(int(fields["wanted"][0]), 0)].isfinite().all()
    except ValueError as error:
        assert str(error).endswith(".")


@pytest.mark.parametrize("rope", [1024, 1026, 2048, 4098])
@pytest.mark.parametrize("prompts", [0, 1])
def test_rotary_keys_of_any_width(rope: int, prompts: int) -> None:
    """Above 1,024 they once ran over a buffer on the stack; a configuration is refused there, the kernels are not."""
    sizes = {"hidden": 8, "nope": 4, "value": 4, "query_rank": 4, "latent": 4, "expert_width": 4, "rope": rope}
    sizes |= {"layers": 1, "vocabulary": 9, "heads": 1, "interleave": 1, "dense_width": 3, "shared_width": 4}
    sizes |= {"experts": 4, "groups": 2, "kept_groups": 1, "group_best": 2, "chosen": 2, "exact": 1}
    sizes |= {"sigmoid": 1, "normalise": 1, "grouped": 1}
    layers = native.Layers(**sizes, softmax_scale=0.3, eps=1e-6, routed_scaling=2.5, angle_factor=1.0)
    for name, shape in shapes(sizes).items():
        layers.set(0, name, torch.randn(shape))
    layers.set(-1, "norm", torch.ones(1, 8))
    layers.finish()
    page, out, states = torch.zeros(64, 4 + rope), torch.full((3, 8), torch.nan), torch.randn(3, 8)
    kept = [native.numbers(some) for some in ([0, 3], [0], [page.data_ptr()], [0], [3], [0])]
    positions, frequencies = torch.arange(3), torch.rand(rope // 2)
    step = native.StepFields(sequences=1, prompts=prompts, threads=2, most_pages=1)
    names = ("starts", "cached", "pages", "layers", "wanted", "scored")
    for name, value in zip(names, kept, strict=True):
        setattr(step, name, native.ctypes.addressof(value))
    step.positions, step.frequencies = positions.data_ptr(), frequencies.data_ptr()
    step.hidden, step.states = states.data_ptr(), out.data_ptr()
    layers.run(step)
    assert out.isfinite().all() and page[:3].ne(0).any(1).all() and not page[3:].any()
