"""llama.cpp in this process: a GGUF file, tokens in, logits out, by the ctypes binding that lies beside the build."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

QUIET = 3
"""Messages below this level (warnings) are dropped."""


def bind(build: Path) -> Any:
    """llama-cpp-python's lowest layer over the libraries of ``build``; the rest of that package is not imported."""
    if "llama_cpp.llama_cpp" not in sys.modules:
        os.environ["LLAMA_CPP_LIB_PATH"] = str(build / "bin")
        package = types.ModuleType("llama_cpp")
        package.__path__ = [str(build / "llama_cpp")]
        sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


def _has_amx() -> bool:
    """Whether llama.cpp would pack weights for AMX: those of kv_b too, whose products it then finds no place for and
    ends the process (``GGML_ASSERT(*cur_backend_id != -1)``)."""
    cpu = Path("/proc/cpuinfo")
    return cpu.is_file() and "amx_tile" in cpu.read_text(encoding="utf-8", errors="replace")


class Input(NamedTuple):
    """One token of a step."""

    token: int
    position: int
    sequence: int = 0
    wanted: bool = True
    """Whether its logits are wanted."""


class LlamaCpp:
    """A loaded model and the caches of some sequences."""

    def __init__(
        self, build: Path, file: Path, context: int, threads: int = 1, sequences: int = 1, plain: bool = False
    ) -> None:
        """``context`` is of one sequence. ``plain`` keeps latents in fp32 and turns off what rounds for speed."""
        self.api = api = bind(build)
        self.log = api.llama_log_callback(lambda level, text, _: sys.stderr.buffer.write(text) if level > QUIET else 0)
        api.llama_log_set(self.log, ctypes.c_void_p(0))
        api.llama_backend_init()
        model = api.llama_model_default_params()
        model.n_gpu_layers, model.use_extra_bufts, model.load_mtp = 0, not (plain or _has_amx()), False
        self.model = api.llama_model_load_from_file(str(file).encode(), model)
        if not self.model:
            raise ValueError(f"{file}: llama.cpp does not load it.")
        base = ctypes.CDLL(str(build / "bin" / f"libggml-base.{'dylib' if sys.platform == 'darwin' else 'so'}"))
        base.ggml_version.restype = ctypes.c_char_p
        self.version = f"ggml {base.ggml_version().decode()}"
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.kv_unified = context * sequences, sequences, False
        settings.n_batch = settings.n_ctx
        settings.n_threads = settings.n_threads_batch = threads
        if plain:
            settings.type_k = settings.type_v = api.GGML_TYPE_F32
            settings.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = api.llama_init_from_model(self.model, settings)
        self.batch = api.llama_batch_init(context * sequences, 0, 1)

    def step(self, inputs: Sequence[Input]) -> np.ndarray:
        """Logits ``[W, V]`` of the inputs whose logits are wanted, in their order."""
        self.batch.n_tokens = len(inputs)
        for i, given in enumerate(inputs):
            self.batch.token[i], self.batch.pos[i], self.batch.logits[i] = given.token, given.position, given.wanted
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, given.sequence
        if code := self.api.llama_decode(self.context, self.batch):
            raise RuntimeError(f"llama_decode returned {code}")
        wanted = [i for i, given in enumerate(inputs) if given.wanted]
        rows = (self.api.llama_get_logits_ith(self.context, i) for i in wanted)
        table = [np.ctypeslib.as_array(row, (self.vocabulary,)).copy() for row in rows]
        return np.stack(table) if table else np.empty((0, self.vocabulary), dtype=np.float32)

    def forget(self, after: int = 0) -> None:
        """Leaves ``after`` tokens of every sequence in the cache."""
        self.api.llama_memory_seq_rm(self.api.llama_get_memory(self.context), -1, after, -1)

    def tokenize(self, text: str) -> list[int]:
        """Ids of ``text``, of special tokens in it too."""
        data = text.encode()
        room = (self.api.llama_token * (len(data) + 8))()
        vocabulary = self.api.llama_model_get_vocab(self.model)
        count = self.api.llama_tokenize(vocabulary, data, len(data), room, len(room), False, True)
        return list(room[:count])

    def close(self) -> None:
        """Gives the memory back."""
        self.api.llama_batch_free(self.batch)
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)
