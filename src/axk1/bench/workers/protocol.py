"""How a benchmark worker is spoken to: one JSON object per line on standard input, one per line in answer.

Standard library only, because every engine's own environment runs it. The workers of this folder are scripts, started
by path, so that a peer never imports axk1 (which would put its classes in place of transformers' own).

Requests name an operation and its arguments, ``{"op": "decode", "context": 264, "batch": 1, "tokens": 32}``. Answers
are ``{"ok": true, ..., "peak_rss": bytes}`` or ``{"ok": false, "error": "one line"}``.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Operation = Callable[..., dict[str, Any]]


def serve(operations: dict[str, Operation]) -> None:
    """Answers requests until standard input ends. What libraries print goes to standard error."""
    _die_with_parent()
    with os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            print(json.dumps(_answer(operations, line)), file=answers, flush=True)


def _answer(operations: dict[str, Operation], line: str) -> dict[str, Any]:
    try:
        request = json.loads(line)
        reply = operations[request.pop("op")](**request)
    except Exception as error:
        traceback.print_exc()
        return {"ok": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    return {"ok": True, "peak_rss": peak_rss(), **reply}


def peak_rss() -> int:
    """Most memory that this process ever had resident, in bytes."""
    if sys.platform == "linux":  # getrusage also counts what the parent had when it started this process
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def random_ids(count: int, vocabulary: int, seed: int) -> list[int]:
    """Token ids of a prompt; a longer prompt of the same seed begins with the shorter one."""
    draw = random.Random(seed)
    return [draw.randrange(3, vocabulary) for _ in range(count)]


def _die_with_parent() -> None:
    """Workers are stopped while others measure: without this one would stay for ever if the benchmark was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
