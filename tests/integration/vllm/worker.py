"""Runs jobs in vLLM, one engine after the other in this process: ``python worker.py JOBS.json RESULTS.json``.

A job: ``{"engine": {arguments of LLM}, "prompts": [[ids]], "sampling": {arguments of SamplingParams}}``. Its result:
per prompt the ids of prompt and reply and, where asked for, the log-probability of every id but the first; counts of
MTP drafts; or the error that loading raised.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

DEFAULTS = dict(
    skip_tokenizer_init=True, enforce_eager=True, max_model_len=512, max_num_seqs=16, disable_log_stats=False
)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One job's result."""
    from vllm import LLM, SamplingParams  # pyright: ignore[reportAttributeAccessIssue]: not this folder
    from vllm.distributed import cleanup_dist_env_and_memory

    engine = None
    try:
        engine = LLM(**{**DEFAULTS, **job["engine"]})
        sampling = SamplingParams(**{"temperature": 0, "detokenize": False, **job["sampling"]})
        prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
        replies = engine.generate(prompts, sampling, use_tqdm=False, **requests(job))
        return {"rows": [row(reply) for reply in replies], "drafts": drafts(engine)}
    except (ValueError, RuntimeError, KeyError, AssertionError, NotImplementedError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        if engine is not None:
            engine.llm_engine.engine_core.shutdown()
        del engine
        gc.collect()
        cleanup_dist_env_and_memory()


def requests(job: dict[str, Any]) -> dict[str, Any]:
    """What goes with every request: an adapter."""
    if "adapter" not in job:
        return {}
    from vllm.lora.request import LoRARequest

    return {"lora_request": LoRARequest("adapter", 1, job["adapter"])}


def row(reply: Any) -> dict[str, Any]:
    """Ids and log-probabilities of a reply."""
    prompt, answer = list(reply.prompt_token_ids), list(reply.outputs[0].token_ids)
    scores = [
        chosen[token].logprob  # pyright: ignore[reportOptionalSubscript]: the first, without one, is left out
        for chosen, token in (
            *zip((reply.prompt_logprobs or [None])[1:], prompt[1:], strict=False),
            *zip(reply.outputs[0].logprobs or [], answer, strict=False),
        )
    ]
    return {"prompt": prompt, "answer": answer, "logprobs": scores}


def drafts(engine: Any) -> dict[str, int]:
    """Counters of speculative decoding."""
    return {m.name: m.value for m in engine.get_metrics() if "spec_decode_num" in m.name and hasattr(m, "value")}


if __name__ == "__main__":
    jobs = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([run(job) for job in jobs]))
