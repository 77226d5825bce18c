"""Hooks on the places where SGLang 0.5.23 decides by architecture name (HookType.AROUND: original first).

In each of them A.X K1 poses as DeepSeek-V3, whose attention and experts it shares, for the length of one call.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from axk1.integrations.sglang import DRAFT, TARGET
from axk1.integrations.sglang.support import check_config, check_draft

POSES_AS = {TARGET: "DeepseekV3ForCausalLM", DRAFT: "DeepseekV3ForCausalLMNextN"}
MODEL_PACKAGE = "axk1.integrations.sglang.models"


@contextmanager
def posing_as_deepseek(hf_config: Any) -> Iterator[None]:
    """Inside, ``hf_config.architectures`` names DeepSeek-V3's class instead of ours; other models are left alone."""
    names = hf_config.architectures
    if not names or names[0] not in POSES_AS:
        yield
        return
    hf_config.architectures = [POSES_AS[names[0]], *names[1:]]
    try:
        yield
    finally:
        hf_config.architectures = names


def derive_model_shapes(original: Callable[..., Any], model_config: Any) -> Any:
    """``ModelConfig._derive_model_shapes``: MLA with its latent cache, where an unknown name would get MHA."""
    architectures = model_config.hf_config.architectures or [""]
    if architectures[0] in POSES_AS:
        check_config(model_config.hf_config)
        register_models()
    with posing_as_deepseek(model_config.hf_config):
        return original(model_config)


def config_draft_model(original: Callable[..., Any], model_config: Any) -> Any:
    """``ModelConfig._config_draft_model``: the draft of A.X K1 gets the name of our class."""
    result = original(model_config)
    hf_config = model_config.hf_config
    if model_config.is_draft_model and hf_config.architectures and hf_config.architectures[0] == TARGET:
        check_draft(hf_config)
        hf_config.architectures = [DRAFT, *hf_config.architectures[1:]]
    return result


def with_server_args(original: Callable[..., Any], server_args: Any) -> Any:
    """Functions that resolve arguments: they read the name from the model that ``server_args`` asks for."""
    from sglang.srt.arg_groups.model_override_base import model_config_of, resolving_view
    from sglang.srt.connector import ConnectorType
    from sglang.srt.utils.common import parse_connector_type

    if parse_connector_type(resolving_view(server_args).model_path) == ConnectorType.INSTANCE:
        return original(server_args)  # weights come from another process, there is no configuration to read
    with posing_as_deepseek(model_config_of(server_args).hf_config):
        return original(server_args)


def register_models() -> None:
    """Puts our classes into SGLang's registry; an import that fails says so instead of falling back in silence."""
    from sglang.srt.models.registry import ModelRegistry

    if not {TARGET, DRAFT} <= ModelRegistry.models.keys():
        ModelRegistry.register(MODEL_PACKAGE, overwrite=True, strict=True)


HOOKS: dict[str, Callable[..., Any]] = {
    "sglang.srt.configs.model_config.ModelConfig._derive_model_shapes": derive_model_shapes,
    "sglang.srt.configs.model_config.ModelConfig._config_draft_model": config_draft_model,
    "sglang.srt.arg_groups.speculative_hook._handle_eagle_family": with_server_args,
    "sglang.srt.arg_groups.attention_hook.handle_deterministic_inference": with_server_args,
    "sglang.srt.arg_groups.cuda_graph_hook.disable_prefill_cuda_graph_for_deepseek_trtllm_mla": with_server_args,
}
