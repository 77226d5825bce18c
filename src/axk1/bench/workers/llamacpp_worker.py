"""llama.cpp with our patches, as `make llamacpp` builds it for this machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from llamacpp_binding import Input, LlamaCpp
from protocol import random_ids, serve

STATE: dict[str, Any] = {}


def load(
    path: str, build: str, threads: int, max_context: int, max_batch: int, vocabulary: int, **_: Any
) -> dict[str, Any]:
    """Loads a GGUF file."""
    start = time.perf_counter()
    engine = LlamaCpp(Path(build), Path(path), max_context, threads, max_batch)
    STATE.update(engine=engine, vocabulary=vocabulary, at=None)
    return {"seconds": time.perf_counter() - start, "version": engine.version, "fills": False}


def prefill(tokens: int, batch: int = 1, seed: int = 0) -> dict[str, Any]:
    """Seconds until the first token after new prompts of ``tokens``."""
    start = time.perf_counter()
    first(tokens, batch, seed)
    return {"seconds": time.perf_counter() - start}


def decode(context: int, tokens: int, batch: int = 1) -> dict[str, Any]:
    """Seconds for ``tokens`` steps of all sequences after a context, which is computed once."""
    if STATE["at"] != (context, batch):
        STATE["last"] = first(context, batch, 500)
        STATE["at"] = (context, batch)
    engine, last = STATE["engine"], STATE["last"]
    start = time.perf_counter()
    for i in range(tokens):
        last = engine.step([Input(int(token), context + i, row) for row, token in enumerate(last)]).argmax(-1)
    seconds = time.perf_counter() - start
    engine.forget(context)
    return {"seconds": seconds}


def answers(prompts: int, tokens: int) -> dict[str, Any]:
    """The most probable token after each of some random prompts."""
    return {"ids": [int(first(tokens, 1, 3, row)[0]) for row in range(prompts)]}


def first(tokens: int, batch: int, seed: int, row: int = 0) -> np.ndarray:
    """The first token after each of ``batch`` new prompts, from the one numbered ``row`` on."""
    engine, STATE["at"] = STATE["engine"], None
    engine.forget()
    prompts = [random_ids(tokens, STATE["vocabulary"], seed * 1_000 + row + i) for i in range(batch)]
    inputs = [Input(ids[i], i, n, i == tokens - 1) for n, ids in enumerate(prompts) for i in range(tokens)]
    return engine.step(inputs).argmax(-1)


if __name__ == "__main__":
    serve({"load": load, "prefill": prefill, "decode": decode, "answers": answers, "memory": lambda: {}})
