"""Compiles ``cpu/*.cpp`` once for this machine, PyTorch and source, and loads the operators ``torch.ops.axk1.*``."""

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from axk1.folders import user_cache

SOURCES = Path(__file__).parent / "cpu"
FLAGS = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-Wno-psabi")
logger = logging.getLogger(__name__)


def are_wanted() -> bool:
    """Whether ``AXK1_KERNELS`` leaves faster steps on; 0 turns them off, on CPUs and GPUs."""
    return os.environ.get("AXK1_KERNELS", "1") != "0"


@cache
def available() -> bool:
    """Whether the operators are there, after building them if need be (about half a minute, once a machine)."""
    if not are_wanted():
        return False
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or platform.system() != "Linux":
        logger.info("No C++ compiler for Linux was found: decoding runs on PyTorch's own operators.")
        return False
    try:
        torch.ops.load_library(str(_library(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = error.stderr[-2000:] if isinstance(error, subprocess.CalledProcessError) else error
        logger.warning(
            "The CPU kernels could not be built or loaded; decoding runs on PyTorch's own operators, more slowly. %s",
            detail,
        )
        return False
    return True


def is_fast(dtype: torch.dtype) -> bool:
    """Whether the operators are there, with this processor's own instructions for ``dtype``."""
    return available() and (dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.axk1.reads_lossless()))


def _library(compiler: str) -> Path:
    """The shared library for this source, PyTorch, compiler and processor; compiled if it is not in the cache."""
    library = user_cache("kernels") / _fingerprint(compiler) / "axk1_cpu.so"
    if library.is_file():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with (library.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes that start together build once
        if not library.is_file():
            logger.warning("Building the CPU kernels into %s (once, about half a minute).", library.parent)
            with tempfile.TemporaryDirectory(dir=library.parent) as folder:
                _compile(compiler, Path(folder) / library.name).replace(library)
    return library


def _fingerprint(compiler: str) -> str:
    digest = hashlib.sha256(f"{torch.__version__} {compiler} {FLAGS}".encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    # -march=native: a home folder may be shared by machines with other processors
    flags = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))]
    digest.update("".join(flags[:1]).encode())
    return digest.hexdigest()[:16]


def _compile(compiler: str, out: Path) -> Path:
    torch_folder = Path(torch.__file__).parent
    includes = [torch_folder / "include", torch_folder / "include/torch/csrc/api/include"]
    command = [compiler, *FLAGS, str(SOURCES / "library.cpp"), "-o", str(out)]
    command += [argument for include in includes for argument in ("-isystem", str(include))]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    command += [f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return out
