"""The allocator settings of the `axk1` command."""

import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from axk1 import AXK1Config, AXK1ForCausalLM
from axk1.allocator import VARIABLES, free_memory
from axk1.pretrained import HUGE_PAGE

FAULTS = """
import ctypes, resource, sys
assert ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0  # PR_SET_THP_DISABLE: single pages on every machine
if sys.argv[1] == "set":
    from axk1.allocator import keep_freed_memory
    keep_freed_memory()
import os, torch
for count in range(50):
    if count == 30:  # aligned blocks wander over some places of the heap before they find one that fits
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10 * 2**20)  # freed at once; glibc's own threshold never rises above 32 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, os.environ.get("THP_MEM_ALLOC_ENABLE"))
"""
PEAK = """
import threading
from axk1.allocator import give_back_memory, keep_freed_memory
keep_freed_memory()
import mmap, torch
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * mmap.PAGESIZE
held = []
def work():
    blocks = [torch.ones(2**18) for _ in range(100)]  # 100 MiB
    held.append(torch.ones(2**18))  # above them, so that the heap's end cannot just be lowered
torch.ones(1)
sizes = [resident()]
thread = threading.Thread(target=work)
thread.start()
thread.join()
sizes.append(resident())
give_back_memory()
print(*sizes, resident())
"""
MAPPED_ANEW = 20 * 10 * 2**22 // mmap.PAGESIZE
"""Page faults of twenty such tensors, if each is new memory."""


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
    assert given_back > 0.9 * MAPPED_ANEW, "the reason for the settings"
    assert kept < MAPPED_ANEW / 5 and huge == "1"
    assert page_faults("leave", **VARIABLES)[0] < MAPPED_ANEW / 5, "the same by variables"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_the_users_own_settings_stand() -> None:
    faults, huge = page_faults("set", THP_MEM_ALLOC_ENABLE="0", MALLOC_MMAP_THRESHOLD_="131072")
    assert faults > 0.9 * MAPPED_ANEW and huge == "0", "each of twenty tensors mapped anew"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has it")
def test_freed_memory_can_be_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, kept, after = (int(size) >> 20 for size in done.stdout.split())
    assert kept > before + 90, "as the settings are"
    assert after < before + 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
@pytest.mark.parametrize("huge", ["1", "0"])
def test_dense_weights_leave_the_mapped_file_for_huge_pages(
    huge: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 2**15,
        "hidden_size": 64,
        "moe_intermediate_size": 64,
        "n_routed_experts": 256,
    }
    config = AXK1Config(num_hidden_layers=2, intermediate_size=128, num_attention_heads=2, **shape)
    AXK1ForCausalLM(config).save_pretrained(tmp_path)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", huge)
    model = AXK1ForCausalLM.from_pretrained(tmp_path)
    ranges = [
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line
    ]

    def mapped(tensor: torch.Tensor) -> bool:
        return any(int(start, 16) <= tensor.data_ptr() < int(end, 16) for start, end in ranges)

    weights = model.state_dict()
    head, experts = weights["lm_head.weight"], weights["model.layers.1.mlp.experts.gate_up_proj"]
    assert head.nbytes >= HUGE_PAGE and experts.nbytes >= HUGE_PAGE
    assert mapped(head) == (huge == "0") and mapped(experts), "experts stay, and so does all without it"
    assert mapped(weights["model.norm.weight"]), "no huge page is filled by it"


def test_control_groups_limit_what_is_free(tmp_path: Path) -> None:
    """The least of the group's own limit and those above it; page cache gives way; no limit is none."""
    own = tmp_path / "outer" / "inner"
    own.mkdir(parents=True)
    everything = free_memory(own)
    assert 2**20 < everything <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def limit(folder: Path, most: str, used: int, cache: int) -> None:
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon {used - cache}\nfile {cache}\nkernel 5\n")

    limit(own, "max", 500, 0)
    assert free_memory(own) > 2**20
    limit(own, str(1 << 20), 700_000, 300_000)
    assert free_memory(own) == (1 << 20) - 400_000
    limit(tmp_path / "outer", "800000", 700_000, 200_000)
    assert free_memory(own) == 300_000
    limit(own, "100000", 700_000, 200_000)
    assert free_memory(own) == 0


def test_control_groups_of_version_1_too(tmp_path: Path) -> None:
    (tmp_path / "memory.limit_in_bytes").write_text("1000000\n")
    (tmp_path / "memory.usage_in_bytes").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("cache 1\nrss 400000\ntotal_cache 300000\ntotal_rss 400000\n")
    assert free_memory(tmp_path) == 600_000
