"""What a recipe will take, before anything starts: parameters, memory, and the tokens and FLOPs of every stage."""

from __future__ import annotations

from typing import NamedTuple

import torch

from axk1.checkpoint.names import expected_tensors, layer_index
from axk1.checkpoint.verify import with_mtp_layers
from axk1.config import AXK1Config
from axk1.modeling import AXK1ForCausalLM
from axk1.train.muon import parameter_groups
from axk1.train.recipe import Recipe, Stage

_HALF = 2
_FLOAT = 4  # bytes: weights, gradients and optimizer states are in float32 whatever the products are in


class Estimate(NamedTuple):
    """Of a whole run.

    Attributes:
        parameters: of the model, its MTP modules included.
        active: those that one token meets in a product: without the embedding, which is looked up, and without the
            routed experts that are not chosen.
        memory: bytes of weights, gradients and optimizer states at most; activations come on top.
        stages: tokens and FLOPs of each.
    """

    parameters: int
    active: int
    memory: int
    stages: tuple[tuple[Stage, int, float], ...]


def estimate(recipe: Recipe) -> Estimate:
    """Counts on a model without storage. FLOPs are six times the active parameters for each token, the usual estimate
    without attention's products; of a stage that trains MTP modules alone two for the trunk and six for them."""
    config = recipe.config()
    with torch.device("meta"):
        model = AXK1ForCausalLM(config)
    chosen = config.num_experts_per_tok / config.n_routed_experts
    dense = (layer for layer, kind in enumerate(config.mlp_layer_types or ()) if kind == "dense")
    idle = {f"model.layers.{layer}.post_mlp_layernorm.weight" for layer in dense}  # stored, never applied
    of_modules = {id(parameter) for module in model.model.mtp_layers for parameter in module.parameters()}
    total = active = modules = 0.0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        part = chosen if ".mlp.experts." in name else 1.0
        met = 0.0 if "embed_tokens" in name or name in idle else parameter.numel() * part
        active += met
        modules += met if id(parameter) in of_modules else 0.0
    tokens = [stage.steps * recipe.batch_rows * recipe.row_tokens for stage in recipe.stage]
    passes = [6 * active if stage.learn == "all" else 2 * active + 4 * modules for stage in recipe.stage]
    stages = tuple((s, n, n * flops) for s, n, flops in zip(recipe.stage, tokens, passes, strict=True))
    return Estimate(int(total), int(active), max(_memory(model, stage) for stage in recipe.stage), stages)


def _memory(model: AXK1ForCausalLM, stage: Stage) -> int:
    """Muon keeps one state for each of its parameters, AdamW two."""
    groups = parameter_groups(model, muon_lr=1.0, lr=1.0)
    states = sum(
        parameter.numel() * (1 if group["muon"] and stage.muon_learning_rate else 2)
        for group in groups
        for parameter in group["params"]
    )
    return _FLOAT * (2 * sum(parameter.numel() for parameter in model.parameters()) + states)


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
    state = config.hidden_size * _HALF
    return GraftEstimate(
        module, max(layers.values()) * _HALF, state, module * _FLOAT * (3 if muon else 4), ends * _FLOAT
    )


def graft_sentences(found: GraftEstimate) -> list[str]:
    """The estimate as lines for people."""
    return [
        f"a module of {found.parameters:,} parameters",
        f"reading the texts: a layer of {found.layer / 1e9:,.1f} GB in 16 bits, and {2 * found.state:,} bytes of disk "
        "for each token",
        f"training: {found.module / 1e9:,.1f} GB of weights, gradients and optimizer states, "
        f"{found.ends / 1e9:,.1f} GB of embedding and head, and activations on top",
    ]


def sentences(found: Estimate) -> list[str]:
    """The estimate as lines for people."""
    lines = [
        f"{found.parameters:,} parameters, {found.active:,} of them in the products of a token",
        f"{found.memory / 1e6:,.0f} MB of weights, gradients and optimizer states, and activations on top",
    ]
    for stage, tokens, flops in found.stages:
        lines.append(f"{stage.name}: {stage.steps:,} steps, {tokens:,} tokens, {flops:.1e} FLOPs")
    tokens = sum(tokens for _, tokens, _ in found.stages)
    flops = sum(flops for _, _, flops in found.stages)
    return [*lines, f"in all {tokens:,} tokens, {flops:.1e} FLOPs"]
