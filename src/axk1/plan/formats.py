"""A model's tensors in every format that somebody writes: those of ``axk1 quantize``, MLX's and GGUF's, to the byte.

Ours are what ``quantized/plan.py`` says of each matrix. The others are sums over the same table of tensors: what MLX
quantises is every matrix but the router's; a GGUF type is taken for every matrix and the embedding, norms and routers
are fp32, and the head is ``q6_k`` beside types of fewer bits, llama.cpp's habit. (Its mixtures, such as Q4_K_M, lie
between two types.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

from axk1.checkpoint.compressed import DEFAULT_GROUP, GROUP_SIZES, ITEM_BYTES, make_plan, stored_specs
from axk1.checkpoint.names import ROUTER_BIAS, Layout, TensorSpec, expected_tensors
from axk1.config import AXK1Config
from axk1.quantized.plan import KINDS, Kind, Plan

FLOATS = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
GGUF = {
    **{"q8_0": (32, 34), "q6_k": (256, 210), "q5_k": (256, 176), "q5_1": (32, 24), "q5_0": (32, 22)},
    **{"q4_k": (256, 144), "q4_1": (32, 20), "q4_0": (32, 18), "iq4_nl": (32, 18), "iq4_xs": (256, 136)},
    **{"q3_k": (256, 110), "iq3_s": (256, 110), "iq3_xxs": (256, 98), "q2_k": (256, 84), "iq2_s": (256, 82)},
    **{"iq2_xs": (256, 74), "iq2_xxs": (256, 66), "iq1_m": (256, 56), "iq1_s": (256, 50)},
}
"""Weights of a block and its bytes, scales included (ggml-common.h of llama.cpp)."""
MLX_BITS, MLX_GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
HEAD_TYPE = "q6_k"
"""Of the head beside GGUF types of fewer bits a weight."""


@dataclass(frozen=True)
class Stored:
    """A model's tensors in one format."""

    specs: tuple[TensorSpec, ...]
    plan: Plan | None = None
    """Of a format that ``axk1 quantize`` writes."""


def known_formats() -> tuple[str, ...]:
    """Names that :func:`stored_as` takes."""
    ours = [kind for kind in KINDS] + [f"{kind}-{size}" for kind in DEFAULT_GROUP for size in GROUP_SIZES]
    return (*FLOATS, *ours, *(f"mlx-{bits}" for bits in MLX_BITS), *GGUF)


def stored_as(config: AXK1Config, name: str) -> Stored:
    """The tensors of a model of this configuration, each with the type and shape that it is stored in as ``name``.

    Args:
        name: ``bf16``, ``fp8``, ``fp8-block``, ``int4`` (the groups that ``axk1 quantize`` takes by itself),
            ``int4-64`` (groups of 64), ``mlx-4`` or ``mlx-4-32`` (groups of 64 or 32), or a GGUF type such as ``q4_k``.

    Raises:
        ValueError: no such format, or none of the model's matrices fits its groups.
    """
    if name in FLOATS:
        return Stored(tuple(replace(spec, dtype=FLOATS[name]) for spec in plain_specs(config)))
    if name in GGUF:
        return Stored(tuple(_in_blocks(config, name)))
    match = re.fullmatch(r"(?P<kind>\w+(-block)?)(-(?P<first>\d+))?(-(?P<second>\d+))?", name)
    if match and match["kind"] == "mlx" and match["first"]:
        return Stored(tuple(_in_mlx(config, int(match["first"]), int(match["second"] or 64), name)))
    if match is None or match["kind"] not in get_args(Kind) or match["second"]:
        raise ValueError(f"The format {name!r} is unknown; use one of {', '.join(known_formats())}.")
    plan = make_plan(config, match["kind"], **({"group_size": int(match["first"])} if match["first"] else {}))  # pyright: ignore[reportArgumentType]
    return Stored(tuple(quantized_specs(config, plan)), plan)


def quantized_specs(config: AXK1Config, plan: Plan) -> Iterator[TensorSpec]:
    """The tensors of a checkpoint as ``plan`` stores them, a matrix of all experts of a layer as one: they have a
    format in common, and K1 has 104,000 tensors otherwise."""
    experts = config.n_routed_experts
    for spec in expected_tensors(_with_few_experts(config), "per_expert"):
        if spec.name.endswith(ROUTER_BIAS) or ".mlp.experts.1." in spec.name:
            continue
        for stored in stored_specs([spec], plan):
            if ".mlp.experts.0." in spec.name:
                yield replace(stored, shape=(experts, *stored.shape))
            elif spec.name.endswith("mlp.gate.weight"):
                yield replace(stored, shape=(experts, config.hidden_size))
            else:
                yield stored


def _with_few_experts(config: AXK1Config) -> AXK1Config:
    """Two, the least that a group may have; the second is left out above."""
    few = {"n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1}
    return AXK1Config.from_dict(config.to_dict() | few)


def plain_specs(config: AXK1Config, layout: Layout = "released") -> Iterator[TensorSpec]:
    """The tensors of a checkpoint as released: in bfloat16, and without a router's bias."""
    return (spec for spec in expected_tensors(config, layout) if not spec.name.endswith(ROUTER_BIAS))


def tensor_bytes(spec: TensorSpec) -> int:
    """Bytes of a tensor in the type of ``spec.dtype``: safetensors' word, or that of a format above."""
    if spec.dtype in ITEM_BYTES:
        return spec.size * ITEM_BYTES[spec.dtype]
    weights, size = GGUF[spec.dtype] if spec.dtype in GGUF else _mlx_block(spec.dtype)
    return spec.size // weights * size


def bits_per_weight(name: str) -> float | None:
    """Bits of a weight of ``name`` with its scales, where that is the format's alone: 4.5 of ``mlx-4``."""
    if name in GGUF or name.startswith("mlx-"):
        weights, size = GGUF[name] if name in GGUF else _mlx_block(name)
        return 8 * size / weights
    return None


def _in_blocks(config: AXK1Config, name: str) -> Iterator[TensorSpec]:
    weights, _ = GGUF[name]
    for spec in plain_specs(config):
        if _is_small(spec) or spec.shape[-1] % weights:
            yield replace(spec, dtype="F32" if _is_small(spec) else "BF16")
            continue
        few = (bits_per_weight(name) or 0) < (bits_per_weight(HEAD_TYPE) or 0)
        as_head = few and spec.part == "head" and spec.shape[-1] % GGUF[HEAD_TYPE][0] == 0
        yield replace(spec, dtype=HEAD_TYPE if as_head else name)


def _in_mlx(config: AXK1Config, bits: int, group: int, name: str) -> Iterator[TensorSpec]:
    """Norms and routers in bfloat16, a bias beside each router in fp32; MTP modules are left out."""
    if bits not in MLX_BITS or group not in MLX_GROUPS:
        raise ValueError(f"The format {name!r} is unknown; MLX has bits {MLX_BITS} and groups {MLX_GROUPS}.")
    for spec in expected_tensors(config):
        if spec.part == "MTP" or (spec.optional and spec.part == "norms"):
            continue
        whole = _is_small(spec) or spec.shape[-1] % group
        word = "F32" if spec.name.endswith(ROUTER_BIAS) else "BF16"
        yield replace(spec, dtype=word if whole else f"mlx-{bits}-{group}")


def _mlx_block(name: str) -> tuple[int, int]:
    _, bits, *group = name.split("-")
    weights = int(group[0]) if group else 64
    return weights, weights * int(bits) // 8 + 4  # a scale and a bias of two bytes each


def _is_small(spec: TensorSpec) -> bool:
    return len(spec.shape) == 1 or spec.part == "router" or spec.name.endswith("mlp.gate.weight")
