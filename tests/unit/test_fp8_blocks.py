"""fp8 in blocks of 128 x 128: matrices of any size, gate and up of any width, and the files of other tools."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from axk1 import AXK1Config
from axk1.checkpoint.compressed import make_plan
from axk1.modeling.moe import AXK1Experts
from axk1.plan.formats import stored_as
from axk1.plan.memory import Parallel
from axk1.plan.placement import broken_rules
from axk1.plan.weights import weights_as
from axk1.quantized import Plan, QuantizedExperts, QuantizedLinear, Scheme
from axk1.quantized.compensated import Inputs, fitted
from axk1.quantized.formats import Quantized, dequantize, quantize
from axk1.quantized.modules import GATHERED_SLOTS

BLOCKS = Scheme("fp8-block")
LARGEST = 448.0
sizes = st.one_of(st.integers(1, 8), st.integers(120, 136), st.integers(250, 300))


def random_matrix(outputs: int, inputs: int, seed: int) -> torch.Tensor:
    """Blocks of very different sizes, some of zeros, and an outlier."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    for row in range(0, outputs, 128):
        for column in range(0, inputs, 128):
            size = [0.0, 1e-42, 1e-30, 1e-2, 1.0, 1e30][torch.randint(0, 6, (), generator=generator)]
            weight[row : row + 128, column : column + 128] *= size
    weight[seed % outputs, seed % inputs] *= 1000
    return weight


def block_by_block(weight: torch.Tensor) -> Quantized:
    """The format as its description says it, a block after the other."""
    outputs, inputs = weight.shape
    values = torch.zeros(outputs, inputs, dtype=torch.float8_e4m3fn)
    scale = torch.ones(-(-outputs // 128), -(-inputs // 128))
    for i in range(len(scale)):
        for j in range(scale.shape[1]):
            place = slice(128 * i, 128 * (i + 1)), slice(128 * j, 128 * (j + 1))
            found = (weight[place].abs().max() / LARGEST).bfloat16().float()
            if found >= torch.finfo(torch.bfloat16).tiny:
                scale[i, j] = found
            values[place] = (weight[place] / scale[i, j]).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return Quantized(values, scale)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(0, 10**6), st.sampled_from([torch.float32, torch.bfloat16]))
def test_any_shape(outputs, inputs, seed, dtype):
    weight = random_matrix(outputs, inputs, seed).to(dtype)
    values, scale = quantize(weight, BLOCKS)
    expected = block_by_block(weight.float())
    assert torch.equal(values.view(torch.uint8), expected.values.view(torch.uint8)) and torch.equal(
        scale, expected.scale
    )
    of_each = scale.repeat_interleave(128, 0)[:outputs].repeat_interleave(128, 1)[:, :inputs]
    kept = dequantize(values, scale)
    assert torch.equal(kept, values.float() * of_each)
    assert torch.equal(dequantize(values, scale, torch.bfloat16), kept.bfloat16())
    error, exact = (kept - weight.float()).abs(), weight.float().abs()
    assert (error <= torch.maximum(exact / 16, of_each / 1024) * (1 + 1e-6)).all()
    words = {name: shape for name, (_, shape) in BLOCKS.tensors(outputs, inputs).items()}
    assert words == {"weight": tuple(values.shape), "weight_scale": tuple(scale.shape)}


def test_four_blocks_by_hand():
    weight = torch.zeros(130, 129)
    weight[0, 0], weight[127, 127], weight[5, 128], weight[129, 0] = 448.0, -1.0, 224.0, -896.0
    values, scale = quantize(weight, BLOCKS)
    assert scale.tolist() == [[1.0, 0.5], [2.0, 1.0]]
    places = ((0, 0), (127, 127), (5, 128), (129, 0), (129, 128))
    assert [values[place].item() for place in places] == [448.0, -1.0, 448.0, -448.0, 0.0]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([40, 128, 136, 256]), st.sampled_from([1, 4, 6]), st.integers(0, 10**6))
def test_no_block_has_rows_of_gate_and_up(width, tokens, seed):
    """Experts of any width are those of matrices that were rounded one by one, with few tokens and with many."""
    experts, hidden = 8, 192
    config = AXK1Config.preset("nano", hidden_size=hidden, moe_intermediate_size=width, n_routed_experts=8, n_group=2)
    config._experts_implementation = "eager"
    generator = torch.Generator().manual_seed(seed)
    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    matrices = {
        name: [quantize(torch.randn(shape, generator=generator) / 8, BLOCKS) for _ in range(experts)]
        for name, shape in shapes.items()
    }
    plain, module = AXK1Experts(config), QuantizedExperts(experts, hidden, width, BLOCKS, BLOCKS, nn.SiLU())
    for stack, parts in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
        of_experts = list(zip(*(matrices[part] for part in parts), strict=True))
        values = torch.stack([torch.cat([part.values.view(torch.uint8) for part in of]) for of in of_experts])
        scales = torch.stack([torch.cat([part.scale for part in of]) for of in of_experts])
        for name, tensor in ((stack, values.view(torch.float8_e4m3fn)), (f"{stack}_scale", scales)):
            assert module.get_buffer(name).shape == tensor.shape and module.get_buffer(name).dtype == tensor.dtype
            module.register_buffer(name, tensor)
        whole = torch.stack([torch.cat([dequantize(*part) for part in of]) for of in of_experts])
        assert torch.equal(module.dequantized(stack), whole)
        setattr(plain, stack, nn.Parameter(whole))
    x = torch.randn(tokens, hidden, generator=generator)
    indices = torch.stack([torch.randperm(experts, generator=generator)[:4] for _ in range(tokens)])
    weights = torch.rand(tokens, 4, generator=generator)
    assert (indices.numel() <= GATHERED_SLOTS) == (tokens <= 4)
    torch.testing.assert_close(module(x, indices, weights), plain(x, indices, weights), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(300, 200), (1, 300), (576, 128)], ids=str)
def test_a_module_of_several_blocks(shape):
    weight, x = torch.randn(shape), torch.randn(3, 5, shape[1])
    module = QuantizedLinear(shape[1], shape[0], BLOCKS)
    values, scale = quantize(weight, BLOCKS)
    assert module.weight_scale.shape == scale.shape
    module.register_buffer("weight", values)
    module.register_buffer("weight_scale", scale)
    torch.testing.assert_close(module(x), F.linear(x, dequantize(values, scale)))


def test_fitting_keeps_the_scales_of_plain_rounding():
    torch.manual_seed(0)
    weight = random_matrix(300, 300, 3).clamp(-10, 10)
    x = torch.randn(512, 24) @ torch.randn(24, 300)
    plain, found = quantize(weight, BLOCKS), fitted(weight, BLOCKS, Inputs.of(x))
    assert torch.equal(found.scale, plain.scale)
    error = [((dequantize(*each) - weight) @ x.T).square().sum() for each in (plain, found)]
    assert error[1] < 0.8 * error[0]


PRESET = {
    "num_bits": 8,
    "type": "float",
    "symmetric": True,
    "strategy": "block",
    "block_structure": [128, 128],
    "group_size": None,
    "dynamic": False,
}
INPUTS = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "group", "group_size": 128, "dynamic": True}


def test_the_words_of_compressed_tensors():
    """Those of its preset FP8_BLOCK, which llm-compressor writes and vLLM reads; older files have the shape as text."""
    plan = make_plan(AXK1Config.preset("k1"), "fp8-block", activations=True)
    written = plan.to_dict()
    (group,) = written["config_groups"].values()
    assert written["format"] == group["format"] == "float-quantized" and group["targets"] == ["Linear"]
    assert group["weights"] == {**PRESET, "observer": "minmax"} and group["input_activations"] == INPUTS
    assert r"re:.*kv_b_proj$" in written["ignore"]
    for changes in ({}, {"block_structure": "128x128"}, {"observer": None, "actorder": None}):
        group["weights"] = {**PRESET, **changes}
        assert Plan.from_dict(written).groups == (((("Linear"),), Scheme("fp8-block", activations=True)),)
    written["config_groups"]["group_0"] = {**group, "input_activations": None}
    assert Plan.from_dict(written).groups == ((("Linear",), BLOCKS),)


def test_bytes_of_the_released_model():
    """As added up apart, over its layers: a byte a weight and two for a block; what is kept has two a weight."""
    config = AXK1Config.preset("k1")
    found = {spec.name: spec for spec in stored_as(config, "fp8-block").specs}
    scale = found["model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale"]
    assert scale.shape == (5, 56)  # of 576 x 7168
    experts = [spec for name, spec in found.items() if name.startswith("model.layers.1.mlp.experts.0.")]
    assert sum(spec.size * (2 if spec.name.endswith("scale") else 1) for spec in experts) == 192 * 44_045_568
    sizes = weights_as(config, "fp8-block").sizes
    assert (sizes.total, sizes.per_token) == (521_990_590_384, 33_378_695_088)


def test_blocks_are_not_cut_by_tensor_parallelism():
    """Up to 16 GPUs share an expert of 2,048 columns, as vLLM has it."""
    k1 = weights_as(AXK1Config.preset("k1"), "fp8-block")
    assert k1.group_size == 128 and not broken_rules(k1, Parallel(16))
    assert any("multiples of 128, which share a scale" in rule for rule in broken_rules(k1, Parallel(32)))
