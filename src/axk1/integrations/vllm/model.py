"""The target model: vLLM's own, with our reading of checkpoints and a check of what its code takes for granted."""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase
from vllm.model_executor.models.AXK1 import AXK1ForCausalLM as VllmAXK1ForCausalLM
from vllm.platforms import current_platform

from axk1.checkpoint.compressed import KV_B
from axk1.integrations.vllm.hooks import map_experts
from axk1.integrations.vllm.weights import (
    Weights,
    int8_kv_b,
    layers_from,
    per_expert,
    with_defaults,
    with_full_kv_b,
)

FIXED = {
    "attention_bias": False,
    "rope_interleave": True,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "hidden_act": "silu",
}
"""Fields that vLLM's model does not look at, or not fully, and the one value (the released one) that it computes."""


def check_config(config: Any, max_model_len: int) -> None:
    """Refuses what vLLM's model would compute wrongly without saying so.

    Raises:
        ValueError: naming the field, or the context that is too long.
    """
    for name, value in FIXED.items():
        if getattr(config, name, value) != value:
            raise ValueError(f"{name}={getattr(config, name)!r} cannot be served by vLLM's A.X K1; it needs {value!r}.")
    if config.first_k_dense_replace is None:
        raise ValueError(
            f"mlp_layer_types={config.mlp_layer_types!r} cannot be served by vLLM's A.X K1: the dense layers have to "
            "be the first ones."
        )
    rope = config.rope_parameters
    if "factor" in rope and max_model_len > (reach := int(rope["factor"] * rope["original_max_position_embeddings"])):
        raise ValueError(
            f"--max-model-len {max_model_len} is longer than the {reach} positions that vLLM prepares for this YaRN "
            f"(factor x original_max_position_embeddings): lower it to {reach}."
        )


def use_native_rope(module: nn.Module) -> None:
    """Has rotary embeddings without scaling computed in PyTorch, on CPUs.

    vLLM's CPU kernel turns a query ``[tokens, heads, dim]`` wrongly (docs/upstream/vllm-cpu-rotary.md). Those with YaRN
    do not use it.
    """
    if current_platform.is_cpu():
        for part in module.modules():
            if isinstance(part, RotaryEmbeddingBase):
                part._forward_method = part.forward_native


def keep_kv_b_full(vllm_config: VllmConfig) -> None:
    """Has ``kv_b_proj`` made in full precision where the checkpoint has it in int8; ``with_full_kv_b`` fills it."""
    quant_config: Any = vllm_config.quant_config
    ignore = getattr(quant_config, "ignore", None)
    if ignore is not None and KV_B not in ignore and int8_kv_b(vllm_config.model_config.hf_config):
        quant_config.ignore = [*ignore, KV_B]  # a new list: the old one is the configuration's own


def finish_loading(model: nn.Module, parent: Any) -> None:
    """The last step of loading: that of the class above, where it has one, then what needs loaded experts."""
    theirs = getattr(parent, "process_weights_after_loading", None)
    if theirs is not None:
        theirs()
    map_experts(model)


class AXK1ForCausalLM(VllmAXK1ForCausalLM):
    """A.X K1 in vLLM: reads fused and per-expert checkpoints, with or without router biases and the first layer's norm.

    Raises:
        ValueError: a configuration whose model vLLM would compute wrongly.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        check_config(vllm_config.model_config.hf_config, vllm_config.model_config.max_model_len)
        keep_kv_b_full(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        use_native_rope(self)

    def load_weights(self, weights: Weights) -> set[str]:
        """Loads ``(name, tensor)`` pairs in any layout; returns the names of the parameters that were set."""
        kept = with_full_kv_b(layers_from(weights, 0, self.config.num_hidden_layers), self.config)
        trunk = per_expert(kept, self.config)
        parameters = dict(self.named_parameters())
        return super().load_weights(with_defaults(trunk, parameters, self.config.is_moe_layer))

    def process_weights_after_loading(self) -> None:
        """vLLM's last step of loading."""
        finish_loading(self, super())
