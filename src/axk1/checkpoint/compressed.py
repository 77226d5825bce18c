"""Quantised checkpoints as tables of tensors: what their files hold, which format a matrix gets, how big it is."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from math import gcd, prod
from pathlib import Path

from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.names import Row, TensorSpec, layer_rows
from axk1.config import AXK1Config
from axk1.quantized.plan import METHOD, Kind, Plan, Scheme, plan_of

GROUP_SIZES = (128, 64, 32)
DEFAULT_GROUP = {"int4": 128, "int3": 64}
"""Weights that share a scale where nothing else is asked for."""
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I8": 1, "U8": 1, "F8_E4M3": 1, "I32": 4, "I64": 8}
IGNORED = ("lm_head", r"re:.*mlp\.gate$")
"""Kept in full: the head and the router."""
KV_B = r"re:.*kv_b_proj$"
"""The matrix that attention absorbs into queries and values, and so reads in rows and in columns."""


def read_plan(config: AXK1Config, folder: Path) -> Plan | None:
    """The formats of the checkpoint in ``folder``; None for one in full precision.

    Raises:
        CheckpointError: quantised in a way that this package does not compute with.
    """
    try:
        plan = plan_of(config)
        if plan:
            for layer_idx in range(config.num_hidden_layers + config.num_nextn_predict_layers):
                plan.expert_schemes(f"model.layers.{layer_idx}.mlp.experts")
        return plan
    except ValueError as error:
        raise CheckpointError(f"{error}.", folder / "config.json") from error


def stored_specs(specs: Iterable[TensorSpec], plan: Plan | None) -> Iterator[TensorSpec]:
    """What a file holds for a model's tensors ``specs`` (per-expert layout): several for a quantised matrix."""
    for spec in specs:
        scheme = plan.scheme(spec.name.removesuffix(".weight")) if plan and is_matrix(spec) else None
        if scheme is None:
            yield spec
            continue
        for suffix, (word, shape) in scheme.tensors(*spec.shape).items():
            yield replace(spec, name=spec.name.removesuffix("weight") + suffix, dtype=word, shape=shape)


def is_matrix(spec: TensorSpec) -> bool:
    """Whether ``spec`` is the weight of a linear module that a plan may name."""
    inside = re.match(r"(model\.)?layers\.\d+\.(?P<key>.*)", spec.name)
    return inside is not None and len(spec.shape) == 2 and _may_be_quantized(inside["key"])


def make_plan(config: AXK1Config, kind: Kind, group_size: int | None = None, activations: bool = False) -> Plan:
    """The plan of ``axk1 quantize``: every matrix of a decoder layer or MTP module but those of ``IGNORED``.

    ``kv_b_proj`` has one scale a row or stays: int8 where the others are int4 or int3 (its inputs rounded too: the int8
    that vLLM and SGLang read), and in full beside fp8. int4 and int3: ``group_size`` (``DEFAULT_GROUP`` where it is
    None), or where it does not divide a matrix's width the next smaller of ``GROUP_SIZES`` that does; the matrices of an expert share one, as vLLM wants it. A matrix of
    any other width is kept in full.

    Raises:
        ValueError: no such ``group_size``, or no matrix whose width a group divides.
    """
    if kind not in DEFAULT_GROUP:
        ignored = IGNORED if kind == "int8" else (*IGNORED, KV_B)
        return Plan(((("Linear",), Scheme(kind, activations=activations)),), ignored)
    group_size = DEFAULT_GROUP[kind] if group_size is None else group_size
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group_size={group_size!r} must be one of {', '.join(map(str, GROUP_SIZES))}.")
    if activations:
        raise ValueError(f"{kind} weights go with activations as they are, not with eight-bit ones.")
    weights: dict[int | None, int] = {}
    targets: dict[int | None, list[str]] = {}
    for key, (row, count) in _matrix_rows(config).items():
        if key.endswith("kv_b_proj.weight"):
            continue
        shape = row.shape(config)
        width = gcd(config.hidden_size, config.moe_intermediate_size) if "{e}" in key else shape[1]
        size = next((size for size in GROUP_SIZES if size <= group_size and width % size == 0), None)
        targets.setdefault(size, []).append(_target(key))
        weights[size] = weights.get(size, 0) + count * prod(shape)
    sizes = sorted((size for size in targets if size), key=lambda size: -weights[size])
    if not sizes:
        raise ValueError(f"{kind} needs matrices whose width is a multiple of {GROUP_SIZES[-1]}; this model has none.")
    groups = tuple((("Linear",) if size == sizes[0] else tuple(targets[size]), Scheme(kind, size)) for size in sizes)
    kv_b = ((KV_B,), Scheme("int8", activations=True))
    return Plan((*groups, kv_b), (*IGNORED, *targets.get(None, ())))


def held_specs(specs: Iterable[TensorSpec], plan: Plan | None, held: Container[str]) -> Iterator[TensorSpec]:
    """Those of ``specs`` that a file with the tensors ``held`` has, quantised or not: the model's own parameters."""
    return (spec for spec in specs if next(stored_specs([spec], plan)).name in held)


def _matrix_rows(config: AXK1Config) -> dict[str, tuple[Row, int]]:
    """The kinds of matrices that are quantised, by key, and how many a model has of each."""
    found: dict[str, tuple[Row, int]] = {}
    for layer_idx in range(config.num_hidden_layers + config.num_nextn_predict_layers):
        for row in layer_rows(config, layer_idx, "per_expert"):
            if len(row.shape(config)) == 2 and _may_be_quantized(row.key):
                each = config.n_routed_experts if "{e}" in row.key else 1
                found[row.key] = (row, found.get(row.key, (row, 0))[1] + each)
    return found


def _may_be_quantized(key: str) -> bool:
    kept = ("mlp.gate.weight", "embed_tokens.weight", "shared_head.head.weight")
    return key.endswith(".weight") and not key.endswith(kept)


def _target(key: str) -> str:
    module = re.escape(key.removesuffix(".weight")).replace(r"\{e\}", r"\d+")
    return rf"re:.*layers\.\d+\.{module}$"


def check_not_quantized(config: AXK1Config, folder: Path, wish: str) -> None:
    """Raises a CheckpointError where a checkpoint is quantised already; ``wish`` says what for it would not do."""
    if getattr(config, "quantization_config", None):
        raise CheckpointError(f"is quantised; only unquantised checkpoints can be {wish}.", folder)


def check_method(config: AXK1Config, folder: Path) -> None:
    """Raises a CheckpointError where a checkpoint is quantised by another method than compressed-tensors."""
    found = getattr(config, "quantization_config", None)
    method = found.get("quant_method") if isinstance(found, dict) else None
    if isinstance(found, dict) and method is None and {"bits", "group_size"} <= found.keys():
        raise CheckpointError("is quantised for MLX: run it with `axk1 mlx`, or give the original.", folder)
    if found and method != METHOD:
        raise CheckpointError(
            f"is quantised by {method!r}; only unquantised and {METHOD} checkpoints can be read here.", folder
        )
