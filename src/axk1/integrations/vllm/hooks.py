"""What is wrapped in vLLM: two functions that decide by a list of names, and experts of ours that are wrong on CPUs."""

# pyright: reportMissingImports=false

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

DRAFT = "AXK1MTPModel"


def draft_config(config: Any) -> Any:
    """Turns A.X K1's configuration into its draft's, in place; ``deepseek_mtp`` is vLLM's word for drafts of this kind.

    Raises:
        ValueError: a checkpoint without an MTP layer.
    """
    depth = config.num_nextn_predict_layers
    if not depth:
        raise ValueError(
            "This checkpoint has no MTP layer (num_nextn_predict_layers=0): leave --speculative-config out."
        )
    config.model_type = "deepseek_mtp"
    config.update({"n_predict": depth, "architectures": [DRAFT]})
    return config


def is_ours(config: Any) -> bool:
    """Whether ``config`` is A.X K1's, or already its draft's."""
    return config.model_type in ("axk1", "AXK1") or DRAFT in (config.architectures or ())


def install_draft() -> None:
    """Makes vLLM find the draft of an A.X K1 checkpoint; every other model keeps vLLM's own way."""
    from vllm.config.speculative import SpeculativeConfig
    from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer

    known = SpeculativeConfig.hf_config_override
    if getattr(known, "axk1", False):
        return

    @functools.wraps(known)
    def hf_config_override(hf_config: Any, *overrides: Any, **named: Any) -> Any:
        theirs = any(overrides) or any(named.values())  # 0.33: transformers' own code is to be the draft
        return draft_config(hf_config) if is_ours(hf_config) and not theirs else known(hf_config, *overrides, **named)

    returns_tuple = SpecDecodeBaseProposer.model_returns_tuple

    @functools.wraps(returns_tuple)
    def model_returns_tuple(self: Any) -> bool:
        if self.method == "mtp" and DRAFT in (self.draft_model_config.hf_config.architectures or ()):
            return True
        return returns_tuple(self)

    hf_config_override.axk1 = True  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    SpeculativeConfig.hf_config_override = staticmethod(hf_config_override)
    SpecDecodeBaseProposer.model_returns_tuple = model_returns_tuple


def map_experts(module: nn.Module) -> None:
    """Lets expert-parallel processes of this model run on CPUs, where vLLM 0.32 takes every expert for its own and dies
    (``docs/upstream/vllm-cpu-expert-parallel.md``). To be called when weights are loaded: vLLM makes the objects that
    compute experts, one a layer, only then. Those of other models stay as they are."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

    for part in module.modules():
        kernel = getattr(getattr(part, "quant_method", None), "moe_kernel", None)
        experts = getattr(kernel, "fused_experts", None)
        if isinstance(experts, CPUUnquantizedExperts) and not getattr(experts.apply, "axk1", False):
            experts.apply = with_expert_map(experts.apply)


def with_expert_map(known: Callable[..., Any]) -> Callable[..., Any]:
    """``known`` (of ``topk_weights``, ``topk_ids``, ``expert_map`` and others) for this process's experts: ids become
    its own, those of other processes' experts 0 with weight 0."""
    signature = inspect.signature(known)

    @functools.wraps(known)
    def apply(*args: Any, **named: Any) -> Any:
        call = signature.bind(*args, **named)
        given, here = call.arguments, call.arguments["expert_map"]
        if here is not None:
            local = here[given["topk_ids"].long()]
            given["topk_weights"] = given["topk_weights"].masked_fill(local < 0, 0.0)
            given["topk_ids"] = local.clamp(min=0).to(given["topk_ids"].dtype)
        return known(*call.args, **call.kwargs)

    apply.axk1 = True  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    return apply
