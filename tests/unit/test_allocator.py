"""The allocator settings of the `axk1` command."""

import os
import platform
import subprocess
import sys

import pytest

from axk1.allocator import VARIABLES

FAULTS = """
import resource, sys
if sys.argv[1] == "set":
    from axk1.allocator import keep_freed_memory
    keep_freed_memory()
import os, torch
torch.ones(2**21)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**21)  # 8 MiB, freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, os.environ.get("THP_MEM_ALLOC_ENABLE"))
"""


def page_faults(how: str, **variables: str) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], env=environment, capture_output=True, text=True, check=True
    )
    faults, huge = done.stdout.split()
    return int(faults), huge


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_memory_is_used_again() -> None:
    given_back, _ = page_faults("leave")
    kept, huge = page_faults("set")
    assert given_back > 3 * 2**23 // 4096, "the pages of three tensors at least: the reason for the settings"
    assert kept < given_back / 5 and huge == "1"
    assert page_faults("leave", **VARIABLES)[0] < given_back / 5, "the same by variables"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_the_users_own_settings_stand() -> None:
    faults, huge = page_faults("set", THP_MEM_ALLOC_ENABLE="0", MALLOC_MMAP_THRESHOLD_="131072")
    assert faults > 0.9 * 20 * 2**23 // 4096 and huge == "0", "each of twenty tensors mapped anew"
