"""The command line of SGLang; on several machines each runs the same one with its own rank."""

from __future__ import annotations

import json
import math

from axk1.integrations.launch.order import PARSER, Command, Order

INIT_PORT = 20000
KEY_FILE = "api-key.yaml"
"""Stands for the path of a file with the key: SGLang reads it from no variable, and arguments are for all to see."""
SERVE = ("-m", "sglang.cli.main", "serve")


def commands(order: Order, python: str = "python") -> list[Command]:
    """What this machine runs."""
    files = {KEY_FILE: f"api-key: {json.dumps(order.api_key)}\n"} if order.api_key else {}  # JSON's strings are YAML's
    return [Command((python, *SERVE, *arguments(order)), files=files)]


def arguments(order: Order) -> list[str]:
    """The arguments of ``sglang serve``."""
    parallel, nodes = order.choice.parallel, order.hardware.nodes
    words = ["--model-path", order.model, "--host", order.host, "--port", str(order.port)]
    words += ["--tp-size", str(parallel.stage)]  # copies of the attention lie inside this group
    if parallel.pipeline > 1:
        words += ["--pp-size", str(parallel.pipeline)]
    if parallel.data > 1:
        words += ["--attn-dp-size", str(parallel.data)]
    if parallel.expert:
        words += ["--ep-size", str(parallel.stage)]
    if nodes > 1:
        words += ["--nnodes", str(nodes), "--node-rank", str(order.rank)]
        words += ["--dist-init-addr", f"{order.head}:{INIT_PORT}"]
    words += ["--context-length", str(order.choice.context), "--max-running-requests", str(order.step.sequences)]
    words += ["--chunked-prefill-size", str(order.step.tokens * parallel.data)]  # divided among the copies
    words += ["--device", "cpu"] if order.hardware.device == "cpu" else []
    words += ["--mem-fraction-static", f"{static_fraction(order):.2f}"]
    if order.dtype != "auto":
        words += ["--dtype", order.dtype]
    words += ["--reasoning-parser", PARSER, "--tool-call-parser", PARSER]
    words += ["--default-chat-template-kwargs", json.dumps({"enable_thinking": order.think})]
    if order.drafts:
        words += ["--speculative-algorithm", "EAGLE", "--speculative-draft-model-path", order.model]
        words += ["--speculative-num-steps", str(order.drafts), "--speculative-eagle-topk", "1"]
        words += ["--speculative-num-draft-tokens", str(order.drafts + 1)]
    if order.api_key:
        if "--config" in order.extra:
            raise ValueError("SGLang reads one --config only: put api-key into yours, and leave --api-key out.")
        words += ["--config", KEY_FILE]
    return [*words, *order.extra]


def static_fraction(order: Order) -> float:
    """The part of a GPU's memory for weights and latents: what activations and the reserve leave, rounded down."""
    memory = order.choice.memory
    return math.floor(100 * (memory.weights + memory.cache) / order.hardware.memory) / 100
