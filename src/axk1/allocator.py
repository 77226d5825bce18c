"""How a process that computes with large tensors wants its memory: huge pages, and freed blocks kept for the next ones.

glibc gives blocks of a megabyte back to the system when they are freed, and every page of the next one costs a fault: a
fifth of the time of a prompt on a CPU. The `axk1` command and the benchmark's workers keep them; a library must not, so
``import axk1`` changes nothing.
"""

import ctypes
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

KEPT = 2**30
"""Bytes: larger blocks go back to the system when they are freed, and so does free memory in excess of this."""
VARIABLES = {
    "THP_MEM_ALLOC_ENABLE": "1",  # torch asks the system for huge pages
    "MALLOC_MMAP_THRESHOLD_": str(KEPT),
    "MALLOC_TRIM_THRESHOLD_": str(KEPT),
}
"""The same for a process that is yet to start."""
_FILES = (
    ("memory.max", "memory.current", "file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
)
"""Of a control group, version 2 and version 1: its limit, what it takes, and in ``memory.stat`` its page cache."""
_OPTIONS = {"MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1}  # their numbers in glibc's malloc.h


def keep_freed_memory() -> None:
    """Sets this process up, before torch allocates; variables that the user has set stand. Only glibc has the two."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", VARIABLES["THP_MEM_ALLOC_ENABLE"])
    if platform.libc_ver()[0] != "glibc":
        return
    for name, option in _OPTIONS.items():
        if name not in os.environ:
            ctypes.CDLL(None).mallopt(option, KEPT)


def give_back_memory() -> None:
    """Gives freed memory back to the system, of all threads and whatever its size: for a process that has nothing to do
    for now. What is allocated next costs faults again. Only glibc has this."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def free_memory(group: Path | None = None) -> int:
    """Bytes that this process may still take without swapping: what the system has, or its control groups allow.

    Args:
        group: the folder of the process's control group, of version 1 or 2; None: as Linux says.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        (kib,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError):  # no Linux: of all memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    groups = [group] if group else _own_groups()
    return min([int(kib) << 10, *(_left_in(folder) for here in groups for folder in (here, *here.parents))])


def _own_groups() -> list[Path]:
    """Those that count this process's memory; there are systems with both versions."""
    found, root = [], Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                found.append((root / "memory" if controllers else root) / path.lstrip("/"))
    return found


def _left_in(folder: Path) -> int:
    """What a control group leaves to its processes; its page cache gives way."""
    for limit, used, cache in _FILES:
        try:
            most = (folder / limit).read_text(encoding="ascii").strip()
            stat = (folder / "memory.stat").read_text(encoding="ascii").split()
            taken = int((folder / used).read_text(encoding="ascii")) - int(stat[stat.index(cache) + 1])
            return sys.maxsize if most == "max" else max(int(most) - taken, 0)
        except (OSError, ValueError):  # no such group, or of the other version
            continue
    return sys.maxsize
