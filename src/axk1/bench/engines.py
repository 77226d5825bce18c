"""Who takes part: axk1 and its peers, each a worker script run by a Python that has the engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from axk1.allocator import VARIABLES
from axk1.bench.client import Worker
from axk1.bench.models import Model, per_expert, quantized
from axk1.quantized.plan import KINDS, Kind

WORKERS = Path(__file__).parent / "workers"
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Engine:
    """One row of the comparison, for example ``llamacpp:q8_0``."""

    name: str
    script: str
    base: str = ""
    variant: str = ""
    scale: float = 1.0
    """Bytes of its weights over those of 16-bit ones."""
    checkpoint: Path | None = None
    """Weights of its own, instead of the model's: ``axk1@FOLDER``, such as a quantised copy."""
    own_environment: bool = False
    """Runs in ``.venv-BASE``, or with the Python that the variable AXK1_BENCH_BASE names."""
    cuda: bool = False
    kinds: tuple[str, ...] = ("decode", "prefill")
    """The kinds of case it takes part in."""
    note: str = ""

    @property
    def load_options(self) -> dict[str, Any]:
        """What a variant changes in the worker."""
        options: dict[str, dict[str, Any]] = {
            "axk1": {"pack": self.variant == "packed"},
            "transformers": {"experts": self.variant},
            "vllm": {"eager": self.variant != "compiled"},
            "mlx": {"bits": MLX_BITS.get(self.variant, 0)},
            "llamacpp": {"build": str(llamacpp_build())},
        }
        return options.get(self.base, {})


QUANTIZED = KINDS
LLAMA_BITS = {"f16": 16.0, "q8_0": 8.5, "q4_0": 4.5}
MLX_BITS = {"4bit": 4, "8bit": 8}
BITS = LLAMA_BITS | {"packed": 97 / 8, "4bit": 4.5, "8bit": 8.5, "fp32": 32.0}
"""A weight's, where the model's own checkpoint does not say it."""
BASE = {
    engine.base: engine
    for engine in (
        Engine("axk1", "axk1_worker.py", "axk1", cuda=True, kinds=("decode", "prefill", "reply")),
        Engine("transformers", "transformers_worker.py", "transformers", "grouped_mm", cuda=True),
        Engine("vllm", "vllm_worker.py", "vllm", "eager", own_environment=True),
        Engine("llamacpp", "llamacpp_worker.py", "llamacpp", "f16"),
        Engine("mlx", "mlx_worker.py", "mlx", "fp32", scale=2.0, own_environment=True),
    )
}
VARIANTS = {
    "axk1": ("packed", *QUANTIZED, "mtp"),
    "transformers": ("grouped_mm", "batched_mm", "eager"),
    "vllm": ("eager", "compiled"),
    "llamacpp": tuple(LLAMA_BITS),
    "mlx": ("fp32", *MLX_BITS),
}


def parse_engines(text: str | None) -> list[Engine]:
    """The engines of a list such as ``axk1,transformers,llamacpp:q8_0``; without one, all that are installed.

    Raises:
        ValueError: an engine that is unknown, named twice, or not installed.
    """
    if text is None:
        return [engine for engine in BASE.values() if python_of(engine)]
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"--engines is {text!r}; name each engine once, separated by commas.")
    engines = [_parse(name) for name in names]
    for engine in engines:
        require(engine)
    return engines


def _parse(name: str) -> Engine:
    left, at, folder = name.partition("@")
    base, colon, variant = left.partition(":")
    if base not in BASE:
        raise ValueError(f"--engines: {name!r} is unknown; there are {', '.join(BASE)}.")
    engine = replace(BASE[base], name=name)
    if at:
        if base != "axk1" or not Path(folder, "config.json").is_file():
            raise ValueError(f"--engines: {name!r} must be axk1@FOLDER, the folder of a checkpoint.")
        engine = replace(engine, name=f"axk1@{Path(folder).resolve().name}", checkpoint=Path(folder).resolve())
    if colon:
        if variant not in VARIANTS[base]:
            choices = ", ".join(f"{base}:{choice}" for choice in VARIANTS[base]) or "none"
            raise ValueError(f"--engines: {name!r} is no variant of {base}; there are: {choices}.")
        engine = replace(engine, variant=variant, kinds=("reply",) if variant == "mtp" else engine.kinds)
    return replace(engine, scale=BITS.get(engine.variant, 16.0) / 16)


def python_of(engine: Engine) -> Path | None:
    """The Python that runs an engine's worker; None for a peer that is not installed.

    A peer's is named by AXK1_BENCH_BASE, or lies in ``.venv-BASE`` of this folder or of the clone that axk1 runs from.
    """
    if engine.base == "llamacpp" and llamacpp_build() is None:
        return None
    if not engine.own_environment:
        return Path(sys.executable)
    return environment_python(engine.base, f"AXK1_BENCH_{engine.base.upper()}")


def environment_python(name: str, variable: str) -> Path | None:
    """The Python that ``variable`` names, else of ``.venv-NAME`` in the clone that axk1 runs from, if any; never one of
    the current folder, which may be anybody's."""
    named = os.environ.get(variable)
    clone = Path(__file__).resolve().parents[3]
    place = Path(named) if named else clone / f".venv-{name}" / "bin" / "python"
    return place if place.is_file() else None


def llamacpp_build() -> Path | None:
    """The folder that `make llamacpp` made in the clone, or the one above AXK1_LLAMACPP; None without llama.cpp."""
    clone = Path(__file__).resolve().parents[3]
    programs = Path(os.environ.get("AXK1_LLAMACPP") or clone / ".llamacpp" / "current" / "bin")
    return programs.parent if any(programs.glob("libllama.*")) else None


def require(engine: Engine) -> Path:
    """``python_of``, for an engine that was asked for.

    Raises:
        ValueError: a peer that is not installed.
    """
    python = python_of(engine)
    if python is None:
        variable = f"AXK1_BENCH_{engine.base.upper()} name a Python that has it"
        if engine.base == "llamacpp":
            variable = "AXK1_LLAMACPP name the folder of its programs"
        raise ValueError(
            f"{engine.name} is not installed here: run `make bench-peers` in a clone of axk1, or let {variable}."
        )
    return python


def weights_for(engine: Engine, model: Model) -> Path:
    """The weights in the form that the engine reads, made once."""
    if engine.checkpoint is not None:
        return engine.checkpoint
    makers: dict[str, Callable[[], Path]] = {
        "axk1": lambda: quantized(model, cast(Kind, engine.variant)) if engine.variant in QUANTIZED else model.folder,
        "vllm": lambda: per_expert(model),
        "llamacpp": lambda: _gguf(engine, model),
    }
    return makers.get(engine.base, lambda: model.folder)()


def _gguf(engine: Engine, model: Model) -> Path:
    folder = model.cache / f"gguf-{engine.variant}"
    target = folder / f"model-{engine.variant}.gguf"
    if not target.is_file():
        command = [sys.executable, "-m", "axk1", "export", "gguf", str(model.folder), str(folder)]
        command += ["--type", engine.variant, "--split-size", "1000GB"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise ValueError(f"{model.name} could not be written as GGUF for llama.cpp: {last}")
    return target


def start(engine: Engine, threads: int, logs: Path) -> Worker:
    """Starts an engine's worker."""
    python = require(engine)
    log = logs / f"{engine.name.replace(':', '-').replace('/', '-')}.log"
    return Worker(engine.name, [str(python), "-u", str(WORKERS / engine.script)], environment(engine, threads), log)


def environment(engine: Engine, threads: int) -> dict[str, str]:
    """Variables of a worker: threads, memory, and what vLLM needs on a CPU; nothing reaches for a network."""
    values = dict(os.environ)
    if engine.own_environment:  # axk1's packages are not the peer's
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            values.pop(name, None)
    values |= VARIABLES | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if engine.base == "vllm":
        values |= {
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_PLUGINS": "",  # vLLM as it comes: without axk1's plugin, which `make engines` installs beside it
            "LD_PRELOAD": ":".join(map(str, _preloads(require(engine)))),
        }
        if engine.variant != "compiled":
            values["VLLM_CPU_CI_ENV"] = "1"
    return values


def _preloads(python: Path) -> list[Path]:
    """The two libraries that vLLM's manual tells to load first, where its environment has them."""
    root = python.parent.parent
    patterns = ("lib/python*/site-packages/vllm/libs/libtcmalloc*.so*", "lib/libiomp5.so")
    return [path for pattern in patterns for path in sorted(root.glob(pattern))[:1]]
