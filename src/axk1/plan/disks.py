"""How fast files are read past the page cache: large aligned blocks, several at once, as an expert store reads them."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from axk1.plan.speed import PAGE

BLOCK = 22_708_224
"""Bytes of an expert of K1 in int4, a whole number of pages."""
DEPTH = 4
"""Reads at once."""
SCRATCH = 2**30
"""Bytes of a file that is written where there is none to read."""


def read_rate(folder: Path, block: int = BLOCK, seconds: float = 3.0, depth: int = DEPTH) -> float:
    """Bytes per second of the disk under ``folder``: its largest files, or a scratch file that is removed again.

    Args:
        block: bytes of one read, rounded up to pages.
        seconds: how long to read, about.

    Raises:
        ValueError: the folder's file system has no direct reads, or no room for the scratch file.
    """
    files = [file for file in _largest(folder) if file.stat().st_size >= 4 * block]
    if files:
        return _rate(files, block, seconds, depth)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".axk1-disk-") as file:
        _fill(file, folder)
        return _rate([Path(file.name)], block, seconds, depth)


def _largest(folder: Path) -> Sequence[Path]:
    files = (file for file in folder.glob("*.safetensors") if file.is_file())
    return sorted(files, key=lambda file: -file.stat().st_size)[:8]


def _fill(file: IO[bytes], folder: Path) -> None:
    try:
        for _ in range(SCRATCH // 2**24):
            file.write(os.urandom(2**24))  # zeros may be compressed, or not stored at all
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise ValueError(f"{folder} has no room to measure its disk ({error}): give --disk in GB/s.") from error


def _rate(files: Sequence[Path], block: int, seconds: float, depth: int) -> float:
    block = -(-block // PAGE) * PAGE
    opened = [_open(file) for file in files]
    end = time.monotonic() + seconds

    def worker(number: int) -> int:
        buffer, done = mmap.mmap(-1, block), 0  # aligned, as direct reads want it
        for file, offset in _places(opened, files, block, number, depth):
            done += os.preadv(file, [buffer], offset)
            if time.monotonic() > end:
                break
        return done

    start = time.monotonic()
    try:
        with ThreadPoolExecutor(depth) as pool:
            read = sum(pool.map(worker, range(depth)))
    finally:
        for file in opened:
            os.close(file)
    return read / (time.monotonic() - start)


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY | os.O_DIRECT)
    except (OSError, AttributeError) as error:  # a file system, or a system, without
        raise ValueError(f"{file} cannot be read past the page cache ({error}): give --disk in GB/s.") from None


def _places(
    opened: Sequence[int], files: Sequence[Path], block: int, number: int, depth: int
) -> Iterator[tuple[int, int]]:
    """Every ``depth``-th block of all files from ``number`` on, in a scattered order, again and again."""
    places = [
        (file, block * at)
        for file, path in zip(opened, files, strict=True)
        for at in range(path.stat().st_size // block)
    ]
    step = next(n for n in range(len(places) // 2 + 1, 2 * len(places) + 2) if _coprime(n, len(places)))
    at = number
    while True:
        yield places[at * step % len(places)]
        at += depth


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1
