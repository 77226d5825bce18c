"""Two processes on one CPU, over gloo: tensor, expert and pipeline parallel."""

from __future__ import annotations

from typing import Any

import pytest
from samples import prompts
from support import NANO

PLAIN = {"max_tokens": 16, "ignore_eos": True, "logprobs": 0, "prompt_logprobs": 0}
WAYS: dict[str, dict[str, Any]] = {
    "tensor": {"tensor_parallel_size": 2},
    "expert": {"tensor_parallel_size": 2, "enable_expert_parallel": True},
    # traced, since an eager stage has nothing to receive into (docs/upstream/vllm-cpu-pipeline-eager.md)
    "pipeline": {
        "pipeline_parallel_size": 2,
        "enforce_eager": False,
        "compilation_config": {"mode": 2, "backend": "eager"},
    },
}


def difference(one: dict, other: dict) -> float:
    pairs = zip(one["rows"], other["rows"], strict=True)
    return max(abs(a - b) for x, y in pairs for a, b in zip(x["logprobs"], y["logprobs"], strict=True))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict:
    from support import run_jobs

    (found,) = run_jobs([job({})], tmp_path_factory.mktemp("alone"))
    return found


def job(changes: dict[str, Any]) -> dict[str, Any]:
    engine = {"model": str(NANO), "dtype": "float32", **changes}
    return {"prompts": prompts(4, 6_000), "sampling": PLAIN, "engine": engine}


@pytest.mark.parametrize("way", WAYS)
def test_two_processes(alone, run_jobs, way: str) -> None:
    (both,) = run_jobs([job(WAYS[way])], VLLM_CPU_CI_ENV="0")  # which would leave the warm-up out
    assert "error" not in both, both["error"]
    assert [row["answer"] for row in both["rows"]] == [row["answer"] for row in alone["rows"]]
    assert difference(alone, both) < 1e-4
