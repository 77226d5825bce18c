"""The kernels' rounding to int4 and int3: the reference's bits, whatever the weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from axk1.kernels import native
from axk1.kernels.rounding import rounded
from axk1.quantized import formats
from axk1.quantized.plan import Scheme

needs_kernels = pytest.mark.skipif(not native.available(), reason="no CPU kernels here")


@needs_kernels
@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["int4", "int3"]),
    st.sampled_from([32, 64, 128]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.data(),
)
def test_the_bits_of_the_reference(seed, kind, group, dtype, data):
    """Rows of all sizes, of zeros and of numbers whose scale would be none, outliers, and ties between two values."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.tensor([data.draw(st.sampled_from([0.0, 1e-42, 7e-38, 1e-30, 1e-2, 1.0, 1e30])) for _ in range(6)])
    weight = torch.randn(6, 256, generator=generator) * rows[:, None]
    weight[5] = torch.randint(-14, 15, (256,), generator=generator) / 2
    weight[torch.randint(0, 6, (4,), generator=generator), torch.randint(0, 256, (4,), generator=generator)] *= 50
    weight, scheme = weight.to(dtype), Scheme(kind, group)
    (values, scale), (error, size) = rounded(weight, scheme)
    expected, (expected_error, expected_size) = formats.rounded(weight, scheme)
    assert torch.equal(values, expected.values) and torch.equal(scale, expected.scale)
    assert error == pytest.approx(expected_error, rel=1e-4) and size == pytest.approx(expected_size, rel=1e-4)


@needs_kernels
@pytest.mark.parametrize("kind", ["int4", "int3"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(value, kind):
    weight = torch.randn(4, 64)
    weight[2, 40] = value
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        rounded(weight, Scheme(kind, 32))


def test_other_formats_are_the_reference_itself():
    weight = torch.randn(8, 64)
    for scheme in (Scheme("int8"), Scheme("fp8"), Scheme("fp8-block")):
        (values, scale), _ = rounded(weight, scheme)
        expected = formats.quantize(weight, scheme)
        assert torch.equal(values.view(torch.uint8), expected.values.view(torch.uint8))
        assert torch.equal(scale, expected.scale)
    half = weight.half()  # no kernel reads it
    assert torch.equal(rounded(half, Scheme("int4", 32))[0].values, formats.quantize(half, Scheme("int4", 32)).values)
