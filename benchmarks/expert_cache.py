"""Records which experts a model's replies ask for, and counts what caches of several sizes and rules would have hit.

    python benchmarks/expert_cache.py [--model FOLDER] [--problems 12] [--trace FILE] [--json FILE]

Greedy replies, one after the other, to held-out problems in both modes, through a store that holds all experts; then
the simulator (``axk1.experts.simulate``), and the store itself at one size, whose hits have to be the simulator's.
Beside them the share of a layer's experts that the next layer's router names when it is given this layer's input: what
reading ahead could know.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from axk1.chat import Chat
from axk1.evaluation.held_out import held_out_problems
from axk1.experts.simulate import LRU, Belady, Decayed, Trace, asked, read_trace, simulate
from axk1.experts.store import store_of
from axk1.files import write_text
from axk1.generation.sampling import GREEDY
from axk1.generation.speculate import NO_DRAFTS
from axk1.load import load, resolve_model_path
from axk1.modeling.moe import AXK1MoE

DECAYS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0)
SHARES = (0.125, 0.25, 0.375, 0.5, 0.75)
"""Of all experts: the sizes of caches."""


def main() -> None:
    """Writes a table, and all numbers as JSON where asked."""
    options = _options()
    folder = resolve_model_path(options.model)
    trace, total, chosen = record(folder, options.problems)
    if options.trace:
        write_text(options.trace, json.dumps(trace))
    decode = [entry for entry in trace if len(entry[1]) == chosen]
    tables = {"steps of one token": table(decode, total)}
    slots = int(total * 0.5)
    result = {
        "model": folder.name,
        "problems": options.problems,
        "lists": len(trace),
        "asked": asked(trace),
        "hit_rates": tables,
        "engine": check_engine(folder, options.problems, slots, trace),
        "named_a_layer_ahead": ahead(folder, options.problems),
    }
    _print(result)
    if options.json:
        write_text(options.json, json.dumps(result, indent=2) + "\n")


def replies(chat: Chat, problems: int) -> None:
    """Answers the problems, each in both modes, one after the other."""
    for problem in held_out_problems(problems, seed=7):
        for think in (True, False):
            chat.reply(_message(problem), think=think, drafts=NO_DRAFTS, sampling=GREEDY, max_new_tokens=160)


def record(folder: Path, problems: int) -> tuple[list[tuple[int, tuple[int, ...]]], int, int]:
    """The trace of the replies, all experts of the model, and how many a token takes."""
    chat = Chat(*load(folder, device="cpu", expert_cache="1GiB"))
    store = store_of(chat.model)
    assert store is not None
    store.stream.trace()
    replies(chat, problems)
    return read_trace(store.stream.trace()), len(store.layout.experts), chat.model.config.num_experts_per_tok


def check_engine(folder: Path, problems: int, slots: int, trace: Trace) -> dict[str, int]:
    """Hits of the store itself with a cache of ``slots`` experts, and of the simulator with the same rule."""
    from axk1.experts.store import DECAY

    everything = store_of(load(folder, device="cpu", expert_cache="1GiB").model)
    assert everything is not None
    chat = Chat(*load(folder, device="cpu", expert_cache=slots * everything.layout.slot_bytes))
    replies(chat, problems)
    store = store_of(chat.model)
    assert store is not None
    return {"slots": slots, "store": store.counters().hits, "simulated": simulate(trace, slots, Decayed(DECAY))}


def table(trace: Trace, total: int) -> dict[str, dict[str, float]]:
    """Hit rates by rule and by the share of all experts that the cache holds."""
    rules: dict[str, Any] = {f"decayed {decay}": lambda decay=decay: Decayed(decay) for decay in DECAYS}
    rules |= {"LRU, all layers": LRU, "Belady": lambda: Belady(trace)}
    wanted = asked(trace)
    return {
        name: {f"{share:.1%}": round(simulate(trace, int(total * share), rule()) / wanted, 4) for share in SHARES}
        for name, rule in rules.items()
    }


@torch.no_grad()
def ahead(folder: Path, problems: int) -> dict[str, float]:
    """Of the experts that a layer chooses, the share that its router chooses from the input of the MoE block one layer
    (two, three) before."""
    model: Any = load(folder, device="cpu").model.eval()
    inputs: list[torch.Tensor] = []
    blocks = [module for layer in model.model.decoder_layers for module in layer.modules() if type(module) is AXK1MoE]
    hooks = [block.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for block in blocks]
    found: dict[int, list[int]] = {1: [0, 0], 2: [0, 0], 3: [0, 0]}
    chat = Chat(model, load(folder, device="cpu").tokenizer)
    for problem in held_out_problems(problems, seed=7):
        inputs.clear()
        model(torch.tensor([chat.prompt(_message(problem), think=True)]), use_cache=False)
        for distance, counts in found.items():
            for block, near, far in zip(blocks[distance:], inputs[distance:], inputs, strict=False):
                right, guessed = block.gate(near).indices, block.gate(far).indices
                counts[0] += int((right[:, :, None] == guessed[:, None, :]).sum())
                counts[1] += right.numel()
    for hook in hooks:
        hook.remove()
    return {f"{distance} layers": round(right / all_, 4) for distance, (right, all_) in found.items() if all_}


def _message(problem: Any) -> list[dict[str, str]]:
    return [{"role": "user", "content": problem.question}]


def _print(result: dict[str, Any]) -> None:
    for name, rates in result["hit_rates"].items():
        print(f"\nHit rates, {name}; the cache holds so much of all experts\n")  # noqa: T201
        print("| rule | " + " | ".join(next(iter(rates.values()))) + " |")  # noqa: T201
        print("|---|" + "---:|" * len(SHARES))  # noqa: T201
        for rule, row in rates.items():
            print(f"| {rule} | " + " | ".join(f"{value:.1%}" for value in row.values()) + " |")  # noqa: T201
    print(f"\nthe store itself: {result['engine']}; named ahead: {result['named_a_layer_ahead']}")  # noqa: T201


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="checkpoint folder; the nano by default")
    parser.add_argument("--problems", type=int, default=12)
    parser.add_argument("--trace", type=Path, help="write the trace as JSON")
    parser.add_argument("--json", type=Path, help="write all numbers as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
