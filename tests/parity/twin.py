"""Pairs of models with the same weights: ours and transformers' own ``axk1``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import pytest
import torch
from tiny import ROPES, build, random_fields
from transformers import PreTrainedModel
from transformers.models.axk1.configuration_axk1 import AXK1Config as TheirConfig
from transformers.models.axk1.modeling_axk1 import AXK1ForCausalLM as TheirModel


@dataclass
class Pair:
    """The same model twice. ``Any``: type checkers do not follow what transformers' decorators make of a model."""

    ours: Any  # AXK1ForCausalLM
    theirs: Any  # transformers' AXK1ForCausalLM


def their_name(name: str) -> str:
    """Our parameter's name in transformers' module tree, where the post-MLP norm sits inside the MLP."""
    return name.replace(".post_mlp_layernorm", ".mlp.post_mlp_layernorm")


def their_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Our weights under their names, without the dense layers' unused norm and the MTP modules, which they lack."""
    config: Any = model.config
    kept = {}
    for name, tensor in model.state_dict().items():
        layer = int(name.split(".")[2]) if name.startswith("model.layers.") else None
        unused = "post_mlp_layernorm" in name and layer is not None and not config.is_moe_layer(layer)
        if not unused and (layer is None or layer < config.num_hidden_layers):
            kept[their_name(name)] = tensor.clone()
    return kept


def leading_dense(layer_types: list[str]) -> int:
    """How many layers before the first MoE layer are dense: all that older versions of transformers can express."""
    count = layer_types.count("dense")
    if "dense" in layer_types[count:]:
        pytest.skip("this transformers has no mlp_layer_types")
    return count


def make_pair(seed_fields: dict[str, Any], seed: int = 0, **ours_only: Any) -> Pair:
    """Builds both from the same fields; ``ours_only`` are fields that transformers does not have."""
    ours = build(seed_fields, seed, **ours_only)
    seed_fields = {**seed_fields, "num_key_value_heads": seed_fields["num_attention_heads"]}  # theirs defaults to 64
    known = {field.name for field in fields(TheirConfig)}
    if "mlp_layer_types" not in known:
        seed_fields["first_k_dense_replace"] = leading_dense(seed_fields["mlp_layer_types"])
    theirs = TheirModel(TheirConfig(**{name: value for name, value in seed_fields.items() if name in known}))
    theirs.load_state_dict(their_state(ours), strict=True)
    return Pair(ours, theirs.eval())


@cache
def drawn_pair(seed: int) -> Pair:
    """The pair of one drawn shape, built once; a test must leave weights and configuration as they were."""
    return make_pair(random_fields(seed, rope_parameters=dict(ROPES[seed % len(ROPES)])), seed)


SEEDS = range(6)
"""Shapes that differ in routing, layers, rope, heads and biases."""


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest absolute difference."""
    assert ours.shape == theirs.shape
    return (ours.float() - theirs.float()).abs().max().item()
