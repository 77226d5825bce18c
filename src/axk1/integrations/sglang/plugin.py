"""The entry point ``sglang.srt.plugins``: registers hooks, parsers and argument rules in one process of the engine.

SGLang logs an exception of a plugin and goes on, and for an architecture that it does not know it falls back to
transformers' own classes with ordinary attention. So nothing here refuses by raising at registration: a version that
is not the tested one gets a single hook, which raises when (and only when) an A.X K1 model is to be served.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import functools
import importlib.metadata
from typing import Any

from axk1.integrations.sglang import TARGET, version_problem

MODEL_CONFIG = "sglang.srt.configs.model_config.ModelConfig"


def register() -> None:
    """Registers everything; SGLang applies the hooks when all plugins have run. Safe to call once a process."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    import axk1  # noqa: F401 - transformers' AutoConfig now reads model_type axk1 as our configuration

    problem = version_problem(importlib.metadata.version("sglang"))
    if problem is not None:
        HookRegistry.register(f"{MODEL_CONFIG}.__init__", functools.partial(_refuse, problem), HookType.AFTER)
        return
    from axk1.integrations.sglang import arguments, hooks
    from axk1.integrations.sglang.parsers import register_parsers

    for target, hook in hooks.HOOKS.items():
        HookRegistry.register(target, hook, HookType.AROUND)
    arguments.register_arguments()
    register_parsers()


def _refuse(problem: str, _: Any, model_config: Any, *args: Any, **kwargs: Any) -> None:
    if TARGET in (model_config.hf_config.architectures or []):
        raise RuntimeError(problem)
