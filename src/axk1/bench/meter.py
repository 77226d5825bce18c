"""Measures what the machine can do at most: memory bandwidth and matrix multiplication."""

from __future__ import annotations

import sys
from pathlib import Path

from axk1.bench.client import Worker
from axk1.bench.engines import WORKERS, Engine, environment
from axk1.plan.machine import Limits

BANDWIDTH_BYTES = {"cpu": 2**30, "cuda": 2**32}
BESIDE_BYTES, BESIDE_SECONDS = 2**28, 0.25
"""For a look at the bandwidth between two turns."""
MATMUL_SIZE = {"cpu": 2_048, "cuda": 8_192}


def start_meter(threads: int, device: str, logs: Path) -> Worker:
    """A worker that measures the machine, in the same environment as the engines'."""
    engine = Engine("machine", "machine_worker.py")
    command = [sys.executable, "-u", str(WORKERS / engine.script)]
    return Worker("The meter", command, environment(engine, threads), logs / "machine.log")


def measure_limits(meter: Worker, threads: int, device: str, seconds: float) -> Limits:
    """Bandwidth, and matrix multiplications in bfloat16 and float32; the best that ``seconds`` and half of it show."""
    kind = "cuda" if device.startswith("cuda") else "cpu"
    loaded = meter.request("load", threads=threads, device=device)
    bandwidth = meter.request("bandwidth", size=BANDWIDTH_BYTES[kind], seconds=seconds)["rates"]
    matmul = {
        dtype: meter.request("matmul", dtype=dtype, size=MATMUL_SIZE[kind], seconds=seconds / 4)["best"]
        for dtype in ("bfloat16", "float32")
    }
    return Limits(bandwidth, matmul, loaded["device_name"])


def measure_bandwidth(meter: Worker) -> float:
    """Bytes per second that can be read right now: on a machine that is shared, that changes."""
    return meter.request("bandwidth", size=BESIDE_BYTES, seconds=BESIDE_SECONDS)["best"]
