"""What a recipe will take, before anything starts: parameters, memory, and the tokens and FLOPs of every stage."""

from __future__ import annotations

from typing import NamedTuple

import torch

from axk1.modeling import AXK1ForCausalLM
from axk1.plan.training import GraftEstimate, count_parameters, training_bytes, training_flops
from axk1.train.muon import parameter_groups
from axk1.train.packing import TOKEN_BYTES
from axk1.train.recipe import Recipe, Stage


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
    """The arithmetic of :mod:`axk1.plan.training`, and the states of the optimizers on a model without storage."""
    config = recipe.config()
    with torch.device("meta"):
        model = AXK1ForCausalLM(config)
    found = count_parameters(config)
    shapes = [recipe.at(stage) for stage in recipe.stage]
    tokens = [s.steps * here.batch_rows * here.row_tokens for s, here in zip(recipe.stage, shapes, strict=True)]
    flops = [training_flops(found, n, s.learn != "all") for s, n in zip(recipe.stage, tokens, strict=True)]
    memory = max(training_bytes(found.total, _states(model, stage)) for stage in recipe.stage)
    return Estimate(found.total, found.active, memory, tuple(zip(recipe.stage, tokens, flops, strict=True)))


def _states(model: AXK1ForCausalLM, stage: Stage) -> int:
    """Muon keeps one state for each of its parameters, AdamW two."""
    groups = parameter_groups(model, muon_lr=1.0, lr=1.0)
    return sum(
        parameter.numel() * (1 if group["muon"] and stage.muon_learning_rate else 2)
        for group in groups
        for parameter in group["params"]
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
        rows = f" in rows of {stage.row_tokens:,}" if stage.row_tokens else ""
        lines.append(f"{stage.name}: {stage.steps:,} steps, {tokens:,} tokens{rows}, {flops:.1e} FLOPs")
    tokens = sum(tokens for _, tokens, _ in found.stages)
    flops = sum(flops for _, _, flops in found.stages)
    disk = TOKEN_BYTES * tokens / 1e6
    return [*lines, f"in all {tokens:,} tokens, {disk:,.0f} MB of disk for them, {flops:.1e} FLOPs"]
