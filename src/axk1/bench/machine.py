"""What this machine is, and what it can do at most."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import axk1
from axk1.bench.bounds import Rates
from axk1.bench.client import Worker
from axk1.bench.engines import WORKERS, Engine, environment

FEATURES = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx2")
BANDWIDTH_BYTES = {"cpu": 2**30, "cuda": 2**32}
BESIDE_BYTES, BESIDE_SECONDS = 2**28, 0.25
"""For a look at the bandwidth between two turns."""
MATMUL_SIZE = {"cpu": 2_048, "cuda": 8_192}
SECONDS = 4.0


@dataclass(frozen=True)
class Limits:
    """Rates that were reached, kernel by kernel, and where."""

    bandwidth: dict[str, float]
    matmul: dict[str, float]
    device_name: str | None = None

    @property
    def rates(self) -> Rates:
        """The best of each."""
        return Rates(max(self.bandwidth.values()), self.matmul)

    def better(self, other: Limits) -> Limits:
        """The higher rate of two measurements: what the machine reached once, it can do."""
        return Limits(
            {name: max(rate, other.bandwidth[name]) for name, rate in self.bandwidth.items()},
            {name: max(rate, other.matmul[name]) for name, rate in self.matmul.items()},
            self.device_name,
        )


def start_meter(threads: int, device: str, logs: Path) -> Worker:
    """A worker that measures the machine, in the same environment as the engines'."""
    engine = Engine("machine", "machine_worker.py")
    command = [sys.executable, "-u", str(WORKERS / engine.script)]
    return Worker("The meter", command, environment(engine, threads), logs / "machine.log")


def measure_limits(meter: Worker, threads: int, device: str) -> Limits:
    """Bandwidth, and matrix multiplications in bfloat16 and float32."""
    kind = "cuda" if device.startswith("cuda") else "cpu"
    loaded = meter.request("load", threads=threads, device=device)
    bandwidth = meter.request("bandwidth", size=BANDWIDTH_BYTES[kind], seconds=SECONDS)["rates"]
    matmul = {
        dtype: meter.request("matmul", dtype=dtype, size=MATMUL_SIZE[kind], seconds=SECONDS / 4)["best"]
        for dtype in ("bfloat16", "float32")
    }
    return Limits(bandwidth, matmul, loaded["device_name"])


def measure_bandwidth(meter: Worker) -> float:
    """Bytes a second that can be read right now: on a machine that is shared, that changes."""
    return meter.request("bandwidth", size=BESIDE_BYTES, seconds=BESIDE_SECONDS)["best"]


def describe(device_name: str | None = None) -> dict[str, Any]:
    """Processor, memory, system and software, for the head of a table."""
    import torch

    processor, flags = _processor()
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "features": [name for name in FEATURES if name in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": device_name,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "axk1": axk1.__version__,
    }


def commit() -> str:
    """The commit that axk1 runs from, marked when files differ from it; its version where there is no repository."""
    command = ["git", "-C", str(Path(axk1.__file__).parent)]
    try:
        head = subprocess.run([*command, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*command, "status", "--porcelain", "."], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"axk1 {axk1.__version__}"
    return head.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def today() -> str:
    """The date and time, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _processor() -> tuple[str, set[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    return fields.get("model name", platform.machine()), set(fields.get("flags", "").split())
