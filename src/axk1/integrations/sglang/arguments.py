"""Argument rules: the defaults that SGLang gives DeepSeek-V3, plus what a norm behind the experts rules out."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from axk1.integrations.sglang import DRAFT, TARGET


def register_arguments() -> None:
    """Adds A.X K1 to SGLang's tables of argument defaults."""
    from sglang.srt.arg_groups import overrides
    from sglang.srt.arg_groups.model_override_base import _MODEL_OVERRIDE_FNS, register_model_override
    from sglang.srt.arg_groups.model_overrides.deepseek_v2 import _deepseek_family_overrides

    for architecture in (TARGET, DRAFT):
        if axk1_overrides not in _MODEL_OVERRIDE_FNS.get(architecture, []):
            register_model_override(architecture)(_deepseek_family_overrides)
            register_model_override(architecture)(axk1_overrides)
    overrides._DEEPSEEK_FAMILY_ARCHS = overrides._DEEPSEEK_FAMILY_ARCHS | {TARGET}


def axk1_overrides(server_args: Any, hf_config: Any) -> dict[str, Any]:
    """Our own rules, in the form of SGLang's override providers: ``{field: value}``.

    Raises:
        ValueError: two-batch overlap, whose schedule SGLang builds for layers of its own classes only.
    """
    from sglang.srt.arg_groups.model_override_base import resolving_view

    if resolving_view(server_args).enable_two_batch_overlap:
        raise ValueError("--enable-two-batch-overlap is not supported for A.X K1 on SGLang: leave it out.")
    return {"disable_shared_experts_fusion": True}
