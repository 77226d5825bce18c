"""transformers' own A.X K1, by default with its experts as grouped matrix multiplications."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from protocol import serve
from torch_engine import TorchEngine
from transformers import AutoModelForCausalLM

ENGINE: list[TorchEngine] = []


def load(path: str, dtype: str, device: str, threads: int, experts: str = "grouped_mm", **_: Any) -> dict[str, Any]:
    """Loads the released layout; ``experts`` is transformers' ``experts_implementation``."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=getattr(torch, dtype),
        experts_implementation=experts,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    assert type(model).__module__.startswith("transformers."), type(model)
    ENGINE[:] = [TorchEngine(model.to(device).eval())]  # pyright: ignore[reportArgumentType]
    return {"seconds": time.perf_counter() - start, "version": transformers.__version__, "fills": True}


if __name__ == "__main__":
    names = ("prefill", "decode", "answers", "memory")
    serve({"load": load} | {name: lambda name=name, **how: getattr(ENGINE[0], name)(**how) for name in names})
