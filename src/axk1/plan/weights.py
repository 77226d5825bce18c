"""The tensors of a model as its files hold them: from a checkpoint's headers, or of an architecture alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from axk1.checkpoint.held import read_held
from axk1.checkpoint.names import PARTS, TensorSpec, expected_tensors, layer_index
from axk1.config import AXK1Config
from axk1.plan.formats import plain_specs, quantized_specs, stored_as, tensor_bytes
from axk1.quantized.plan import KINDS, Plan

STORED = ("bf16", *KINDS)
"""Ways that weights are stored, by the names of ``axk1 quantize``."""


@dataclass(frozen=True)
class Weights:
    """A model's tensors."""

    config: AXK1Config
    tensors: tuple[TensorSpec, ...]
    """Type and shape as stored; a quantised matrix is several."""
    stored: str
    """``bf16``, ``fp8``, ``int4``, ...: the format of most matrices."""
    group_size: int | None = None
    """Inputs that share a scale, of int4, int3 and fp8-block experts."""

    @property
    def sizes(self) -> Sizes:
        """Bytes, whole and per token."""
        return sum_sizes(self.config, self.tensors)

    @property
    def per_expert(self) -> bool:
        """Whether each expert has tensors of its own in the files."""
        return any(".mlp.experts.0." in spec.name for spec in self.tensors)

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part of the model, those that it has."""
        found = dict.fromkeys(PARTS, 0)
        for spec in self.tensors:
            found[spec.part] += tensor_bytes(spec)
        return {part: size for part, size in found.items() if size}


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model's weights."""

    total: int
    per_token: int
    """Read to decode one token at batch 1: the active weights without the input embedding and the MTP layers."""


def sum_sizes(config: AXK1Config, specs: Iterable[TensorSpec]) -> Sizes:
    """Bytes of the tensors ``specs``, their types taken from ``dtype``."""
    total, read = 0, 0.0
    for spec in specs:
        size = tensor_bytes(spec)
        total += size
        if spec.part == "routed experts":
            read += size * config.num_experts_per_tok / config.n_routed_experts
        elif spec.part == "embedding":
            read += size * config.tie_word_embeddings
        elif spec.part != "MTP" and not (spec.optional and spec.part == "norms"):  # a norm that is never applied
            read += size
    return Sizes(total, round(read))


def weight_sizes(config: AXK1Config, plan: Plan | None = None) -> Sizes:
    """Bytes of a model of this configuration in bfloat16, or quantised by ``plan``: arithmetic only."""
    return sum_sizes(config, quantized_specs(config, plan) if plan else plain_specs(config))


def parameter_counts(config: AXK1Config) -> dict[str, int]:
    """Parameters by name of tensor, in the released layout, without the router's biases."""
    return {spec.name: spec.parameters for spec in expected_tensors(config) if spec.parameters}


def read_weights(folder: Path) -> Weights:
    """The checkpoint in ``folder``; only headers are read.

    Raises:
        CheckpointError: a faulty checkpoint.
    """
    held = read_held(folder)
    widest = max(held.specs, key=lambda spec: spec.size)
    stored = held.plan.kind if held.plan else {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}[widest.dtype]
    return Weights(held.config, held.specs, stored, _group_size(held.config, held.plan))


def weights_as(config: AXK1Config, stored: str) -> Weights:
    """A model of this configuration in a format of :func:`axk1.plan.formats.stored_as`.

    Raises:
        ValueError: no such format.
    """
    found = stored_as(config, stored)
    return Weights(config, found.specs, stored, _group_size(config, found.plan))


def released_weights(stored: str, mtp: bool = False) -> Weights:
    """The released architecture, 519 billion parameters, as ``axk1 quantize`` would store it.

    Args:
        stored: one of ``STORED``.
        mtp: with an MTP module, which the released files do not hold.

    Raises:
        ValueError: another ``stored``.
    """
    if stored not in STORED:
        raise ValueError(f"--weights is {stored!r}; use {', '.join(STORED)}.")
    return weights_as(AXK1Config.preset("k1", num_nextn_predict_layers=int(mtp)), stored)


def config_weights(values: Mapping[str, Any], stored: str | None = None) -> Weights:
    """What a model's ``config.json`` holds says of its files: the format it names, or ``stored``.

    Raises:
        ValueError: no configuration of this architecture, or an unknown format.
    """
    config = AXK1Config.from_dict(dict(values))
    from axk1.quantized.plan import plan_of

    plan = plan_of(config)
    if stored is None and plan:
        return Weights(config, tuple(quantized_specs(config, plan)), plan.kind, _group_size(config, plan))
    return weights_as(config, stored or "bf16")


def read_config(file: Path) -> dict[str, Any]:
    """The fields of a ``config.json``.

    Raises:
        ValueError: it is not JSON, or no object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a configuration ({error}); give a config.json.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no object; give a model's config.json.")
    return values


def without_mtp(weights: Weights) -> Weights:
    """The same without MTP modules: engines load them for drafts only."""
    trunk = weights.config.num_hidden_layers
    config = AXK1Config.from_dict(weights.config.to_dict() | {"num_nextn_predict_layers": 0})
    tensors = tuple(spec for spec in weights.tensors if (layer_index(spec.name) or 0) < trunk)
    return replace(weights, config=config, tensors=tensors)


def _group_size(config: AXK1Config, plan: Plan | None) -> int | None:
    """The largest of any layer's experts: what divides that divides the others."""
    layers = range(config.num_hidden_layers) if plan else ()
    found = [plan.expert_schemes(f"model.layers.{layer}.mlp.experts") for layer in layers if config.is_moe_layer(layer)]  # pyright: ignore[reportOptionalMemberAccess]
    return max((schemes[1].columns or 0 for schemes in found if schemes), default=0) or None


def moe_layers(config: AXK1Config) -> int:
    """Layers of the trunk with routed experts."""
    return sum(kind != "dense" for kind in config.mlp_layer_types or ())


def active_parameters(config: AXK1Config, specs: Iterable[TensorSpec] | None = None) -> int:
    """Those that one token uses in products: of the routed experts the chosen ones, no input embedding, no MTP layer.

    Args:
        specs: the model's own parameters, where a file does not hold all that ``config`` says.
    """
    found = routed = 0
    for spec in expected_tensors(config) if specs is None else specs:
        if spec.part == "MTP" or (spec.optional and spec.part == "norms"):  # a norm that is never applied
            continue
        if spec.part == "routed experts":
            routed += spec.parameters
        elif spec.part != "embedding" or config.tie_word_embeddings:
            found += spec.parameters
    return found + routed * config.num_experts_per_tok // config.n_routed_experts
