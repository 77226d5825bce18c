"""What training takes: the parameters that a token meets, operations of a step, bytes of weights and states."""

from __future__ import annotations

from typing import NamedTuple

from axk1.checkpoint.names import layer_index
from axk1.config import AXK1Config
from axk1.plan.bounds import is_routed
from axk1.plan.weights import parameter_counts

FLOAT = 4
"""Bytes: weights, gradients and optimizer states are in float32 whatever the products are in."""


class Parameters(NamedTuple):
    """Of a model with its MTP modules."""

    total: int
    active: int
    """In the products of a token: without the embedding, which is looked up, and the experts that are not chosen."""
    modules: int
    """Of the active ones, those of MTP modules."""


def count_parameters(config: AXK1Config) -> Parameters:
    """From the table of tensors."""
    chosen = config.num_experts_per_tok / config.n_routed_experts
    dense = (layer for layer, kind in enumerate(config.mlp_layer_types or ()) if kind == "dense")
    idle = {f"model.layers.{layer}.post_mlp_layernorm.weight" for layer in dense}  # stored, never applied
    total = active = modules = 0.0
    for name, count in parameter_counts(config).items():
        total += count
        looked_up = "embed_tokens" in name and not config.tie_word_embeddings
        met = 0.0 if looked_up or name in idle else count * (chosen if is_routed(name) else 1.0)
        active += met
        modules += met if (layer_index(name) or 0) >= config.num_hidden_layers else 0.0
    return Parameters(int(total), int(active), int(modules))


def training_flops(found: Parameters, tokens: int, modules_only: bool = False) -> float:
    """Six times the active parameters for each token, the usual estimate without attention's products; where MTP
    modules alone are trained, two for the trunk and six for them."""
    each = 2 * found.active + 4 * found.modules if modules_only else 6 * found.active
    return float(tokens) * each


def training_bytes(parameters: int, states: int) -> int:
    """Bytes of weights, gradients and an optimizer's ``states`` numbers; activations come on top."""
    return FLOAT * (2 * parameters + states)
