"""The two places where vLLM decides by a list of names, and A.X K1's MTP draft has to be known."""

# pyright: reportMissingImports=false

from __future__ import annotations

import functools
from typing import Any

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
