"""mlx-lm, in the environment that `make bench-peers` sets up; on a CPU its experts are fp32 or quantised."""

from __future__ import annotations

import importlib.metadata
import time
from pathlib import Path
from typing import Any

import mlx.core as mx  # pyright: ignore[reportMissingImports]
import mlx_lm.models  # pyright: ignore[reportMissingImports]
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache  # pyright: ignore[reportMissingImports]
from mlx_lm.utils import load_model, quantize_model  # pyright: ignore[reportMissingImports]
from protocol import random_ids, serve

MODELS = Path(__file__).parents[2] / "integrations" / "mlx" / "models"
STATE: dict[str, Any] = {}


def load(path: str, vocabulary: int, bits: int = 0, **_: Any) -> dict[str, Any]:
    """Loads a checkpoint: in fp32, or quantised to ``bits``."""
    mlx_lm.models.__path__.append(str(MODELS))
    start = time.perf_counter()
    model, config = load_model(Path(path), lazy=True)
    if bits:
        model, _ = quantize_model(model, config, 64, bits)
    else:
        model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    STATE.update(model=model, vocabulary=vocabulary, at=None)
    return {"seconds": time.perf_counter() - start, "version": importlib.metadata.version("mlx-lm"), "fills": False}


def prefill(tokens: int, batch: int = 1, seed: int = 0) -> dict[str, Any]:
    """Seconds until the first token after new prompts of ``tokens``."""
    ids = random_prompts(batch, tokens, seed)
    start = time.perf_counter()
    first(ids)
    return {"seconds": time.perf_counter() - start}


def decode(context: int, tokens: int, batch: int = 1) -> dict[str, Any]:
    """Seconds for ``tokens`` steps of all sequences after a context, which is computed once."""
    if STATE["at"] != (context, batch):
        STATE["last"], STATE["cache"] = first(random_prompts(batch, context, 500))
        STATE["at"] = (context, batch)
    last, cache = STATE["last"], STATE["cache"]
    start = time.perf_counter()
    for _ in range(tokens):
        last = STATE["model"](last[:, None], cache)[:, -1].argmax(axis=-1)
        mx.eval(last)
    seconds = time.perf_counter() - start
    trim_prompt_cache(cache, tokens)
    return {"seconds": seconds}


def answers(prompts: int, tokens: int) -> dict[str, Any]:
    """The most probable token after each of some random prompts."""
    return {"ids": first(random_prompts(prompts, tokens, 3))[0].tolist()}


def first(ids: mx.array) -> tuple[mx.array, list[Any]]:
    """The first token after each prompt ``[batch, tokens]``, and the cache."""
    cache = make_prompt_cache(STATE["model"])
    last = STATE["model"](ids, cache)[:, -1].argmax(axis=-1)
    mx.eval(last)
    return last, cache


def random_prompts(batch: int, tokens: int, seed: int) -> mx.array:
    """``[batch, tokens]``."""
    return mx.array([random_ids(tokens, STATE["vocabulary"], seed * 1_000 + row) for row in range(batch)])


if __name__ == "__main__":
    serve({"load": load, "prefill": prefill, "decode": decode, "answers": answers, "memory": lambda: {}})
