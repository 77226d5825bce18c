"""A.X K1 for llama.cpp: GGUF files of a checkpoint, in little memory (``docs/llamacpp.md``).

llama.cpp runs them with the patches of ``docs/upstream/llama.cpp``, which ``make llamacpp`` applies and builds: its
architecture ``deepseek2`` is A.X K1's but for the norm behind the MoE block.
"""

from __future__ import annotations

import importlib.metadata
import os

__all__ = ["check_gguf"]

TESTED = "0.19"
"""The versions of the package ``gguf`` whose names, types and writer are used."""
UNTESTED_ALLOWED = "AXK1_LLAMACPP_UNTESTED"
"""Set to 1, this variable lets any other version of ``gguf`` and llama.cpp try."""
NAMED = "AXK1_LLAMACPP"
"""This variable names the folder of llama.cpp's programs and libraries in place of the clone's own build."""


def check_gguf() -> None:
    """Whether the package ``gguf`` can be used.

    Raises:
        ValueError: it is missing, or of a version that was not tested.
    """
    try:
        installed = importlib.metadata.version("gguf")
    except importlib.metadata.PackageNotFoundError:
        raise ValueError("the package gguf is not installed: in a clone, pip install '.[gguf]'.") from None
    if not installed.startswith(f"{TESTED}.") and os.environ.get(UNTESTED_ALLOWED) != "1":
        raise ValueError(
            f"axk1 is tested with gguf {TESTED}; {installed} is installed: pip install 'gguf~={TESTED}.0', or set "
            f"{UNTESTED_ALLOWED}=1 to try this one."
        )
