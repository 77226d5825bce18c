"""Checkpoints and a runner for tests in the real engine; skipped where vLLM is not installed (``make engines`` has it)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
NANO = ROOT / "models" / "nano"
WORKER = Path(__file__).with_name("worker.py")
INSTALLED = importlib.util.find_spec("vllm") is not None
collect_ignore_glob = [] if INSTALLED else ["test_*.py"]
if INSTALLED:
    sys.path.insert(0, str(Path(__file__).parent))

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_CI_ENV": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}


def environment(**changes: str) -> dict[str, str]:
    """This process's variables and what vLLM needs on a small machine without a network."""
    return {**os.environ, **ENVIRONMENT, **changes}


Jobs = list[dict[str, Any]]


@pytest.fixture
def run_jobs(tmp_path: Path) -> Callable[..., Jobs]:
    """Runs jobs (see worker.py) in a process of their own and returns their results."""

    def run(jobs: Jobs, **variables: str) -> Jobs:
        asked, answered = tmp_path / "jobs.json", tmp_path / "results.json"
        asked.write_text(json.dumps(jobs))
        command = [sys.executable, str(WORKER), str(asked), str(answered)]
        values = environment(**{"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **variables})
        done = subprocess.run(command, env=values, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(answered.read_text())

    return run
