"""llama.cpp through the wheel `xllamacpp`, in the environment that `make bench-peers` sets up."""

from __future__ import annotations

import importlib.metadata
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xllamacpp  # pyright: ignore[reportMissingImports]
from protocol import random_ids, serve

STATE: dict[str, Any] = {}


def load(path: str, threads: int, max_context: int, max_batch: int, vocabulary: int, **_: Any) -> dict[str, Any]:
    """Loads a GGUF file into llama.cpp's own server; nothing but this process can reach it."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = max_context * max_batch
    params.n_parallel = max_batch
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.warmup = False
    params.verbosity = -1
    start = time.perf_counter()
    STATE["server"] = xllamacpp.Server(params)
    STATE["vocabulary"], STATE["slots"] = vocabulary, max_batch
    version = importlib.metadata.version("xllamacpp")
    return {"seconds": time.perf_counter() - start, "version": version, "fills": False}


def prefill(tokens: int, batch: int = 1, seed: int = 0) -> dict[str, Any]:
    """Seconds for new prompts of ``tokens``, as the server itself counts them."""
    return {"seconds": max(reply["timings"]["prompt_ms"] for reply in ask(tokens, seed, batch, answer=1)) / 1e3}


def decode(context: int, tokens: int, batch: int = 1) -> dict[str, Any]:
    """Seconds for ``tokens`` steps, as the server itself counts them from each row's first token."""
    ask(context, 500, batch, answer=1)  # the contexts stay in their slots
    timings = [reply["timings"] for reply in ask(context, 500, batch, answer=tokens + 1)]
    return {"seconds": max(timing["predicted_ms"] / (timing["predicted_n"] - 1) for timing in timings) * tokens / 1e3}


def answers(prompts: int, tokens: int) -> dict[str, Any]:
    """The most probable token after each of some random prompts. The server tells tokens as text: t17 is 17."""
    texts = [ask(tokens, 3, 1, answer=1, row=row)[0]["choices"][0]["text"] for row in range(prompts)]
    return {"ids": [int(text.removeprefix("t")) for text in texts]}


def ask(context: int, seed: int, batch: int, answer: int, row: int = 0) -> list[dict[str, Any]]:
    """Answers of ``answer`` tokens to prompts of ``context``, one per slot, all at the same time."""

    def one(row: int) -> dict[str, Any]:
        request = {
            "prompt": random_ids(context, STATE["vocabulary"], seed * 1_000 + row),
            "n_predict": answer,
            "id_slot": row % STATE["slots"],
            "cache_prompt": True,
            "ignore_eos": True,
            "temperature": 0.0,
        }
        return STATE["server"].handle_completions(request)

    with ThreadPoolExecutor(batch) as pool:
        return list(pool.map(one, range(row, row + batch)))


if __name__ == "__main__":
    serve({"load": load, "prefill": prefill, "decode": decode, "answers": answers, "memory": lambda: {}})
