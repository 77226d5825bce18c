"""The tensors of a model as its files hold them: from a checkpoint's headers, or of the released architecture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from axk1.checkpoint.compressed import make_plan, stored_specs
from axk1.checkpoint.info import read_held
from axk1.checkpoint.names import TensorSpec, expected_tensors, layer_index
from axk1.config import AXK1Config
from axk1.quantized.plan import Kind, Plan

STORED = ("bf16", *get_args(Kind))
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
    """Inputs that share a scale, of int4 experts."""


def read_weights(folder: Path) -> Weights:
    """The checkpoint in ``folder``; only headers are read.

    Raises:
        CheckpointError: a faulty checkpoint.
    """
    held = read_held(folder)
    widest = max(held.specs, key=lambda spec: spec.size)
    stored = held.plan.kind if held.plan else {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}[widest.dtype]
    return Weights(held.config, held.specs, stored, _group_size(held.plan))


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
    config = AXK1Config.preset("k1", num_nextn_predict_layers=int(mtp))
    plan = None if stored == "bf16" else make_plan(config, stored)  # pyright: ignore[reportArgumentType]
    expected = expected_tensors(config, "per_expert" if plan else "released")
    specs = (spec for spec in expected if not spec.name.endswith("e_score_correction_bias"))
    return Weights(config, tuple(stored_specs(specs, plan)), stored, _group_size(plan))


def without_mtp(weights: Weights) -> Weights:
    """The same without MTP modules: engines load them for drafts only."""
    trunk = weights.config.num_hidden_layers
    config = AXK1Config.from_dict(weights.config.to_dict() | {"num_nextn_predict_layers": 0})
    tensors = tuple(spec for spec in weights.tensors if (layer_index(spec.name) or 0) < trunk)
    return replace(weights, config=config, tensors=tensors)


def _group_size(plan: Plan | None) -> int | None:
    schemes = plan.expert_schemes("model.layers.1.mlp.experts") if plan else None
    return schemes[1].group_size if schemes else None
