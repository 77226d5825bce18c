"""A.X K1 on SGLang: a model package, a draft for MTP, parsers, and the hooks that make SGLang treat it as MLA.

Installed beside SGLang, the entry point ``axk1`` of group ``sglang.srt.plugins`` calls ``plugin.register`` in every
process of the engine; nothing has to be imported by hand. Importing this package imports neither SGLang nor torch.
"""

from __future__ import annotations

import os

TESTED = "0.5.23"
"""The version of SGLang that the hooks and subclasses were written and tested against."""
UNTESTED_ALLOWED = "AXK1_SGLANG_UNTESTED"
"""Set to 1, this variable lets the plugin try any other version."""
TARGET = "AXK1ForCausalLM"
"""Architecture name of the model, as checkpoints have it."""
DRAFT = "AXK1ForCausalLMNextN"
"""Architecture name of the MTP draft: its own, so that DeepSeek's draft stays as it is."""
REASONING_PARSER = "axk1"
TOOL_CALL_PARSER = "axk1"


def version_problem(installed: str) -> str | None:
    """Why ``installed`` (a version of SGLang) is refused, in one sentence; None if it is not."""
    if installed == TESTED or os.environ.get(UNTESTED_ALLOWED) == "1":
        return None
    return (
        f"axk1's SGLang integration is tested with sglang=={TESTED} and hooks its internals, but {installed} is "
        f"installed: install sglang=={TESTED}, or set {UNTESTED_ALLOWED}=1 to try it with this version."
    )
