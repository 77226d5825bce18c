"""How a process that computes with large tensors wants its memory: huge pages, and freed blocks kept for the next ones.

glibc gives blocks of a megabyte back to the system when they are freed, and every page of the next one costs a fault: a
fifth of the time of a prompt on a CPU. The `axk1` command and the benchmark's workers keep them; a library must not, so
``import axk1`` changes nothing.
"""

import ctypes
import os
import platform

KEPT = 2**30
"""Bytes: larger blocks go back to the system when they are freed, and so does free memory in excess of this."""
VARIABLES = {
    "THP_MEM_ALLOC_ENABLE": "1",  # torch asks the system for huge pages
    "MALLOC_MMAP_THRESHOLD_": str(KEPT),
    "MALLOC_TRIM_THRESHOLD_": str(KEPT),
}
"""The same for a process that is yet to start."""
_OPTIONS = {"MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1}  # their numbers in glibc's malloc.h


def keep_freed_memory() -> None:
    """Sets this process up, before torch allocates; variables that the user has set stand. Only glibc has the two."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", VARIABLES["THP_MEM_ALLOC_ENABLE"])
    if platform.libc_ver()[0] != "glibc":
        return
    for name, option in _OPTIONS.items():
        if name not in os.environ:
            ctypes.CDLL(None).mallopt(option, KEPT)
