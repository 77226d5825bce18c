"""What a recipe will take, before anything starts: parameters, memory, and the tokens and FLOPs of every stage."""

from __future__ import annotations

from typing import NamedTuple

import torch

from axk1.modeling import AXK1ForCausalLM
from axk1.train.muon import parameter_groups
from axk1.train.recipe import Recipe, Stage

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
