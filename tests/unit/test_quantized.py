"""Quantised numbers and modules: error bounds, bytes, and the same results as with the dequantised weights."""

import runpy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from axk1 import AXK1Config
from axk1.checkpoint.compressed import DEFAULT_GROUP, make_plan
from axk1.modeling.moe import AXK1Experts
from axk1.plan.weights import weight_sizes
from axk1.quantized import KINDS, Plan, QuantizedExperts, QuantizedLinear, Scheme
from axk1.quantized.formats import (
    CLIPS,
    LARGEST,
    Quantized,
    dequantize,
    pack_int3,
    pack_int4,
    quantize,
    squares,
    stored_scale,
    unpack_int3,
    unpack_int4,
)
from axk1.quantized.modules import GATHERED_SLOTS, INT8_TOKENS, int8_product
from axk1.quantized.plan import FUSED

SCHEMES = [Scheme("int8"), *(Scheme(kind, size) for kind in ("int4", "int3") for size in (32, 64))]
SCHEMES += [Scheme("fp8"), Scheme("fp8-block")]
PACK = {"int4": pack_int4, "int3": pack_int3}
ids = pytest.mark.parametrize


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    """Matrices 64 or 128 wide whose rows differ by orders of magnitude; some are zero, some hold an outlier."""
    rows, columns = draw(st.integers(1, 5)), draw(st.sampled_from([64, 128]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    weight = torch.randn(rows, columns, generator=generator)
    weight *= torch.tensor([draw(st.sampled_from([0.0, 1e-42, 1e-30, 1e-3, 1.0, 1e30])) for _ in range(rows)])[:, None]
    if draw(st.booleans()):
        weight[draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))] *= 1000
    return weight.to(draw(st.sampled_from([torch.float32, torch.bfloat16])))


@settings(max_examples=60, deadline=None)
@given(weights(), st.sampled_from(SCHEMES))
def test_rounding_error_is_bounded(weight, scheme):
    values, scale = quantize(weight, scheme)
    exact, kept = weight.double(), dequantize(values, scale, torch.float64)
    step = scale.double().repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)
    error = (exact - kept).abs()
    if scheme.kind == "int8":
        assert (error <= step / 2 * (1 + 1e-6)).all()
    elif scheme.packed:  # between the smallest and the largest value it can be; beyond, it is clipped
        most = LARGEST[scheme.kind]
        inside = step * (exact / step).clamp(-most - 1, most)
        assert ((inside - kept).abs() <= step.abs() / 2 * (1 + 3e-6)).all()  # times the inverse of a scale
    else:  # three bits after the leading one, and the fixed steps below the smallest normal number
        assert (error <= torch.maximum(exact.abs() / 16, step / 1024) * (1 + 1e-6)).all()
    assert scale.dtype == torch.float32 and torch.equal(scale, scale.bfloat16().float())
    assert torch.equal(stored_scale(scale, torch.bfloat16).float(), scale)


@settings(max_examples=30, deadline=None)
@given(weights(), st.sampled_from([32, 64]), st.sampled_from(["int4", "int3"]))
def test_clipping_is_chosen_where_it_lowers_the_squared_error(weight, size, kind):
    grouped = weight.double().unflatten(-1, (-1, size))

    def squared_error(quantized: Quantized) -> torch.Tensor:
        kept = dequantize(*quantized, torch.float64).unflatten(-1, (-1, size))
        return (kept - grouped).square().sum(-1)

    largest = weight.float().unflatten(-1, (-1, size)).abs().amax(-1)
    most = LARGEST[kind]
    scale = (largest / most).bfloat16().float().clamp(min=1e-37)
    numbers = (weight.float().unflatten(-1, (-1, size)) / scale[..., None]).round().clamp(-most - 1, most)
    plain = PACK[kind](numbers.flatten(-2))
    found = squared_error(quantize(weight, Scheme(kind, size)))
    assert (found <= squared_error(Quantized(plain, scale)) * (1 + 1e-3) + 1e-80).all()


@ids(("scheme", "left"), [(Scheme("int4", 128), 0.75), (Scheme("int3", 64), 0.5)], ids=str)
def test_clipping_pays_on_bell_shaped_weights(scheme, left):
    """What `docs/quantization.md` says of it: a quarter less squared error of int4, half of int3."""
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    errors = []
    for clips in (CLIPS, {scheme.kind: (1.0,)}):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("axk1.quantized.formats.CLIPS", clips)
            errors.append((dequantize(*quantize(weight, scheme)) - weight).square().mean().item())
    assert errors[0] / errors[1] == pytest.approx(left, abs=0.05)


def test_packed_bytes_by_hand():
    values = torch.tensor([[-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7]], dtype=torch.int8)
    packed = pack_int4(values)
    assert packed.dtype == torch.int32 and packed.shape == (1, 2)
    assert [word & 0xFFFFFFFF for word in packed[0].tolist()] == [0x76543210, 0xFEDCBA98]
    assert packed.view(torch.uint8).tolist() == [[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]]
    assert torch.equal(unpack_int4(packed), values)


def test_planes_by_hand():
    """Of 32 values the lower two bits, four runs of eight side by side, then the upper bits."""
    values = torch.zeros(1, 32, dtype=torch.int8)
    assert pack_int3(values).tolist() == [[0] * 8 + [0xFF] * 4]  # 4 each: only upper bits
    values[0, :8] = torch.arange(-4, 4)
    values[0, 8], values[0, 23] = 3, -4  # 7 in byte 0, bits 2 and 3; 0 in byte 7, and bit 7 of the third upper byte
    packed = pack_int3(values)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == [[0b1100, 1, 2, 3, 0, 1, 2, 3, 0xF0, 0xFF, 0x7F, 0xFF]]
    assert torch.equal(unpack_int3(packed), values)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6))
def test_packing_and_back(rows, blocks, seed):
    generator = torch.Generator().manual_seed(seed)
    for largest, pack, unpack, bits in ((4, pack_int3, unpack_int3, 3), (8, pack_int4, unpack_int4, 4)):
        shape = (2, rows, 32 * blocks)
        values = torch.randint(-largest, largest, shape, dtype=torch.int8, generator=generator)
        assert pack(values).nbytes == values.numel() * bits // 8 and torch.equal(unpack(pack(values)), values)


def test_a_matrix_by_hand():
    """Two groups of 32 in int4 and in int3; a row in int8; without any error, so that every number is known."""
    row = torch.tensor([7.0, -7, 3, 0] * 8 + [-0.25 * 7, 0.25 * 2, 0, 0] * 8)[None]
    values, scale = quantize(row, Scheme("int4", 32))
    assert scale.tolist() == [[1.0, 0.25]]
    assert values.view(torch.uint8).tolist() == [[0x1F, 0x8B] * 8 + [0xA1, 0x88] * 8]  # value + 8, the first lowest
    row = torch.tensor([3.0, -3, 1, 0] * 8 + [0.25 * 4, -0.25 * 3, 0, 0] * 8)[None]
    values, scale = quantize(row, Scheme("int3", 32))
    assert scale.tolist() == [[1.0, -0.25]]  # the four is on the upper side
    assert unpack_int3(values).tolist() == [[3, -3, 1, 0] * 8 + [-4, 3, 0, 0] * 8]
    values, scale = quantize(torch.tensor([[127.0, -64, 1, 0]]) / 4, Scheme("int8"))
    assert (values.tolist(), scale.tolist()) == ([[127, -64, 1, 0]], [[0.25]])
    values, scale = quantize(torch.tensor([[448.0, -1, 0.5, 0]]), Scheme("fp8"))
    assert (values.float().tolist(), scale.tolist()) == ([[448.0, -1, 0.5, 0]], [[1.0]])
    assert values.view(torch.uint8).tolist() == [[0x7E, 0xB8, 0x30, 0x00]]


@ids("scheme", SCHEMES, ids=str)
def test_large_matrices_are_worked_on_in_parts(monkeypatch, scheme):
    weight = torch.randn(300, 192)
    whole, measured = quantize(weight, scheme), squares(weight, quantize(weight, scheme))
    monkeypatch.setattr("axk1.quantized.formats._AT_ONCE", 1000)
    parts = quantize(weight, scheme)
    assert torch.equal(whole.values.view(torch.uint8), parts.values.view(torch.uint8))
    assert torch.equal(whole.scale, parts.scale)
    assert squares(weight, parts) == pytest.approx(measured)
    error = (dequantize(*whole).double() - weight.double()).square().sum().item()
    assert measured == pytest.approx((error, weight.double().square().sum().item()), rel=1e-5)


@ids("value", [float("nan"), float("inf")])
@ids("scheme", SCHEMES, ids=str)
def test_what_is_not_finite_is_refused(scheme, value):
    weight = torch.randn(4, 128)
    weight[2, 70] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize(weight, scheme)


def fill(module: nn.Module, name: str, quantized: Quantized, packed: str, scale: str) -> None:
    is_packed = quantized.values.dtype in (torch.int32, torch.uint8)
    module.register_buffer(packed if is_packed else name, quantized.values)
    module.register_buffer(scale, quantized.scale)


def linear(scheme: Scheme, bias: bool = False) -> tuple[QuantizedLinear, nn.Linear]:
    """A quantised module, and the ordinary one with its dequantised weights."""
    torch.manual_seed(0)
    plain, module = nn.Linear(128, 24, bias=bias), QuantizedLinear(128, 24, scheme, bias=bias)
    fill(module, "weight", quantize(plain.weight.detach(), scheme), "weight_packed", "weight_scale")
    plain.weight = nn.Parameter(module.dequantized())
    if plain.bias is not None:
        assert module.bias is not None
        module.bias.data.copy_(plain.bias.detach())
    return module, plain


@ids("dtype", [torch.float32, torch.bfloat16])
@ids("bias", [False, True])
@ids("scheme", SCHEMES, ids=str)
def test_linear_is_that_of_the_dequantised_weights(scheme, bias, dtype):
    module, plain = linear(scheme, bias)
    module, plain = module.to(dtype), plain.to(dtype)
    assert module.weight_scale.dtype == torch.float32
    for shape in ((128,), (3, 128), (2, 40, 128)):
        x = torch.randn(shape).to(dtype)
        expected = plain(x)
        assert module(x).dtype == dtype and module(x).shape == expected.shape
        torch.testing.assert_close(module(x), expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-3)


@ids("scheme", SCHEMES, ids=str)
def test_buffers_keep_their_types_and_show_their_values(scheme):
    module, plain = linear(scheme)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    nn.Sequential(module).to(torch.bfloat16).half().double()
    for name, buffer in module.named_buffers():
        assert buffer.dtype == before[name].dtype
        assert torch.equal(buffer.view(torch.uint8), before[name].view(torch.uint8))
    assert {buffer.device.type for buffer in module.to("meta").buffers()} == {"meta"}
    module, _ = linear(scheme)
    if scheme.packed:
        bits = module.values.view(torch.uint8)
        assert bits.shape == (24, 64 if scheme.kind == "int4" else 48)
        number = int(bits[5, 9]) % 16 - 8  # int4: column 18 is the low half of byte 9
        if scheme.kind == "int3":  # run 2, place 2 of the first block
            number = (int(bits[5, 2]) >> 4 & 3 | (int(bits[5, 10]) >> 2 & 1) << 2) - 4
        assert plain.weight[5, 18].item() == pytest.approx(
            number * module.weight_scale[5, 18 // scheme.group_size].item()
        )
    else:
        torch.testing.assert_close(module.values.float() * module.weight_scale, plain.weight.detach())


def experts(gate_up: Scheme, down: Scheme) -> tuple[QuantizedExperts, AXK1Experts]:
    config = AXK1Config.preset("nano", hidden_size=128, moe_intermediate_size=64, n_routed_experts=8, n_group=2)
    config._experts_implementation = "eager"
    torch.manual_seed(1)
    plain, module = AXK1Experts(config), QuantizedExperts(8, 128, 64, gate_up, down, nn.SiLU())
    for name, scheme in (("gate_up_proj", gate_up), ("down_proj", down)):
        (rows, columns), parts = getattr(plain, name)[0].shape, len(FUSED[name])
        matrices = [quantize(torch.randn(rows // parts, columns) / 8, scheme) for _ in range(8 * parts)]
        values = torch.stack([each.values.view(torch.uint8) for each in matrices]).view(matrices[0].values.dtype)
        stack = (values, torch.stack([each.scale for each in matrices]))
        stack = Quantized(*(each.unflatten(0, (8, parts)).flatten(1, 2) for each in stack))
        fill(module, name, stack, f"{name}_packed", f"{name}_scale")
        setattr(plain, name, nn.Parameter(module.dequantized(name)))
    return module, plain


@ids("tokens", [1, 3, 4, 5, 40])
@ids("scheme", SCHEMES, ids=str)
def test_experts_are_those_of_the_dequantised_weights(scheme, tokens):
    """Both ways of computing: few tokens at once, many expert by expert; some experts without a token."""
    module, plain = experts(scheme, Scheme(scheme.kind, 32) if scheme.packed else scheme)
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, 128, generator=generator)
    indices = torch.stack([torch.randperm(7, generator=generator)[:4] for _ in range(tokens)])
    weights = torch.rand(tokens, 4, generator=generator)
    assert (indices.numel() <= GATHERED_SLOTS) == (tokens <= 4)
    torch.testing.assert_close(module(x, indices, weights), plain(x, indices, weights), rtol=1e-5, atol=1e-5)
    half = module(x.bfloat16(), indices, weights)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain(x, indices, weights), rtol=0.05, atol=0.05)


def test_experts_show_their_values():
    module, plain = experts(Scheme("int4", 64), Scheme("int4", 32))
    assert module.gate_up_values.shape == (8, 128, 16) and module.down_values.shape == (8, 128, 8)
    high = int(module.down_values.view(torch.uint8)[3, 100, 7]) // 16 - 8  # column 15
    down = cast(torch.Tensor, plain.down_proj).detach()
    assert down[3, 100, 15].item() == pytest.approx(high * module.down_proj_scale[3, 100, 0].item())
    module, plain = experts(Scheme("int8"), Scheme("int8"))
    torch.testing.assert_close(
        module.gate_up_values * module.gate_up_proj_scale, cast(torch.Tensor, plain.gate_up_proj).detach()
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6))
def test_int8_activations_are_exact_integer_products(tokens, seed):
    torch.manual_seed(seed)
    matrix, x = quantize(torch.randn(24, 128), Scheme("int8")), torch.randn(tokens, 128)
    x[0] *= 0
    step = torch.where(x.abs().amax(-1, keepdim=True) > 0, x.abs().amax(-1, keepdim=True) / 127, 1.0)
    whole = (x / step).round().double() @ matrix.values.double().T
    expected = whole * step * matrix.scale.T
    torch.testing.assert_close(int8_product(x, matrix).double(), expected, rtol=1e-5, atol=1e-6)


def test_int8_activations_are_for_many_tokens():
    asked, exact = linear(Scheme("int8", activations=True))
    x = torch.randn(INT8_TOKENS, 128)
    torch.testing.assert_close(asked(x[:-1]), exact(x[:-1]), rtol=1e-5, atol=1e-5)
    error = (asked(x) - exact(x)).norm() / exact(x).norm()
    assert 1e-4 < error < 0.02


PLAN = Plan(
    (
        (("Linear",), Scheme("int4", 128)),
        ((r"re:.*mlp\.experts\.\d+\.(gate|up|down)_proj$", "model.layers.1.self_attn.o_proj"), Scheme("int8")),
    ),
    ("lm_head", r"re:.*kv_b_proj$", "model.layers.2.mlp.down_proj"),
)


@ids("prefix", ["model.", ""])
def test_names_go_before_classes(prefix):
    def kind(name: str) -> str | None:
        scheme = PLAN.scheme(name)
        return scheme and scheme.kind

    assert kind(f"{prefix}layers.0.self_attn.o_proj") == "int4"
    assert kind(f"{prefix}layers.1.self_attn.o_proj") == "int8"
    assert kind(f"{prefix}layers.3.mlp.experts.17.up_proj") == "int8"
    assert kind(f"{prefix}layers.2.mlp.down_proj") is None and kind(f"{prefix}layers.3.mlp.down_proj") == "int4"
    assert kind(f"{prefix}layers.0.self_attn.kv_b_proj") is None and kind("lm_head") is None
    assert PLAN.expert_schemes(f"{prefix}layers.3.mlp.experts") == (Scheme("int8"), Scheme("int8"))


@ids("kind", KINDS)
@ids("activations", [False, True])
def test_plans_are_read_as_they_are_written(kind, activations):
    if kind in DEFAULT_GROUP and activations:
        pytest.skip("no such plan")
    for preset in ("nano", "mini", "k1"):
        plan = make_plan(AXK1Config.preset(preset), kind, activations=activations)
        assert Plan.from_dict(plan.to_dict()) == plan
    assert Plan.from_dict({**PLAN.to_dict(), "format": "mixed-precision"}) == PLAN


def test_group_sizes_follow_the_widths():
    k1 = make_plan(AXK1Config.preset("k1"), "int4")
    kv_b = ((r"re:.*kv_b_proj$",), Scheme("int8", activations=True))
    assert k1.groups == ((("Linear",), Scheme("int4", 128)), kv_b)
    nano = make_plan(AXK1Config.preset("nano"), "int4")

    def size(name: str) -> int | None:
        scheme = nano.scheme(f"model.layers.2.{name}")
        return scheme and scheme.group_size

    assert nano.groups[0][0] == ("Linear",) and size("self_attn.q_b_proj") == 32  # most weights have this one
    assert size("self_attn.q_a_proj") == 64 and size("self_attn.o_proj") == 128 and size("mlp.down_proj") == 128
    assert nano.expert_schemes("model.layers.2.mlp.experts") == (Scheme("int4", 32), Scheme("int4", 32))
    assert size("eh_proj") == 128 and size("mlp.gate") is None
    assert nano.scheme("model.layers.2.self_attn.kv_b_proj") == Scheme("int8", activations=True)
    small = make_plan(AXK1Config.preset("nano"), "int4", 32)
    assert small.groups == ((("Linear",), Scheme("int4", 32)), kv_b)
    odd = make_plan(AXK1Config.preset("nano", q_lora_rank=100), "int4")
    assert odd.scheme("model.layers.0.self_attn.q_b_proj") is None and odd.scheme("model.layers.0.self_attn.o_proj")
    with pytest.raises(ValueError, match="group_size=48 must be one of 128, 64, 32"):
        make_plan(AXK1Config.preset("nano"), "int4", 48)
    widths = dict(hidden_size=40, intermediate_size=40, moe_intermediate_size=8, q_lora_rank=8, v_head_dim=6)
    with pytest.raises(ValueError, match="multiple of 32"):
        make_plan(AXK1Config.preset("nano", **widths), "int4")


def test_three_bits_by_default_in_groups_of_64():
    assert make_plan(AXK1Config.preset("k1"), "int3").groups[0] == (("Linear",), Scheme("int3", 64))
    nano = make_plan(AXK1Config.preset("nano"), "int3")
    assert nano.expert_schemes("model.layers.2.mlp.experts") == (Scheme("int3", 32), Scheme("int3", 32))
    assert {scheme.kind for _, scheme in nano.groups} == {"int3", "int8"}  # int8: kv_b_proj


def group(kind: Any = "int4", size: int | None = 128, **changes: Any) -> dict[str, Any]:
    base = Scheme(kind, size).to_dict(["Linear"])
    return {**base, "weights": {**base["weights"], **changes}}


def block(**changes: Any) -> dict[str, Any]:
    return group("fp8-block", None, **changes)


TOKEN = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}


@ids(
    ("values", "words"),
    [
        ({"config_groups": {}}, "no 'config_groups'"),
        ({"config_groups": {"W4A16": ["Linear"]}}, "presets"),
        ({"quantization_status": "frozen"}, "'frozen', not 'compressed'"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ({"ignore": []}, "lm_head is quantised"),
        ({"ignore": ["lm_head", "re:("]}, "no pattern"),
        ({"ignore": "lm_head"}, "no list of names"),
        ({"config_groups": {"group_0": group(symmetric=False)}}, "symmetric"),
        ({"config_groups": {"group_0": group(num_bits=3)}}, "'num_bits': 3"),
        ({"config_groups": {"group_0": group(group_size=12)}}, "weights are quantised as"),
        ({"config_groups": {"group_0": group("int3", group_size=40)}}, "'group_size': 40"),
        ({"config_groups": {"group_0": group("int3", strategy="channel")}}, "weights are quantised as"),
        ({"config_groups": {"group_0": {**group("int3"), "format": "pack-quantized"}}}, "in format 'pack-quantized'"),
        ({"config_groups": {"group_0": group(actorder="group")}}, "'actorder': 'group'"),
        ({"config_groups": {"group_0": {**group(), "format": "int-quantized"}}}, "in format 'int-quantized'"),
        ({"config_groups": {"group_0": {**group(), "input_activations": {"num_bits": 8}}}}, "activations"),
        ({"config_groups": {"group_0": block(block_structure=[64, 128])}}, "'block_structure': [64, 128]"),
        ({"config_groups": {"group_0": block(num_bits=4)}}, "'num_bits': 4"),
        ({"config_groups": {"group_0": block(type="int")}}, "'strategy': 'block'"),
        ({"config_groups": {"group_0": {**block(), "format": "pack-quantized"}}}, "in format 'pack-quantized'"),
        (
            {"config_groups": {"group_0": {**block(), "input_activations": TOKEN}}},
            "read are 8 bits, a scale for each 128 inputs",
        ),
    ],
)
def test_what_cannot_be_computed_with_is_refused_in_one_sentence(values, words):
    plan = make_plan(AXK1Config.preset("k1"), "int4").to_dict()
    with pytest.raises(ValueError) as error:
        Plan.from_dict({**plan, **values})
    assert words in str(error.value) and "\n" not in str(error.value)


def test_sizes_of_the_released_model():
    config = AXK1Config.preset("k1")
    full = weight_sizes(config)
    assert (full.total, full.per_token) == (1_037_966_118_912, 2 * 31_604_927_488)
    int4 = weight_sizes(config, make_plan(config, "int4"))
    assert int4.total / full.total == pytest.approx(4.125 / 16, rel=0.05)


def test_the_page_has_the_sizes_of_the_code():
    page = Path(__file__).parents[2] / "docs" / "quantization.md"
    written = runpy.run_path(str(page.with_suffix(".py")))["with_sizes"](page.read_text(encoding="utf-8"))
    assert written == page.read_text(encoding="utf-8"), "run: python docs/quantization.py"
