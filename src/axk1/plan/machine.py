"""What this machine is, and the rates that it reached."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import axk1
from axk1.plan.bounds import Rates

FEATURES = (
    *("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "f16c"),
    *("sve", "i8mm", "bf16", "asimddp", "asimd"),
)
"""Names of /proc/cpuinfo that matter for arithmetic."""
INSTRUCTION_SETS = {
    "AMX": ("amx_bf16",),
    "AVX-512+bf16": ("avx512f", "avx512_bf16"),
    "AVX-512": ("avx512f",),
    "AVX2": ("avx2",),
    "NEON": ("asimd",),
}
"""By which results are filed, the first that fits; each with the features that it needs."""
KERNELS = {"amx": "AMX", "avx512_bf16": "AVX-512+bf16", "avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON"}
"""What ``AXK1_KERNELS`` calls them."""
_SYSCTL = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.f16c": "f16c",
    "hw.optional.neon": "asimd",
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}
"""What macOS calls the features."""


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

    processor, flags = processor_and_features()
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instruction_set": asked_for() or instruction_set(flags),
        "features": [name for name in FEATURES if name in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": device_name,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "axk1": axk1.__version__,
    }


def asked_for() -> str | None:
    """The set that ``AXK1_KERNELS`` makes our kernels take in place of the best (other engines take theirs); None: the
    best."""
    asked = os.environ.get("AXK1_KERNELS", "1")
    return None if asked in ("0", "1") else f"{KERNELS.get(asked, asked)} (asked for)"


def instruction_set(features: Collection[str]) -> str:
    """The best of ``INSTRUCTION_SETS`` that a processor with ``features`` has; ``plain`` if none."""
    return next((name for name, needed in INSTRUCTION_SETS.items() if set(needed) <= set(features)), "plain")


def processor_and_features() -> tuple[str, set[str]]:
    """The processor's name, and what it can do in the words of Linux."""
    try:
        if platform.system() == "Darwin":
            done = subprocess.run(["sysctl", "-a"], capture_output=True, text=True, check=False, timeout=30)
            return parse_sysctl(done.stdout)
        return parse_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except (OSError, subprocess.TimeoutExpired):
        return platform.processor() or platform.machine(), set()


def parse_cpuinfo(text: str) -> tuple[str, set[str]]:
    """Name and features from Linux's /proc/cpuinfo, of x86 (``flags``) or of Arm (``Features``, which has no name)."""
    fields = _fields(text)
    features = f"{fields.get('flags', '')} {fields.get('Features', '')}"
    return fields.get("model name", platform.machine()), set(features.split())


def parse_sysctl(text: str) -> tuple[str, set[str]]:
    """Name and features from macOS's ``sysctl -a``."""
    fields = _fields(text)
    found = {feature for name, feature in _SYSCTL.items() if fields.get(name) == "1"}
    return fields.get("machdep.cpu.brand_string", platform.machine()), found


def _fields(text: str) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}
