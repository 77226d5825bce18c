"""The GPUs to serve on: those of this machine, or those the user says there are."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from axk1.plan.memory import GB

MIB = 2**20
MOST = 1_000_000
"""Machines, GPUs of one and GB of one, at most."""


@dataclass(frozen=True)
class Hardware:
    """Equal machines with equal GPUs."""

    gpus: int
    """On each machine; on ``cpu``, processes."""
    memory: int
    """Bytes of one GPU; on ``cpu``, of the share of one process."""
    nodes: int = 1
    name: str = "GPU"
    device: Literal["cuda", "cpu"] = "cuda"

    @property
    def total(self) -> int:
        """GPUs of all machines."""
        return self.gpus * self.nodes

    def words(self, text: str) -> str:
        """A sentence about GPUs, in words that are true of this hardware: on ``cpu`` there are processes."""
        if self.device != "cpu":
            return text
        return text.replace("CUDA context, ", "").replace("GPUs", "processes").replace("GPU", "process")

    def __str__(self) -> str:
        machines = f"{self.nodes} machines with " if self.nodes > 1 else ""
        return f"{machines}{self.gpus} x {self.name} of {self.memory / GB:.1f} GB"


def find_hardware(
    nodes: int = 1, gpus: int | None = None, memory_gb: float | None = None, device: str | None = None
) -> Hardware:
    """What the user gives, the rest as found on this machine.

    Args:
        nodes: machines, all like this one.
        gpus: GPUs of a machine.
        memory_gb: of one GPU, in units of 10^9 bytes, as GPUs are sold.
        device: ``cuda`` or ``cpu``; None: cuda.

    Raises:
        ValueError: a number below 1, or no GPU is found and none is described.
    """
    for option, value in (("--nodes", nodes), ("--gpus", gpus), ("--gpu-memory", memory_gb)):
        if value is not None and not 1 <= value <= MOST:
            raise ValueError(
                f"{option} is {value}; it must be at least 1{'' if value < 1 else f' and at most {MOST:,}'}."
            )
    if device not in (None, "cuda", "cpu"):
        raise ValueError(f"--device is {device!r}; use cuda or cpu.")
    if device == "cpu":
        memory = int(memory_gb * GB) if memory_gb else _system_memory() // (gpus or 1)
        return Hardware(gpus or 1, memory, nodes, "CPU process", "cpu")
    if gpus and memory_gb:
        return Hardware(gpus, int(memory_gb * GB), nodes)
    found = find_gpus()
    if found is None:
        raise ValueError(
            "No GPU is found here. Describe those to serve on, such as --gpus 8 --gpu-memory 80, or try --device cpu."
        )
    if gpus and gpus > found.gpus:
        raise ValueError(f"--gpus is {gpus}, but this machine has {found.gpus}; add --gpu-memory to plan for another.")
    memory = int(memory_gb * GB) if memory_gb else found.memory
    return replace(found, gpus=gpus or found.gpus, memory=memory, nodes=nodes)


def find_gpus() -> Hardware | None:
    """The GPUs of this machine; None: there are none.

    Raises:
        ValueError: they differ in memory.
    """
    return _from_torch() or _from_nvidia_smi()


def parse_nvidia_smi(text: str, visible: str | None = None) -> Hardware | None:
    """Reads ``nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits``; None: no GPU.

    Args:
        visible: CUDA_VISIBLE_DEVICES.

    Raises:
        ValueError: the GPUs differ in memory.
    """
    rows = [line.rsplit(",", 1) for line in text.splitlines() if "," in line]
    if visible is not None:
        rows = list(_visible(rows, visible))
    if not rows:
        return None
    if len({memory.strip() for _, memory in rows}) > 1:
        raise ValueError("The GPUs of this machine differ in memory; choose equal ones with CUDA_VISIBLE_DEVICES.")
    return Hardware(len(rows), int(rows[0][1]) * MIB, name=rows[0][0].strip())


def _visible(rows: list[list[str]], visible: str) -> Iterator[list[str]]:
    """As CUDA reads it: up to the first number that does not exist. Names (GPU-5f3a...) are counted, not looked up."""
    for part in filter(None, map(str.strip, visible.split(","))):
        if part.lstrip("-").isdigit() and not 0 <= int(part) < len(rows):
            return
        yield rows[int(part)] if part.isdigit() else rows[0]


def _from_nvidia_smi() -> Hardware | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return parse_nvidia_smi(done.stdout, os.environ.get("CUDA_VISIBLE_DEVICES")) if done.returncode == 0 else None


def _from_torch() -> Hardware | None:
    import torch

    if not torch.cuda.is_available():
        return None
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return Hardware(len(found), min(each.total_memory for each in found), name=found[0].name)


def _system_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
