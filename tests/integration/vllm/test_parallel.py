"""Tensor parallel: two processes on one CPU, over gloo."""

from __future__ import annotations

from samples import prompts
from support import NANO

PLAIN = {"max_tokens": 16, "ignore_eos": True, "logprobs": 0, "prompt_logprobs": 0}


def difference(one: dict, other: dict) -> float:
    pairs = zip(one["rows"], other["rows"], strict=True)
    return max(abs(a - b) for x, y in pairs for a, b in zip(x["logprobs"], y["logprobs"], strict=True))


def test_tensor_parallel(run_jobs) -> None:
    engine = {"model": str(NANO), "dtype": "float32"}
    asked = {"prompts": prompts(4, 6_000), "sampling": PLAIN}
    (alone,) = run_jobs([asked | {"engine": engine}])
    (both,) = run_jobs([asked | {"engine": engine | {"tensor_parallel_size": 2}}])
    assert "error" not in both, both["error"]
    assert [row["answer"] for row in both["rows"]] == [row["answer"] for row in alone["rows"]]
    assert difference(alone, both) < 1e-4
