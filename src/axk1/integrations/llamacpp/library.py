"""llama.cpp's libraries as ``make llamacpp`` builds them: the quantiser, and the types that it gives to tensors."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf  # pyright: ignore[reportMissingImports]
import numpy as np

from axk1.integrations.llamacpp import NAMED, UNTESTED_ALLOWED

GGML = "0.25.3"
"""What the library of the tested source (llama-cpp-python 0.3.36) calls itself."""
_SUFFIX = "dylib" if sys.platform == "darwin" else "so"
_CHOICE = re.compile(r"\] (?P<name>\S+) +- \[[^]]*\], type = *\w+, size = .*\((?P<type>\w+)\)$", re.MULTILINE)
_Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _Settings(ctypes.Structure):
    """``llama_model_quantize_params`` of ``llama.h``, in the version ``GGML``."""

    _fields_ = (
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int),
        ("output_tensor_type", ctypes.c_int),
        ("token_embedding_type", ctypes.c_int),
        *((name, ctypes.c_bool) for name in ("requantize", "quantize_output", "copy", "pure", "keep_split", "dry_run")),
        *((name, ctypes.c_void_p) for name in ("imatrix", "overrides", "tensor_overrides", "prune_layers")),
        ("max_buffer", ctypes.c_size_t),
    )


def programs() -> Path:
    """The folder with llama.cpp's programs and libraries.

    Raises:
        ValueError: there is none.
    """
    clone = Path(__file__).resolve().parents[4]
    folder = Path(os.environ.get(NAMED) or clone / ".llamacpp" / "current" / "bin")
    if not (folder / f"libllama.{_SUFFIX}").is_file():
        raise ValueError(
            f"{folder} holds no libllama.{_SUFFIX}: run `make llamacpp` in a clone, or let {NAMED} name it."
        )
    return folder


class Library:
    """The quantiser of a built llama.cpp.

    Raises:
        ValueError: there is none, or of a version that was not tested.
    """

    def __init__(self) -> None:
        folder = programs()
        self.base, self.llama = (ctypes.CDLL(str(folder / f"lib{name}.{_SUFFIX}")) for name in ("ggml-base", "llama"))
        self.base.ggml_version.restype = ctypes.c_char_p
        version = self.base.ggml_version().decode()
        if version != GGML and os.environ.get(UNTESTED_ALLOWED) != "1":
            raise ValueError(
                f"axk1 is tested with ggml {GGML}; {folder} holds {version}: run `make llamacpp`, or set "
                f"{UNTESTED_ALLOWED}=1 to try this one."
            )
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self.base.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.base.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
        self.llama.llama_model_quantize_default_params.restype = _Settings
        self.threads = os.cpu_count() or 1
        self.pool = ThreadPoolExecutor(self.threads)

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

    def types(self, skeleton: Path, file_type: gguf.LlamaFileType) -> dict[str, gguf.GGMLQuantizationType]:
        """The types that llama.cpp's quantiser gives to the tensors of a file, without quantising anything.

        Args:
            skeleton: a GGUF file in bf16 whose values are never read.

        Raises:
            ValueError: the quantiser does not run on this file.
        """
        settings = self.llama.llama_model_quantize_default_params()
        settings.ftype, settings.dry_run = int(file_type), True
        lines: list[bytes] = []
        log = _Log(lambda level, text, _: lines.append(text))
        self.llama.llama_log_set(log, None)
        try:
            failed = self.llama.llama_model_quantize(str(skeleton).encode(), b"", ctypes.byref(settings))
        finally:
            self.llama.llama_log_set(None, None)
        said = b"".join(lines).decode()
        if failed:
            raise ValueError(f"llama.cpp's quantiser could not read the model: {said.strip().splitlines()[-1]}")
        return {match["name"]: gguf.GGMLQuantizationType[match["type"].upper()] for match in _CHOICE.finditer(said)}
