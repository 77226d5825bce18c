"""Machines to plan for: common ones by the figures of their data sheets, and the one that this runs on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from axk1.plan.hardware import MOST, Hardware, find_gpus
from axk1.plan.memory import GB
from axk1.plan.process import memory_limit

KEPT = 4 * GB
"""Of a machine's memory, what the system and other programs keep."""


@dataclass(frozen=True)
class Unit:
    """Memory, and what computes on it."""

    memory: int
    """Bytes."""
    bandwidth: float | None = None
    """Bytes per second that are read from it; None: not known."""
    flops: float | None = None
    """Operations per second in bfloat16 (products of matrices)."""
    name: str = "memory"


@dataclass(frozen=True)
class Machine:
    """One or several equal machines."""

    name: str
    host: Unit
    gpus: int = 0
    """On each machine."""
    gpu: Unit | None = None
    nodes: int = 1
    disk: float | None = None
    """Bytes per second of large reads."""
    link: float | None = None
    """Bytes per second in one direction between a GPU and its neighbours (one GPU: and the processor)."""
    network: float | None = None
    """The same between GPUs of different machines."""
    kept: int = KEPT
    unified: bool = False
    """The GPU computes in the host's memory."""
    rates: str = "data sheets"
    """Where the rates come from."""

    @property
    def hardware(self) -> Hardware:
        """The GPUs as ``axk1 serve`` places a model on them.

        Raises:
            ValueError: there are none.
        """
        if not self.gpus or self.gpu is None:
            raise ValueError(f"{self.name} has no GPU; vllm and sglang need some: --gpus 8 --gpu-memory 80.")
        return Hardware(self.gpus, self.gpu.memory, self.nodes, self.gpu.name)

    def __str__(self) -> str:
        many = f"{self.nodes} machines, each " if self.nodes > 1 else ""
        gpus = f"{self.gpus} x {self.gpu.name} of {self.gpu.memory / GB:.0f} GB, " if self.gpu else ""
        return f"{many}{gpus}{self.host.memory / GB:.0f} GB of {'unified ' if self.unified else ''}memory"


_H100 = Unit(80 * GB, 3.35e12, 989e12, "H100")
_H200 = Unit(141 * GB, 4.8e12, 989e12, "H200")
_SERVER = Unit(2000 * GB, 614e9, 20e12)
"""Two processors with eight channels of DDR5-4800 each."""
_LAPTOP = Unit(24 * GB, 89.6e9, 1.0e12)
"""Two channels of DDR5-5600; eight cores with AVX2 at 4 GHz."""
PRESETS: dict[str, Machine] = {
    "laptop-24": Machine("laptop-24", _LAPTOP, disk=7e9),
    "laptop-64": Machine("laptop-64", replace(_LAPTOP, memory=64 * GB), disk=7e9),
    # 256 bits of LPDDR5X-8000; 16 cores with AVX-512
    "laptop-128": Machine("laptop-128", Unit(128 * GB, 256e9, 4.1e12), disk=7e9),
    # M4 Max and M3 Ultra; macOS lets the GPU use three quarters of the memory unless told otherwise
    "mac-128": Machine("mac-128", Unit(128 * GB, 546e9, 18e12), disk=7e9, kept=32 * GB, unified=True),
    "mac-512": Machine("mac-512", Unit(512 * GB, 819e9, 28e12), disk=7e9, kept=128 * GB, unified=True),
    # eight channels of DDR5-4800, PCIe 4.0; twelve of DDR5-6000, PCIe 5.0
    "1x24-256": Machine(
        "1x24-256", Unit(256 * GB, 307e9, 5.4e12), 1, Unit(24 * GB, 1.008e12, 165e12, "RTX 4090"), disk=7e9, link=32e9
    ),
    "2x32-512": Machine(
        "2x32-512", Unit(512 * GB, 576e9, 10.7e12), 2, Unit(32 * GB, 1.792e12, 209e12, "RTX 5090"), disk=14e9, link=64e9
    ),
    "8xh100": Machine("8xh100", _SERVER, 8, _H100, disk=14e9, link=450e9),
    "8xh200": Machine("8xh200", _SERVER, 8, _H200, disk=14e9, link=450e9),
    "4x8-h100": Machine(
        "4x8-h100", _SERVER, 8, _H100, 4, disk=14e9, link=450e9, network=50e9
    ),  # 400 Gbit/s for each GPU
}
"""By name; what a data sheet promises is more than any program reaches, so that bounds hold."""


def this_machine() -> Machine:
    """What is found here; rates are not known before they are measured. A limit on this process counts as memory."""
    found = find_gpus()
    host, kept = Unit(memory_limit()), 0  # what may be used, so that the system's part is off already
    if found is None:
        return Machine("this machine", host, kept=kept, rates="not measured")
    gpu = Unit(found.memory, name=found.name)
    return Machine("this machine", host, found.gpus, gpu, kept=kept, rates="not measured")


def find_machine(name: str | None) -> Machine:
    """A preset, or None for this machine.

    Raises:
        ValueError: no such preset.
    """
    if name is None or name == "here":
        return this_machine()
    if name not in PRESETS:
        raise ValueError(f"--machine is {name!r}; use here, {', '.join(PRESETS)}.")
    return PRESETS[name]


def described(
    machine: Machine,
    *,
    memory: float | None = None,
    bandwidth: float | None = None,
    flops: float | None = None,
    gpus: int | None = None,
    gpu_memory: float | None = None,
    gpu_bandwidth: float | None = None,
    gpu_flops: float | None = None,
    nodes: int | None = None,
    disk: float | None = None,
    link: float | None = None,
    network: float | None = None,
) -> Machine:
    """``machine`` with what is given in place of its own: memories in GB, rates in GB/s, operations in TFLOP/s.

    Raises:
        ValueError: a number that is not above 0 (GPUs: below 0), or GPUs whose memory nobody gives.
    """
    for option, value in {**locals(), "machine": None}.items():
        least = 0 if option == "gpus" else 1e-9
        if value is not None and not (math.isfinite(value) and least <= value <= MOST):
            raise ValueError(f"--{option.replace('_', '-')} is {value}; it must be above 0 and at most {MOST:,}.")
    host = _changed(machine.host, memory, bandwidth, flops)
    gpu, count = machine.gpu, machine.gpus if gpus is None else gpus
    if gpu_memory or gpu:
        gpu = _changed(gpu or Unit(0, name="GPU"), gpu_memory, gpu_bandwidth, gpu_flops)
    if count and gpu is None:
        raise ValueError("--gpus needs --gpu-memory, the GB of one.")
    count = count or (1 if gpu_memory and gpus is None else 0)
    given = any(value is not None for value in (bandwidth, flops, gpu_bandwidth, gpu_flops, disk, link, network))
    return replace(
        machine,
        host=host,
        gpus=count,
        gpu=gpu if count else None,
        nodes=nodes or machine.nodes,
        disk=disk * 1e9 if disk else machine.disk,
        link=link * 1e9 if link else machine.link,
        network=network * 1e9 if network else machine.network,
        kept=machine.kept if memory is None else host.memory // 4 if machine.unified else min(KEPT, host.memory // 6),
        rates=f"{machine.rates}, some given" if given else machine.rates,
    )


def _changed(unit: Unit, memory: float | None, bandwidth: float | None, flops: float | None) -> Unit:
    return Unit(
        int(memory * GB) if memory else unit.memory,
        bandwidth * 1e9 if bandwidth else unit.bandwidth,
        flops * 1e12 if flops else unit.flops,
        unit.name,
    )
