"""compressed-tensors' and vLLM's own readers of what ``axk1 quantize`` writes: the same numbers as ours."""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize as theirs
from compressed_tensors.quantization.lifecycle.forward import quantize as quantized_by_them
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from vllm.model_executor.layers.quantization.utils.quant_utils import GroupShape, scaled_dequantize

from axk1 import AXK1Config
from axk1.checkpoint.compressed import make_plan
from axk1.quantized.formats import dequantize, quantize
from axk1.quantized.plan import BLOCK, FP8, KINDS, Kind, Scheme

SCHEMES = [Scheme(kind, {"int4": 64}.get(kind)) for kind in KINDS if kind != "int3"]  # whose format is ours
BLOCKS = Scheme("fp8-block", activations=True)


def their_scheme(scheme: Scheme) -> QuantizationScheme:
    return QuantizationScheme.model_validate(scheme.to_dict(["Linear"]))


def random_matrix(outputs: int, inputs: int) -> torch.Tensor:
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))
    weight[: outputs // 2] *= 100
    return weight.bfloat16()


@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_decompressed(scheme: Scheme, number: torch.dtype) -> None:
    weight = random_matrix(256, 384)
    values, scale = quantize(weight, scheme)
    tensors = (values, scale.to(number), torch.tensor(weight.shape))
    state = dict(zip(scheme.tensors(*weight.shape), tensors, strict=False))
    group = their_scheme(scheme)
    assert group.format is not None
    compressor: Any = BaseCompressor.get_value_from_registry(group.format)
    found = compressor.decompress(state, group)["weight"]
    assert found.dtype == number and torch.equal(found, dequantize(values, scale, number))


@pytest.mark.parametrize("shape", [(576, 7168), (130, 300), (1, 200), (300, 8), (256, 128)], ids=str)
def test_blocks_of_any_matrix(shape: tuple[int, int]) -> None:
    """As compressed-tensors rounds with our scales, and as it reads them, told of the blocks.

    Its version 0.17, which vLLM brings, is not told when it decompresses a checkpoint, and takes them for smaller where
    128 divides no size (0.19 is).
    """
    weight, arguments = random_matrix(*shape), their_scheme(BLOCKS).weights
    assert arguments is not None
    values, scale = quantize(weight, BLOCKS)
    rounded = quantized_by_them(weight.float(), scale, None, arguments, dtype=torch.float8_e4m3fn)  # pyright: ignore[reportArgumentType]
    assert torch.equal(rounded.view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(theirs(values, scale, args=arguments), dequantize(values, scale))


@pytest.mark.parametrize("kind", FP8)
def test_vllm_reads_the_plan(kind: Kind) -> None:
    """As eight-bit floats with eight-bit activations, in the blocks that its kernels have."""
    plan = make_plan(AXK1Config.preset("k1"), kind, activations=True)
    config = CompressedTensorsConfig.from_config(plan.to_dict())
    found = config.target_scheme_map["Linear"]
    assert config._is_fp8_w8a8(found["weights"], found["input_activations"])
    assert found["weights"].block_structure == ([BLOCK, BLOCK] if kind == "fp8-block" else None)


def test_vllm_multiplies_by_the_same_numbers() -> None:
    values, scale = quantize(random_matrix(384, 256), BLOCKS)
    assert torch.equal(scaled_dequantize(values, scale, GroupShape(BLOCK, BLOCK)), dequantize(values, scale))
