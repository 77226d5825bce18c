"""What this machine reaches, in a process of its own: the bandwidth of memory, and products of matrices in bfloat16."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from axk1.bench.meter import measure_limits, start_meter

SECONDS = 2.0


def measure_machine(device: str) -> tuple[float, float]:
    """Bytes and operations per second of ``cpu`` or ``cuda``; of a processor the better of its two dtypes."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with TemporaryDirectory(prefix="axk1-") as logs:
        meter = start_meter(threads, device, Path(logs))
        try:
            limits = measure_limits(meter, threads, device, SECONDS)
        finally:
            meter.close()
    return limits.rates.bandwidth, max(limits.matmul.values())
