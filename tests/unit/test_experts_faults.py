"""What goes wrong with a disk while experts are read from it: one sentence with file and expert, or the same bits."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_experts import ids, make_checkpoint, mixed_steps, slot_bytes, streamed

from axk1.checkpoint.quantize import quantize_checkpoint
from axk1.generation.sampling import GREEDY
from axk1.load import load_model

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
SHIM = """
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

static int is(const char* fault) { return !strcmp(getenv("FAULT"), fault); }
static int once(const char* fault) { return is(fault) && !setenv("FAULT", "none", 1); }

static ssize_t faulty(const char* name, int fd, const struct iovec* pieces, int count, off_t offset) {
    static int calls;
    auto real = (ssize_t (*)(int, const struct iovec*, int, off_t))dlsym(RTLD_NEXT, name);
    const int third = __sync_add_and_fetch(&calls, 1) % 3 == 0;
    struct iovec less = *pieces;
    if (third && once("EIO")) return errno = EIO, -1;
    if (third && once("EINTR")) return errno = EINTR, -1;
    if (third && once("nothing")) return 0;
    if (third && is("page")) less.iov_len = 4096;
    if (third && is("odd")) less.iov_len = less.iov_len > 8192 ? 8192 : less.iov_len;
    ssize_t got = real(fd, &less, count, offset);
    return third && is("odd") && got > 5000 ? 5000 : got;
}
extern "C" ssize_t preadv(int fd, const struct iovec* p, int n, off_t o) { return faulty("preadv", fd, p, n, o); }
extern "C" ssize_t preadv64(int fd, const struct iovec* p, int n, off_t o) { return faulty("preadv64", fd, p, n, o); }
extern "C" int open(const char* path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    const mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    if ((flags & O_DIRECT) && is("no direct reads")) return errno = EINVAL, -1;
    return ((int (*)(const char*, int, ...))dlsym(RTLD_NEXT, "open"))(path, flags, mode);
}
"""
SCRIPT = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:4]
os.environ["FAULT"] = "none"
from test_experts import mixed_steps, streamed
for fault in sys.argv[4:]:
    os.environ["FAULT"] = fault
    model, store = streamed(Path(sys.argv[1]), 5)
    said = "nothing"
    try:
        made = mixed_steps(model)
    except ValueError as error:
        said, made = str(error), mixed_steps(model)
    print(fault, sum(float(logits.double().sum()) for logits in made), said, sep="|")
print(store.counters().reads, store.layout.read_bytes)
"""
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faults")
    quantize_checkpoint(make_checkpoint(root / "bfloat16"), root / "int4", "int4", 32)
    return root / "int4"


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that is loaded before libc, and makes its reads fail."""
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.cpp").write_text(SHIM)
    flags = ["-shared", "-fPIC", "-D_GNU_SOURCE", "-o", str(folder / "shim.so"), str(folder / "shim.cpp"), "-ldl"]
    subprocess.run(["g++", *flags], check=True, timeout=120)
    return folder / "shim.so"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD")
def test_reads_that_fail(shim: Path, int4: Path) -> None:
    """An error of the disk ends the step, and the next one runs; short reads go on; O_DIRECT changes nothing."""
    resident = mixed_steps(load_model(int4, device="cpu").eval())
    expected = str(sum(float(logits.double().sum()) for logits in resident))
    faults = ("none", "EINTR", "page", "odd", "no direct reads", "EIO", "nothing")
    command = [sys.executable, "-c", SCRIPT, str(int4), str(HERE), str(HERE.parent), *faults]
    environment = {**os.environ, "LD_PRELOAD": str(shim), "FAULT": "none"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [line.split("|") for line in done.stdout.splitlines() if "|" in line]
    assert [fault for fault, _, _ in found] == list(faults)
    assert {total for _, total, _ in found} == {expected}
    said = {fault: words for fault, _, words in found}
    assert all(said[fault] == "nothing" for fault in faults[:-2])
    for fault, words in (
        ("EIO", "model.safetensors cannot be read: Input/output error."),
        ("nothing", "in the middle of it."),
    ):
        assert said[fault].startswith("Expert ") and said[fault].endswith(words), said[fault]


def test_a_file_that_changes_is_noticed(int4: Path, tmp_path: Path) -> None:
    """One that is replaced is not: the old one stays open."""
    shutil.copytree(int4, tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    expected = mixed_steps(load_model(int4, device="cpu").eval())
    model, _ = streamed(tmp_path / "copy", 5)
    other = tmp_path / "other"
    other.write_bytes(b"another file")
    other.replace(file)
    assert all(torch.equal(a, b) for a, b in zip(mixed_steps(model), expected, strict=True))
    shutil.copy(int4 / "model.safetensors", file)
    model, _ = streamed(tmp_path / "copy", 5)
    os.utime(file, (1, 1))
    with pytest.raises(
        ValueError, match=r"^Expert \d+ of layer \d is not there: .*model.safetensors was changed while"
    ):
        mixed_steps(model)
    model, _ = streamed(tmp_path / "copy", 5)
    os.truncate(file, file.stat().st_size // 8)
    with pytest.raises(ValueError, match=r"^Expert \d+ of layer \d is not there: .*(ends in the middle|was changed)"):
        mixed_steps(model)


def test_an_engine_answers_the_next_request_after_an_error(int4: Path, tmp_path: Path) -> None:
    """The decode loop ends with the sentence, and a new one runs on the same model."""
    from decoding import replies

    shutil.copytree(int4, tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    before = file.stat()
    model, _ = streamed(tmp_path / "copy", 5)
    expected = replies(model, [ids(20, 1)], GREEDY)
    os.utime(file, (1, 1))
    with pytest.raises(ValueError, match="was changed while it was in use"):
        replies(model, [ids(20, 1)], GREEDY)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert replies(model, [ids(20, 1)], GREEDY) == expected


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here")
def test_one_aligned_read_per_expert(tmp_path: Path) -> None:
    """What the system sees: as many reads as were counted, each of one expert's pages."""
    wide = make_checkpoint(tmp_path / "wide", hidden_size=512, moe_intermediate_size=256, num_hidden_layers=2)
    quantize_checkpoint(wide, tmp_path / "int4", "int4", 32)
    log = tmp_path / "calls"
    command = ["strace", "-f", "-e", "trace=preadv", "-o", str(log), sys.executable, "-c", SCRIPT]
    command += [str(tmp_path / "int4"), str(HERE), str(HERE.parent), "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    reads, size = map(int, done.stdout.split()[-2:])
    calls = _calls(log)
    assert len(calls) == reads > 16
    assert all(length == size == got and offset % 4096 == 0 for length, offset, got in calls)


def _calls(log: Path) -> list[tuple[int, int, int]]:
    """Length, offset and result of each preadv; calls of several threads may be cut in two lines."""
    import re

    text, open_calls, found = log.read_text(), {}, []
    for line in text.splitlines():
        pid, _, rest = line.partition(" ")
        rest = open_calls.pop(pid, "") + rest.strip().partition("resumed>")[2] if "resumed>" in rest else rest
        if "<unfinished" in rest:
            open_calls[pid] = rest.partition("<unfinished")[0]
        elif match := re.search(r"iov_len=(\d+)\}\], 1, (\d+)\)\s+= (\d+)", rest):
            found.append(tuple(map(int, match.groups())))
    return found


def test_threads_take_turns_at_one_store(int4: Path) -> None:
    """Two threads that run the same model, as evaluation and a server might, get their own bits."""
    from threading import Thread

    expected = mixed_steps(load_model(int4, device="cpu").eval())
    model, _ = streamed(int4, 6)
    found: dict[int, Any] = {}
    threads = [Thread(target=lambda n=n: found.__setitem__(n, mixed_steps(model))) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert slot_bytes(int4) and len(found) == 3
    for made in found.values():
        assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
