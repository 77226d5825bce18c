"""What stands between a checkpoint of any layout and the names that vLLM's loaders know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from axk1.checkpoint.names import expert_slices, layer_index
from axk1.quantized.plan import plan_of

Weights = Iterable[tuple[str, torch.Tensor]]
ROUTER_BIAS = ".mlp.gate.e_score_correction_bias"
POST_MLP_NORM = ".post_mlp_layernorm.weight"


def per_expert(weights: Weights, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Splits fused experts (the released layout) into views, one matrix of one expert each; the rest passes through."""
    for name, tensor in weights:
        slices = expert_slices(config, name)
        if not slices:
            yield name, tensor
        for piece in slices:
            yield piece.name, tensor[piece.expert, piece.start : piece.stop]


def int8_kv_b(config: Any) -> bool:
    """Whether the checkpoint has ``kv_b_proj`` in int8, as ``axk1 quantize`` writes it."""
    try:
        plan = plan_of(config)
    except ValueError:  # another tool's format, which is vLLM's to read
        return False
    scheme = plan.scheme("model.layers.0.self_attn.kv_b_proj") if plan else None
    return scheme is not None and scheme.kind == "int8"


def with_full_kv_b(weights: Weights, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Multiplies int8 ``kv_b_proj`` by its scales, a row each; the rest passes through.

    vLLM absorbs that matrix into queries and values in full precision, whatever it was stored in; on CPUs its int8 form
    is gone by then (docs/upstream/vllm-cpu-int8-kv-b.md).
    """
    if not int8_kv_b(config):
        yield from weights
        return
    waiting: dict[str, torch.Tensor] = {}
    for name, tensor in weights:
        module = name.rpartition(".")[0]
        if not module.endswith(".kv_b_proj"):
            yield name, tensor
        elif (other := waiting.pop(module, None)) is None:  # weight and scale, in any order
            waiting[module] = tensor
        else:
            yield f"{module}.weight", tensor.float() * other.float()


def layers_from(weights: Weights, first: int, end: int | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Keeps decoder layers ``first`` up to ``end``, and what belongs to no layer."""
    for name, tensor in weights:
        layer = layer_index(name)
        if layer is None or (layer >= first and (end is None or layer < end)):
            yield name, tensor


def with_defaults(
    weights: Weights, parameters: Mapping[str, torch.Tensor], is_moe: Callable[[int], bool]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Adds the tensors that a checkpoint may leave out.

    A router without a bias has a bias of zero; the norm behind a dense MLP is stored by some files but never applied.

    Args:
        parameters: those of the model being loaded, by their names in a checkpoint.
        is_moe: says of a layer's index whether it has experts; their norm must be in the file.
    """
    missing = {
        name: parameter
        for name, parameter in parameters.items()
        if name.endswith(ROUTER_BIAS) or (name.endswith(POST_MLP_NORM) and not is_moe(layer_index(name) or 0))
    }
    for name, tensor in weights:
        missing.pop(name, None)
        yield name, tensor
    for name, parameter in missing.items():
        fill = torch.zeros if name.endswith(ROUTER_BIAS) else torch.ones
        yield name, fill(parameter.shape, dtype=parameter.dtype)
