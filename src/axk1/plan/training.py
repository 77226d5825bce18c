"""What training takes: the parameters that a token meets, operations of a step, bytes of weights and states."""

from __future__ import annotations

from typing import NamedTuple

from axk1.checkpoint.names import expected_tensors, layer_index
from axk1.checkpoint.verify import with_mtp_layers
from axk1.config import AXK1Config
from axk1.plan.bounds import is_routed
from axk1.plan.weights import parameter_counts

FLOAT = 4
"""Bytes: weights, gradients and optimizer states are in float32 whatever the products are in."""
HALF = 2
"""Bytes of a value in 16 bits."""


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


class GraftEstimate(NamedTuple):
    """Of an MTP module for a finished checkpoint (:mod:`axk1.train.graft`), in bytes but for ``parameters``.

    Attributes:
        parameters: of the module.
        layer: the largest layer of the trunk in 16 bits, of which one is in memory while the texts are read.
        state: of one token on disk, twice while a layer runs.
        module: the module's weights, gradients and optimizer states.
        ends: embedding and head.
    """

    parameters: int
    layer: int
    state: int
    module: int
    ends: int


def estimate_graft(config: AXK1Config, muon: bool) -> GraftEstimate:
    """From shapes alone. Muon keeps one state for each value of a matrix, AdamW two."""
    layers: dict[int | None, int] = {}
    for spec in expected_tensors(with_mtp_layers(config, 1)):
        layers[layer_index(spec.name)] = layers.get(layer_index(spec.name), 0) + spec.parameters
    module = layers.pop(config.num_hidden_layers)
    ends = layers.pop(None) - config.hidden_size
    state = config.hidden_size * HALF
    largest = max(layers.values()) * HALF
    return GraftEstimate(module, largest, state, training_bytes(module, module * (1 if muon else 2)), ends * FLOAT)
