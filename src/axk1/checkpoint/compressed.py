"""Quantised checkpoints as tables of tensors: what their files hold, which format a matrix gets, how big it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd, prod
from pathlib import Path
from typing import NamedTuple

from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.names import TensorSpec, layer_rows
from axk1.config import AXK1Config
from axk1.quantized.plan import BLOCK, FP8, METHOD, Kind, Plan, Scheme, plan_of

GROUP_SIZES = (128, 64, 32)
DEFAULT_GROUP = {"int4": 128, "int3": 64}
"""Weights that share a scale where nothing else is asked for."""
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I8": 1, "U8": 1, "F8_E4M3": 1, "I32": 4, "I64": 8}
IGNORED = ("lm_head", r"re:.*mlp\.gate$")
"""Kept in full: the head and the router."""
KV_B = r"re:.*kv_b_proj$"
"""The matrix that attention absorbs into queries and values, and so reads in rows and in columns."""
LAYER_PARTS = {
    "attention": "self_attn.",
    "experts": "mlp.experts.",
    "shared_experts": "mlp.shared_experts.",
    "mlp": "mlp.",
    "eh_proj": "eh_proj.",
}
"""The parts of a layer that may have schemes of their own, by what the keys of their matrices begin with."""
_KV_B_KEY = "self_attn.kv_b_proj.weight"


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


@dataclass(frozen=True)
class Wanted:
    """How the matrices of a part of a layer are to be stored, as far as their widths allow."""

    kind: Kind | None
    """None: in full."""
    group_size: int | None = None
    """Of int4 and int3; None: ``DEFAULT_GROUP``."""
    activations: bool = False
    """Of int8, fp8 and fp8-block: round inputs as well."""

    def __post_init__(self) -> None:
        if self.kind not in DEFAULT_GROUP:
            if self.group_size is not None:
                raise ValueError(
                    f"group_size={self.group_size!r} does not go with {self.kind or 'full'}: int4 and int3 have "
                    f"groups, int8 and fp8 a scale for each row, fp8-block one for {BLOCK} x {BLOCK} weights."
                )
            return
        if self.group_size is not None and self.group_size not in GROUP_SIZES:
            raise ValueError(f"group_size={self.group_size!r} must be one of {', '.join(map(str, GROUP_SIZES))}.")
        if self.activations:
            raise ValueError(f"{self.kind} weights go with activations as they are, not with eight-bit ones.")

    def scheme(self, key: str, width: int) -> Scheme | None:
        """Of the matrix of this key (below its layer) and width, which is what a group has to divide."""
        if self.kind is None or (self.kind in FP8 and key == _KV_B_KEY):
            return None
        if self.kind not in DEFAULT_GROUP:
            return Scheme(self.kind, activations=self.activations)
        if key == _KV_B_KEY:
            return Scheme("int8", activations=True)
        largest = self.group_size or DEFAULT_GROUP[self.kind]
        size = next((size for size in GROUP_SIZES if size <= largest and width % size == 0), None)
        return Scheme(self.kind, size) if size else None


class Matrix(NamedTuple):
    """A matrix that is quantised, or all of one kind of a layer's experts."""

    layer: int
    key: str
    """Below the layer; ``{e}`` stands for an expert's number."""
    shape: tuple[int, int]
    width: int
    """What a group has to divide: the matrices of an expert share one, as vLLM wants it."""
    count: int

    @property
    def part(self) -> str:
        """One of ``LAYER_PARTS``."""
        part = part_of(self.key)
        assert part is not None
        return part


@dataclass(frozen=True)
class PartFormat:
    """How a part of some layers is stored."""

    part: str
    format: str
    layers: str
    """Numbers and ranges: ``1-3, 7``."""


def make_plan(config: AXK1Config, kind: Kind, group_size: int | None = None, activations: bool = False) -> Plan:
    """The plan of ``axk1 quantize``: every matrix of a decoder layer or MTP module but those of ``IGNORED``.

    ``kv_b_proj`` has one scale a row or stays: int8 where the others are int4 or int3 (its inputs rounded too: the int8
    that vLLM and SGLang read), and in full beside fp8. int4 and int3: ``group_size`` (``DEFAULT_GROUP`` where it is
    None), or where it does not divide a matrix's width the next smaller of ``GROUP_SIZES`` that does. A matrix of any
    other width is kept in full.

    Raises:
        ValueError: no such ``group_size``, or no matrix whose width a group divides.
    """
    wanted = Wanted(kind, group_size, activations)
    return mixed_plan(config, lambda layer, part: wanted)


def mixed_plan(config: AXK1Config, wanted: Callable[[int, str], Wanted]) -> Plan:
    """The same with ``wanted(layer, part)`` for each of ``LAYER_PARTS`` of each layer, MTP modules after the others.

    Raises:
        ValueError: nothing would be quantised.
    """
    weights: dict[Scheme | None, int] = {}
    layers: dict[Scheme | None, dict[str, list[int]]] = {}
    every: dict[str, list[int]] = {}
    kinds = set()
    for matrix in matrices(config):
        wish = wanted(matrix.layer, matrix.part)
        scheme = wish.scheme(matrix.key, matrix.width)
        kinds.add(wish.kind)
        every.setdefault(matrix.key, []).append(matrix.layer)
        layers.setdefault(scheme, {}).setdefault(matrix.key, []).append(matrix.layer)
        if matrix.key != _KV_B_KEY:
            weights[scheme] = weights.get(scheme, 0) + matrix.count * prod(matrix.shape)
    if not any(weights.get(scheme) for scheme in layers if scheme):
        names = ", ".join(sorted(kind for kind in kinds if kind))
        if not names:
            raise ValueError("Nothing would be quantised: every matrix is to be kept in full.")
        raise ValueError(f"{names} needs matrices whose width is a multiple of {GROUP_SIZES[-1]}; this model has none.")
    targets = {
        scheme: tuple(_target(key, None if held == every[key] else held) for key, held in keys.items())
        for scheme, keys in layers.items()
    }
    order = sorted((scheme for scheme in layers if scheme), key=lambda scheme: -weights.get(scheme, 0))
    groups = tuple((("Linear",) if scheme == order[0] else targets[scheme], scheme) for scheme in order)
    return Plan(groups, (*IGNORED, *targets.get(None, ())))


def part_of(key: str) -> str | None:
    """Which of ``LAYER_PARTS`` the tensor of this key (below its layer) is of."""
    return next((part for part, begin in LAYER_PARTS.items() if key.startswith(begin)), None)


def mixed_formats(config: AXK1Config, plan: Plan) -> tuple[PartFormat, ...]:
    """The formats of each part by layer; none where every kind of matrix has one format in all layers."""
    by_key: dict[str, set[Scheme | None]] = {}
    layers: dict[tuple[str, str], dict[int, None]] = {}
    for matrix in matrices(config):
        scheme = plan.scheme(f"model.layers.{matrix.layer}.{matrix.key.replace('{e}', '0').removesuffix('.weight')}")
        by_key.setdefault(matrix.key, set()).add(scheme)
        layers.setdefault((matrix.part, str(scheme or "full")), {})[matrix.layer] = None
    if all(len(schemes) == 1 for schemes in by_key.values()):
        return ()
    order = sorted(layers, key=lambda found: list(LAYER_PARTS).index(found[0]))
    return tuple(PartFormat(part, text, _ranges(list(layers[part, text]))) for part, text in order)


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, those that follow each other together."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def matrices(config: AXK1Config) -> Iterator[Matrix]:
    """All that may be quantised, layer by layer."""
    for layer in range(config.num_hidden_layers + config.num_nextn_predict_layers):
        for row in layer_rows(config, layer, "per_expert"):
            shape = row.shape(config)
            if len(shape) == 2 and _may_be_quantized(row.key):
                routed = "{e}" in row.key
                width = gcd(config.hidden_size, config.moe_intermediate_size) if routed else shape[1]
                yield Matrix(layer, row.key, (shape[0], shape[1]), width, config.n_routed_experts if routed else 1)


def held_specs(specs: Iterable[TensorSpec], plan: Plan | None, held: Container[str]) -> Iterator[TensorSpec]:
    """Those of ``specs`` that a file with the tensors ``held`` has, quantised or not: the model's own parameters."""
    return (spec for spec in specs if next(stored_specs([spec], plan)).name in held)


def _may_be_quantized(key: str) -> bool:
    kept = ("mlp.gate.weight", "embed_tokens.weight", "shared_head.head.weight")
    return key.endswith(".weight") and not key.endswith(kept)


def _target(key: str, layers: Sequence[int] | None) -> str:
    """The pattern of a key's modules, in some layers or in all."""
    if layers is None and key == _KV_B_KEY:
        return KV_B
    module = re.escape(key.removesuffix(".weight")).replace(r"\{e\}", r"\d+")
    numbers = r"\d+" if layers is None else f"({'|'.join(map(str, layers))})"
    return rf"re:.*layers\.{numbers}\.{module}$"


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
