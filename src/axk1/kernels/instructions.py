"""Instruction sets that the CPU kernels are compiled for: what each needs, and which one this processor takes.

One library each, from the same sources with other flags: code for one processor is never linked with code for another.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class InstructionSet:
    """A set of instructions and the compiler's flags for it."""

    name: str
    machines: tuple[str, ...]
    """``platform.machine()``; none: any."""
    needs: frozenset[str]
    """Features as Linux names them in /proc/cpuinfo."""
    flags: tuple[str, ...]


FLAGS = ("-O3", "-std=c++20", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-ffp-contract=fast")
FLAGS += ("-Wno-psabi", "-Wno-unknown-pragmas")
"""The compiler's flags for every set."""
X86 = ("x86_64", "AMD64")
AVX2 = frozenset({"avx2", "fma", "bmi2", "f16c"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}
NARROW = ("avx512_bf16", "avx512_vnni", "avx512_vbmi2")
V4 = ("-march=x86-64-v4", "-mprefer-vector-width=512")
"""Without the second, GCC takes wide vectors apart: half the speed of every product on a Zen 4."""
V4_BF16 = (*V4, *(f"-m{name.replace('_', '')}" for name in NARROW))
SETS = (
    InstructionSet("amx", X86, AVX512 | {*NARROW, "amx_tile", "amx_bf16"}, (*V4_BF16, "-mamx-tile", "-mamx-bf16")),
    InstructionSet("avx512_bf16", X86, AVX512 | set(NARROW), V4_BF16),
    InstructionSet("avx512", X86, AVX512, V4),
    InstructionSet("avx2", X86, AVX2, ("-march=x86-64-v3",)),
    InstructionSet("neon", ("aarch64", "arm64"), frozenset(), ()),
    InstructionSet("plain", (), frozenset(), ()),
)
"""The best first."""


@cache
def features() -> frozenset[str]:
    """What this processor has, as Linux names it; empty where nobody says."""
    try:
        if platform.system() == "Darwin":
            keys = ("machdep.cpu.features", "machdep.cpu.leaf7_features")
            names = subprocess.run(["sysctl", "-n", *keys], capture_output=True, text=True, timeout=10).stdout.lower()
            return frozenset("avx512" + n[len("avx512") :] if n.startswith("avx512") else n for n in names.split())
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.partition(":")[2].split())
    except (OSError, subprocess.SubprocessError):
        pass
    return frozenset()


@cache
def permits_tiles() -> bool:
    """Whether Linux keeps AMX's tiles for this process, which has to ask for them (``arch_prctl(2)``)."""
    system_call, request_permission, tile_data = 158, 0x1023, 18
    return platform.system() == "Linux" and not ctypes.CDLL(None).syscall(system_call, request_permission, tile_data)


def multiplies_bfloat16() -> bool:
    """Whether PyTorch's own operators, training's, are fast in bfloat16 here."""
    return bool(features() & {"avx512_bf16", "amx_bf16", "bf16"})


def of_this_machine() -> list[InstructionSet]:
    """The sets of this kind of machine, whether its processor has them or not."""
    return [each for each in SETS if not each.machines or platform.machine() in each.machines]


def usable() -> list[InstructionSet]:
    """What runs here, the best first."""
    found = [each for each in of_this_machine() if each.needs <= features()]
    return [each for each in found if each.name != "amx" or permits_tiles()]


def wanted() -> str:
    """``AXK1_KERNELS``: an instruction set's name, 0 for none, or 1 (the default) for the best that there is."""
    return os.environ.get("AXK1_KERNELS", "1")


def chosen() -> InstructionSet | None:
    """The set that kernels are used for; None where ``AXK1_KERNELS`` is 0.

    Raises:
        ValueError: ``AXK1_KERNELS`` names a set that is not known, or that this processor does not have.
    """
    name, sets = wanted(), usable()
    if name == "0":
        return None
    if name == "1":
        return sets[0]
    for each in sets:
        if each.name == name:
            return each
    have = ", ".join(each.name for each in sets)
    raise ValueError(
        f"AXK1_KERNELS={name}: this processor has {have}; 1 takes the first of these, 0 turns kernels off."
    )
