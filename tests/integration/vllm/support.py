"""How tests run vLLM: its environment, and jobs in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
NANO = ROOT / "models" / "nano"
LM_EVAL = ROOT / ".venv-lm-eval" / "bin" / "lm_eval"
WORKER = Path(__file__).with_name("worker.py")
FLOAT32 = ("--dtype", "float32", "--attention-backend", "CPU_MLA")
"""With AMX, vLLM would take an attention that has no float32."""
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


def run_jobs(jobs: Jobs, folder: Path, **variables: str) -> Jobs:
    """Runs jobs (see worker.py) one after the other in a process of their own and returns their results."""
    for job in jobs:
        if job["engine"].get("dtype") == "float32":
            job["engine"].setdefault("attention_backend", FLOAT32[3])
    asked, answered = folder / "jobs.json", folder / "results.json"
    asked.write_text(json.dumps(jobs))
    command = [sys.executable, str(WORKER), str(asked), str(answered)]
    values = environment(**{"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **variables})
    done = subprocess.run(command, env=values, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(answered.read_text())
