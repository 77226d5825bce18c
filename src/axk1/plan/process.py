"""The memory of one process that runs a model by axk1 itself, on a CPU: what it may use here, and what it will.

Weights of the released layout in the type that is computed in stay in their mapped files; what every token reads, in
tensors of a huge page and more, is copied out of them (``pretrained.py``), and the pages that it was read from stay,
too. Everything else is copied: stacks of experts that are one by one in the files, and scales, which are float32.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from axk1.checkpoint.names import TensorSpec
from axk1.config import AXK1Config
from axk1.plan.bounds import latent_bytes
from axk1.plan.formats import FLOATS, tensor_bytes
from axk1.plan.weights import moe_layers, read_weights

BASE = 4 * 10**8
"""Bytes of Python, PyTorch and transformers, and of the compiled kernels (torch 2.13 without CUDA, Linux, x86)."""
HUGE_PAGE = 2 * 2**20
"""Bytes from which on a tensor that every token reads is copied."""
PAGE_TOKENS = 64
"""Tokens of a page of latents."""


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes, at their most."""

    base: int
    files: int
    """Of the mapped checkpoint, all of whose experts are wanted sooner or later."""
    copies: int
    latents: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.base + self.files + self.copies + self.latents + self.activations


def process_memory(
    config: AXK1Config, specs: Iterable[TensorSpec], tokens: int = 1, activations: int = 0, itemsize: int | None = None
) -> ProcessMemory:
    """What ``axk1 generate`` takes for a checkpoint.

    Args:
        specs: the tensors in its files.
        tokens: of context.
        activations: bytes of the largest step.
        itemsize: bytes of a number that is computed with; None: as stored.
    """
    specs = list(specs)
    pages = -(-tokens // PAGE_TOKENS) * PAGE_TOKENS
    files = sum(map(tensor_bytes, specs))
    copies = sum(_copied(spec, itemsize) for spec in specs) + _joined(config, specs)
    return ProcessMemory(BASE, files, copies, pages * latent_bytes(config), activations)


def check_memory(folder: Path, itemsize: int | None = None) -> None:
    """Refuses a checkpoint that this process has no memory for; one that is faulty is left to the loader.

    Args:
        itemsize: as above.

    Raises:
        ValueError: it needs more than there is here.
    """
    limit = memory_limit()
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if os.environ.get("AXK1_CHECK_MEMORY") == "0" or BASE + 8 * stored < limit:  # far from it: no header is read
        return
    try:
        weights = read_weights(folder)
    except (ValueError, OSError):
        return
    needed = process_memory(weights.config, weights.tensors, itemsize=itemsize).total
    if needed > limit:
        raise ValueError(
            f"{folder} needs {needed / 1e9:.2f} GB of memory to run here, and {limit / 1e9:.2f} GB may be used: "
            "quantise it (axk1 quantize), ask axk1 plan what fits, or set AXK1_CHECK_MEMORY=0 to try."
        )


def _copied(spec: TensorSpec, itemsize: int | None) -> int:
    """Bytes that a tensor takes beside its file."""
    size = tensor_bytes(spec)
    if itemsize and spec.dtype in FLOATS.values() and itemsize * spec.size != size and "scale" not in spec.name:
        return itemsize * spec.size
    if spec.name.endswith("weight_scale"):
        return 4 * spec.size
    if ".mlp.experts." in spec.name:
        fused = spec.name.endswith(("gate_up_proj", "down_proj"))
        return 0 if fused else size
    return size if size >= HUGE_PAGE else 0


def _joined(config: AXK1Config, specs: Iterable[TensorSpec]) -> int:
    """Gate and up projections of one layer, stacked before they are joined; freed memory is kept (``allocator.py``)."""
    names = re.compile(r".*\.mlp\.experts\.\d+\.(gate|up)_proj\.weight.*")
    found = sum(tensor_bytes(spec) for spec in specs if names.fullmatch(spec.name))
    return found // max(1, moe_layers(config) + config.num_nextn_predict_layers)


def memory_limit() -> int:
    """Bytes that this process may have: this machine's memory, or less where a control group says so."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def group_limits(groups: Path, root: Path) -> list[int]:
    """``memory.max`` of cgroup 2 and ``memory.limit_in_bytes`` of cgroup 1, of this process's group and those above."""
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        home = root / "memory" if controllers else root
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        inner = home / path.lstrip("/")
        found += [limit for folder in (inner, *inner.parents) if (limit := _number(folder / name)) is not None]
    return found


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # "max", or no such group
        return None
