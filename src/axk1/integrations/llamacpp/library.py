"""llama.cpp as ``make llamacpp`` builds it: its programs, its quantiser, and the types that it gives to tensors."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf  # pyright: ignore[reportMissingImports]
import numpy as np

from axk1.integrations.llamacpp import NAMED, UNTESTED_ALLOWED

GGML = "0.25.3"
"""What the library of the tested source (llama-cpp-python 0.3.36) calls itself."""
_CHOICE = re.compile(r"\] (?P<name>\S+) +- \[[^]]*\], type = *\w+, size = .*\((?P<type>\w+)\)$", re.MULTILINE)


def programs() -> Path:
    """The folder with llama.cpp's programs and libraries.

    Raises:
        ValueError: there is none.
    """
    clone = Path(__file__).resolve().parents[4]
    folder = Path(os.environ.get(NAMED) or clone / ".llamacpp" / "current" / "bin")
    if not (folder / "llama-quantize").is_file():
        raise ValueError(f"{folder} holds no llama-quantize: run `make llamacpp` in a clone, or let {NAMED} name it.")
    return folder


class Library:
    """The quantiser of a built llama.cpp."""

    def __init__(self) -> None:
        self.folder = programs()
        suffix = "dylib" if sys.platform == "darwin" else "so"
        self.base = ctypes.CDLL(str(self.folder / f"libggml-base.{suffix}"))
        self.base.ggml_version.restype = ctypes.c_char_p
        self.base.ggml_quantize_chunk.restype = ctypes.c_size_t
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self.base.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
        self.threads = os.cpu_count() or 1
        self.pool = ThreadPoolExecutor(self.threads)
        version = self.base.ggml_version().decode()
        if version != GGML and os.environ.get(UNTESTED_ALLOWED) != "1":
            raise ValueError(
                f"axk1 is tested with ggml {GGML}; {self.folder} holds {version}: run `make llamacpp`, or set "
                f"{UNTESTED_ALLOWED}=1 to try this one."
            )

    def quantize(self, values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
        """``values`` ``[R, I]`` fp32 as bytes ``[R, B]`` in the type ``kind``."""
        values = np.ascontiguousarray(values, dtype=np.float32)
        rows, width = values.shape
        block, size = gguf.GGML_QUANT_SIZES[kind]
        out = np.empty((rows, width // block * size), dtype=np.uint8)
        step = -(-rows // self.threads)

        def part(start: int) -> None:
            count = min(step, rows - start)
            source, target = values[start:].ctypes.data, out[start:].ctypes.data
            self.base.ggml_quantize_chunk(int(kind), source, target, 0, count, width, None)

        list(self.pool.map(part, range(0, rows, step)))
        return out

    def types(self, skeleton: Path, name: str) -> dict[str, gguf.GGMLQuantizationType]:
        """The types that llama.cpp's quantiser gives to the tensors of a file, without quantising anything.

        Args:
            skeleton: a GGUF file in bf16 whose values are never read.
            name: of a mixture, such as ``q4_k_m``.

        Raises:
            ValueError: the quantiser does not run on this file.
        """
        command = [str(self.folder / "llama-quantize"), "--dry-run", str(skeleton), name.upper()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise ValueError(f"llama-quantize could not read the model: {last}")
        found = _CHOICE.finditer(done.stdout + done.stderr)
        return {match["name"]: gguf.GGMLQuantizationType[match["type"].upper()] for match in found}
