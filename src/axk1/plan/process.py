"""The memory of one process that runs a model by axk1 itself, on a CPU: what it may use here, and what it will."""

from __future__ import annotations

import os
from pathlib import Path

BASE = 4 * 10**8
"""Bytes of Python, PyTorch and transformers, and of the compiled kernels."""


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
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
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
