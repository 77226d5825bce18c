"""The machine's own limits: memory bandwidth and the rate of matrix multiplications, by torch's operators."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from protocol import serve

STATE = {"device": torch.device("cpu")}


def load(threads: int, device: str, **_: Any) -> dict[str, Any]:
    """Sets the number of threads and the device; there is no model."""
    torch.set_num_threads(threads)
    STATE["device"] = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {"seconds": 0.0, "version": torch.__version__, "device_name": name}


def bandwidth(size: int, seconds: float) -> dict[str, Any]:
    """Bytes per second of several kernels that read ``size`` bytes: a bound is the best that any of them reaches."""
    device = STATE["device"]
    count = size // 8
    left = torch.ones(count, device=device)
    right = torch.ones(count, device=device)
    out = torch.empty(count, device=device)
    matrix = left[: count // 4096 * 4096].view(-1, 4096)
    vector = torch.ones(4096, device=device)
    kernels: dict[str, tuple[Callable[[], Any], int]] = {
        "sum": (left.sum, left.nbytes),
        "dot": (lambda: torch.dot(left, right), 2 * left.nbytes),
        "matrix-vector": (lambda: torch.mv(matrix, vector), matrix.nbytes),
        "copy": (lambda: out.copy_(left), 2 * left.nbytes),
        "triad": (lambda: torch.add(left, right, alpha=3.0, out=out), 3 * left.nbytes),
    }
    rates = {name: size / best(kernel, seconds / len(kernels)) for name, (kernel, size) in kernels.items()}
    return {"rates": rates, "best": max(rates.values())}


def matmul(dtype: str, size: int, seconds: float) -> dict[str, Any]:
    """Operations per second of ``size x size`` matrices."""
    number = getattr(torch, dtype)
    left, right = (torch.randn(size, size, device=STATE["device"]).to(number) for _ in range(2))
    return {"best": 2 * size**3 / best(lambda: torch.nn.functional.linear(left, right), seconds)}


def best(kernel: Callable[[], Any], seconds: float) -> float:
    """Shortest of the runs that fit into ``seconds``, three at least."""
    kernel()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = now()
        kernel()
        times.append(now() - start)
    return min(times)


def now() -> float:
    """The time when the device is done."""
    if STATE["device"].type == "cuda":
        torch.cuda.synchronize(STATE["device"])
    return time.perf_counter()


if __name__ == "__main__":
    with torch.inference_mode():
        serve({"load": load, "bandwidth": bandwidth, "matmul": matmul})
