"""Rounding that is fitted to inputs: never worse than plain rounding for them, in the same formats."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from axk1.quantized import compensated
from axk1.quantized.compensated import Inputs, fitted
from axk1.quantized.formats import Quantized, dequantize, quantize
from axk1.quantized.plan import Scheme

SCHEMES = [Scheme("int4", 32), Scheme("int4", 128), Scheme("int3", 64), Scheme("int8")]
SCHEMES += [Scheme("fp8"), Scheme("fp8-block")]


def some_inputs(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    """Inputs as layers have them: few directions, some much larger than others."""
    torch.manual_seed(seed)
    directions = torch.randn(max(2, width // 8), width) * torch.rand(width).pow(3)
    return torch.randn(tokens, len(directions)) @ directions + 0.02 * torch.randn(tokens, width)


def output_error(weight: torch.Tensor, quantized: Quantized, x: torch.Tensor) -> float:
    return ((dequantize(*quantized) - weight) @ x.T).square().sum().item()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_outputs_are_nearer(scheme: Scheme) -> None:
    """On tokens that nothing was fitted to."""
    weight, x = torch.randn(96, 256) * 0.02, some_inputs(1024, 256)
    plain, found = quantize(weight, scheme), fitted(weight, scheme, Inputs.of(x[:768]))
    assert found.values.dtype == plain.values.dtype and found.values.shape == plain.values.shape
    assert found.scale.dtype == plain.scale.dtype and found.scale.shape == plain.scale.shape
    assert torch.equal(found.scale, found.scale.bfloat16().float())
    limit = 0.5 if scheme.packed else 0.8
    assert output_error(weight, found, x[768:]) < limit * output_error(weight, plain, x[768:])


@given(
    outputs=st.integers(1, 40),
    groups=st.integers(1, 4),
    tokens=st.integers(0, 60),
    scheme=st.sampled_from(SCHEMES),
    zeros=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_never_worse_on_tokens_apart(outputs, groups, tokens, scheme, zeros, seed) -> None:
    """Few tokens, none, inputs that are always zero: what they cannot tell is rounded plainly."""
    torch.manual_seed(seed)
    width = groups * (scheme.group_size or 32)
    weight, x = torch.randn(outputs, width), some_inputs(tokens, width, seed)
    if zeros:
        x[:, ::2], weight[:1] = 0, 0
    inputs = Inputs.of(x)
    found, plain = fitted(weight, scheme, inputs), quantize(weight, scheme)
    assert dequantize(*found).isfinite().all()
    assert output_error(weight, found, inputs.judged) <= output_error(weight, plain, inputs.judged)
    if tokens < compensated.JUDGED:
        assert torch.equal(found.values.view(torch.uint8), plain.values.view(torch.uint8))


@pytest.mark.parametrize("scheme", [Scheme("int4", 64), Scheme("int8"), Scheme("fp8-block")], ids=str)
def test_more_inputs_than_one_matrix_holds(monkeypatch, scheme: Scheme) -> None:
    """Columns in parts, the last one smaller: still better than plain rounding."""
    monkeypatch.setattr(compensated, "WIDEST", 160)
    weight, x = torch.randn(160, 320), some_inputs(1024, 320)
    inputs = Inputs.of(x)
    assert [each.stop - each.start for each in inputs.columns] == [128, 128, 64]
    assert output_error(weight, fitted(weight, scheme, inputs), x) < output_error(weight, quantize(weight, scheme), x)


def test_tokens_in_parts_count_as_one() -> None:
    x = some_inputs(256, 64)
    whole, parts = Inputs.of(x), Inputs(64)
    for part in x.split(64):  # a multiple of JUDGED: the same tokens stay apart
        parts.add(part)
    assert parts.tokens == whole.tokens == 224 and torch.equal(parts.judged, whole.judged)
    torch.testing.assert_close(parts.moments[0], whole.moments[0])


def test_a_weight_that_is_not_finite_is_refused() -> None:
    weight = torch.randn(4, 64)
    weight[1, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        fitted(weight, Scheme("int4", 32), Inputs.of(some_inputs(64, 64)))
