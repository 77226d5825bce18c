"""Bytes on each GPU: weights as tensor, expert, data and pipeline parallelism place them, activations, cached latents.

The rules are those of vLLM and SGLang: matrices of heads and of MLPs are cut over the tensor-parallel group, experts
over all GPUs of a stage; what makes the latents is repeated, and so are the latents themselves: MLA has one for all
heads. Sizes of weights and latents are exact; activations and the reserve are estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from axk1.checkpoint.names import TensorSpec, layer_index
from axk1.config import AXK1Config
from axk1.plan.bounds import latent_bytes
from axk1.plan.formats import tensor_bytes
from axk1.plan.weights import Weights

GB = 10**9
RESERVE = 3 * GB
"""Estimate for the CUDA context, communication buffers, CUDA graphs and fragmentation of one GPU."""
Spare = Literal["middle", "last"]
"""Which stages get one layer more when layers do not divide evenly: vLLM's choice, SGLang's choice."""
_REPEATED = ("norm.weight", "q_a_proj", "kv_a_proj_with_mqa", "mlp.gate.", "eh_proj")


@dataclass(frozen=True)
class Parallel:
    """How a model is placed on GPUs."""

    tensor: int = 1
    """GPUs that share one copy of the attention."""
    pipeline: int = 1
    """Stages of consecutive layers."""
    data: int = 1
    """Copies of the attention in a stage, each with requests of its own."""
    expert: bool = False
    """Whole experts on each GPU, instead of a slice of every expert."""

    @property
    def stage(self) -> int:
        """GPUs of one stage, over which the routed experts are spread."""
        return self.tensor * self.data

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.stage * self.pipeline


@dataclass(frozen=True)
class Step:
    """The largest step an engine is allowed to make."""

    tokens: int
    """Of prompts and replies together, per copy of the attention."""
    sequences: int
    """Requests that get a token in it."""


@dataclass(frozen=True)
class GpuMemory:
    """One GPU of the fullest stage, in bytes."""

    usable: int
    weights: int
    """MTP module included."""
    mtp: int
    activations: int
    reserve: int
    latents_per_token: int
    cache: int
    """Left for latents; negative: the model does not fit."""

    @property
    def tokens(self) -> int:
        """Tokens of context whose latents fit."""
        return max(0, self.cache // self.latents_per_token)


def stage_layers(config: AXK1Config, stages: int, spare: Spare = "middle") -> list[range]:
    """The decoder layers of each pipeline stage.

    Raises:
        ValueError: more stages than layers.
    """
    layers = config.num_hidden_layers
    if stages > layers:
        raise ValueError(f"{stages} pipeline stages are more than the model's {layers} layers.")
    least, left = divmod(layers, stages)
    sizes = [least] * stages
    extra = range(stages - left, stages) if spare == "last" else range(stages - 1 - left, stages - 1)
    for index in extra:
        sizes[index] += 1
    starts = [sum(sizes[:index]) for index in range(stages)]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def share(name: str, parallel: Parallel) -> Fraction:
    """The part of the tensor ``name`` that one GPU of its stage holds."""
    if ".mlp.experts." in name:
        return Fraction(1, parallel.stage)
    if any(word in name for word in _REPEATED):
        return Fraction(1)
    return Fraction(1, parallel.tensor)


def stage_parts(weights: Weights, parallel: Parallel, spare: Spare = "middle") -> list[dict[str, Fraction]]:
    """Bytes of the weights on a GPU of each stage, by part of the model."""
    trunk, depth = weights.config.num_hidden_layers, weights.config.num_nextn_predict_layers
    stages = stage_layers(weights.config, parallel.pipeline, spare)
    last = len(stages) - 1
    home = {layer: index for index, stage in enumerate(stages) for layer in stage}
    found: list[dict[str, Fraction]] = [{} for _ in stages]
    for spec in weights.tensors:
        size = share(spec.name, parallel) * tensor_bytes(spec)
        layer = layer_index(spec.name)
        part = "MTP" if layer is not None and layer >= trunk else spec.part
        for stage in _homes(spec, layer, home, last, bool(depth) or weights.config.tie_word_embeddings):
            found[stage][part] = found[stage].get(part, Fraction(0)) + size
    return found


def weight_bytes(weights: Weights, parallel: Parallel, spare: Spare = "middle") -> list[tuple[int, int]]:
    """Bytes of the weights on a GPU of each stage: all, and of these the MTP module."""
    stages = stage_parts(weights, parallel, spare)
    return [(round(sum(parts.values())), round(parts.get("MTP", 0))) for parts in stages]


def fullest_parts(weights: Weights, parallel: Parallel, spare: Spare = "middle") -> dict[str, int]:
    """Bytes by part on a GPU of the stage that holds most."""
    parts = max(stage_parts(weights, parallel, spare), key=lambda parts: sum(parts.values()))
    return {part: round(size) for part, size in parts.items()}


def _homes(spec: TensorSpec, layer: int | None, home: dict[int, int], last: int, embeds_last: bool) -> set[int]:
    if layer is not None:
        return {home.get(layer, last)}
    if "embed_tokens" in spec.name:  # drafts embed the token that was sampled after the last stage
        return {0, last} if embeds_last else {0}
    return {last}


def activation_bytes(config: AXK1Config, parallel: Parallel, step: Step) -> int:
    """Estimate of the largest amount that one layer and the logits of a step take, in bf16 (logits in fp32).

    The most is what goes into and comes out of the experts, once for each of a token's experts; with several copies of
    the attention, every GPU collects the tokens of all.
    """
    hidden = config.hidden_size
    routed = step.tokens * parallel.data * config.num_experts_per_tok
    slices = 1 if parallel.expert else parallel.stage
    experts = routed * (2 * hidden + 3 * config.moe_intermediate_size // slices)
    heads = config.num_attention_heads // parallel.tensor
    attention = step.tokens * heads * (2 * config.qk_head_dim + 2 * config.v_head_dim)
    dense = step.tokens * 3 * config.intermediate_size // parallel.tensor
    residual = step.tokens * 4 * hidden
    logits = step.sequences * config.vocab_size * 4 * 2  # as computed, and as probabilities
    return 2 * (residual + max(experts, attention, dense)) + logits


def latents_per_token(config: AXK1Config, parallel: Parallel, spare: Spare = "middle", itemsize: int = 2) -> int:
    """Bytes that a token of context takes on a GPU of the fullest stage, MTP modules included."""
    layers = [len(stage) for stage in stage_layers(config, parallel.pipeline, spare)]
    layers[-1] += config.num_nextn_predict_layers
    return latent_bytes(config, itemsize) * max(layers) // config.num_hidden_layers


def gpu_memory(
    weights: Weights, parallel: Parallel, step: Step, memory: int, fraction: float = 0.9, spare: Spare = "middle"
) -> GpuMemory:
    """What one GPU holds; of unequal stages the one with the least room.

    Args:
        memory: bytes of one GPU.
        fraction: the part of them that the engine may use.
    """
    usable = int(memory * fraction)
    total, mtp = max(weight_bytes(weights, parallel, spare))
    activations = activation_bytes(weights.config, parallel, step)
    return GpuMemory(
        usable=usable,
        weights=total,
        mtp=mtp,
        activations=activations,
        reserve=RESERVE,
        latents_per_token=latents_per_token(weights.config, parallel, spare),
        cache=usable - total - activations - RESERVE,
    )
