"""What this machine is, and the rates that it reached."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import axk1
from axk1.plan.bounds import Rates

FEATURES = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx2")


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


def _processor() -> tuple[str, set[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    return fields.get("model name", platform.machine()), set(fields.get("flags", "").split())
