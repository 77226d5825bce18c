"""What was decided and why, as text before the command and as data for ``--json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from axk1.integrations.launch.order import SECRET, Command, Order
from axk1.plan.memory import GB
from axk1.plan.weights import Weights


def memory_rows(order: Order) -> list[tuple[str, str]]:
    """The arithmetic of the fullest GPU, line by line."""
    memory = order.choice.memory

    def gb(size: int) -> str:
        return f"{size / GB:.2f} GB"

    weights = gb(memory.weights) + (f", of these the MTP module {gb(memory.mtp)}" if memory.mtp else "")
    tokens, context = memory.tokens, order.choice.context
    return [
        ("usable", f"{gb(memory.usable)}, {order.fraction:.0%} of {gb(order.hardware.memory)}"),
        ("weights", weights),
        ("activations", f"{gb(memory.activations)} (estimate: steps of {order.step.tokens:,} tokens)"),
        ("reserve", f"{gb(memory.reserve)} (estimate: CUDA context, communication, graphs)"),
        ("latents", f"{gb(memory.cache)}, {memory.latents_per_token:,} bytes per token: {tokens:,} tokens"),
        ("requests", f"{tokens * order.choice.parallel.data // context:,} of {context:,} tokens at once"),
    ]


def explanation(order: Order, weights: Weights) -> str:
    """Lines on the model, the machines, the sizes of parallelism and the memory."""
    lines = [
        f"{order.model}: {weights.sizes.total / GB:,.2f} GB in {weights.stored}",
        f"on {order.hardware}, for {order.engine}",
    ]
    lines += [f"  {reason}" for reason in order.choice.reasons]
    lines.append("a GPU of the fullest stage" if order.choice.parallel.pipeline > 1 else "each GPU")
    lines += [f"  {name:<12}{text}" for name, text in memory_rows(order)]
    return "\n".join([*lines[:2], *map(order.hardware.words, lines[2:])])


def to_dict(order: Order, machines: Mapping[int, Sequence[Command]]) -> dict[str, Any]:
    """Plain data; secrets are left out.

    Args:
        machines: commands by the number of the machine.
    """

    def clean(text: str) -> str:
        return SECRET if order.api_key is not None and text == order.api_key else text

    def plain(command: Command) -> dict[str, Any]:
        return {
            "arguments": [clean(word) for word in command.arguments],
            "environment": {name: clean(value) for name, value in command.environment.items()},
            "background": command.background,
        }

    return {
        "model": order.model,
        "engine": order.engine,
        "hardware": asdict(order.hardware),
        "parallel": asdict(order.choice.parallel),
        "memory": {**asdict(order.choice.memory), "tokens": order.choice.memory.tokens},
        "context": order.choice.context,
        "reasons": [order.hardware.words(reason) for reason in order.choice.reasons],
        "machines": {rank: [plain(command) for command in commands] for rank, commands in machines.items()},
    }


def command_lines(machines: Mapping[int, Sequence[Command]]) -> list[str]:
    """The commands of each machine; machines that run the same are named together."""
    texts: dict[tuple[str, ...], list[int]] = {}
    for rank, commands in machines.items():
        texts.setdefault(tuple(str(command) for command in commands), []).append(rank)
    lines = []
    for commands, ranks in texts.items():
        if len(machines) > 1:
            lines.append(f"machine {ranks[0]}:" if len(ranks) == 1 else f"machines {ranks[0]} to {ranks[-1]}, each:")
        lines += [f"$ {command}" for command in commands]
    return lines
