"""The library of CPU kernels: taken built from the package, or compiled once per instruction set and source."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from axk1.folders import user_cache
from axk1.kernels.instructions import FLAGS, InstructionSet, chosen
from axk1.terminal import sentence

SOURCES = Path(__file__).parent / "cpu"
BUILT = Path(__file__).parent / "built"
"""Libraries that a wheel brings along, ``axk1_NAME.so``."""
SANITIZERS = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
COMPILE_SECONDS = 600
logger = logging.getLogger(__name__)


class BuildError(Exception):
    """A library that cannot be compiled, written or loaded."""


@cache
def library() -> ctypes.CDLL | None:
    """The kernels for this processor (or for the set that ``AXK1_KERNELS`` names), compiled first if need be: about
    half a minute, once. None where they are turned off or there is no way to have them."""
    instructions = chosen()
    if instructions is None:
        return None
    try:
        return load(instructions)
    except BuildError as error:
        logger.warning("No CPU kernels; decoding runs on PyTorch's own operators, more slowly. %s", error)
        return None


def load(instructions: InstructionSet) -> ctypes.CDLL:
    """The library of one instruction set.

    Raises:
        BuildError: it is not there and cannot be compiled, or does not load.
    """
    built = BUILT / f"axk1_{instructions.name}.so"
    path = built if built.is_file() and not _sanitized() else _compiled(instructions)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path} does not load: {error}.") from error


def _sanitized() -> bool:
    return os.environ.get("AXK1_KERNELS_SANITIZE", "0") == "1"


def _compiled(instructions: InstructionSet) -> Path:
    """The library in the cache; compiled where it is missing, cut off or changed."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None or platform.system() not in ("Linux", "Darwin"):
        raise BuildError("There is no C++ compiler (g++ or clang++; CXX names another).")
    folder = user_cache("kernels") / _fingerprint(compiler, instructions)
    path = folder / f"axk1_{instructions.name}.so"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_owner(folder)
        with (folder / "lock").open("w") as lock:
            _wait_for(lock.fileno())  # processes that start together build once
            if not _is_whole(path):
                logger.warning("Building the CPU kernels for %s (once, half a minute): %s", instructions.name, folder)
                _build_into(path, compiler, instructions)
    except OSError as error:
        raise BuildError(
            f"The kernels' cache cannot be used: {sentence(error)} XDG_CACHE_HOME names another."
        ) from error
    return path


def _wait_for(descriptor: int) -> None:
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX)


def _check_owner(path: Path) -> None:
    """What is loaded is code: it has to be this user's (or root's), and nobody else may have written it."""
    info = path.stat()
    if info.st_uid not in (os.geteuid(), 0) or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BuildError(f"{path} belongs to another user or is writable by others; remove it, or set XDG_CACHE_HOME.")


def _is_whole(path: Path) -> bool:
    """Whether the library is there as it was written."""
    digest = path.with_suffix(".sha256")
    if not (path.is_file() and digest.is_file()):
        return False
    for each in (path, digest):
        _check_owner(each)
    return hashlib.sha256(path.read_bytes()).hexdigest() == digest.read_text(errors="replace").strip()


def _build_into(path: Path, compiler: str, instructions: InstructionSet) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = compile_library(instructions, Path(scratch) / path.name, compiler)
        made.chmod(0o700)
        with made.open("rb") as stream:
            os.fsync(stream.fileno())
        digest = Path(scratch) / "digest"
        digest.write_text(hashlib.sha256(made.read_bytes()).hexdigest())
        made.replace(path)
        digest.replace(path.with_suffix(".sha256"))


def _fingerprint(compiler: str, instructions: InstructionSet) -> str:
    flags = (*FLAGS, *instructions.flags, *(SANITIZERS if _sanitized() else ()))
    digest = hashlib.sha256(f"{compiler} {flags} {platform.machine()}".encode())
    for path in sorted(SOURCES.rglob("*")):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compile_library(instructions: InstructionSet, out: Path, compiler: str = "g++") -> Path:
    """Compiles the library of one instruction set to ``out``.

    Raises:
        BuildError: the compiler fails or takes longer than ``COMPILE_SECONDS``.
    """
    command = [compiler, *FLAGS, *instructions.flags, *(SANITIZERS if _sanitized() else ())]
    try:
        done = subprocess.run(
            [*command, str(SOURCES / "library.cpp"), "-o", str(out)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMPILE_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler} did not compile the kernels: {sentence(error).rstrip('.')}.") from error
    if done.returncode:
        tail = done.stderr.decode(errors="replace")[-2000:]
        raise BuildError(f"{compiler} did not compile the kernels:\n{tail}")
    return out
