"""The MTP draft: DeepSeek's frame around A.X K1's own decoder layer, whose norm behind the MoE block it needs.

The contract is that of ``axk1.modeling.mtp``: the trunk's state after its final norm, ``[enorm(embedding),
hnorm(hidden)]`` in that order, embedding and head shared with the trunk, no position masked.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.AXK1 import AXK1DecoderLayer
from vllm.model_executor.models.deepseek_mtp import (
    DeepSeekMTP,
    DeepSeekMultiTokenPredictor,
    DeepSeekMultiTokenPredictorLayer,
    SharedHead,
)
from vllm.model_executor.models.utils import make_empty_intermediate_tensors_factory, maybe_prefix

from axk1.checkpoint.names import is_ignored
from axk1.integrations.vllm.model import check_config, finish_loading, keep_kv_b_full, use_native_rope
from axk1.integrations.vllm.weights import Weights, layers_from, per_expert, with_defaults, with_full_kv_b


class AXK1MTPBlock(AXK1DecoderLayer):
    """The decoder layer of an MTP module, which has experts whatever its index."""

    def _is_layer_sparse(self) -> bool:
        return True


class AXK1PredictorLayer(DeepSeekMultiTokenPredictorLayer):
    """One MTP module."""

    def __init__(self, vllm_config: VllmConfig, config: Any, prefix: str) -> None:
        nn.Module.__init__(self)  # the parent's would build DeepSeek's decoder layer
        size, eps, quantized = config.hidden_size, config.rms_norm_eps, vllm_config.quant_config
        self.config = config
        self.enorm = RMSNorm(size, eps=eps)
        self.hnorm = RMSNorm(size, eps=eps)
        self.eh_proj = ReplicatedLinear(
            2 * size, size, bias=False, quant_config=quantized, prefix=f"{prefix}.eh_proj", return_bias=False
        )
        self.shared_head = SharedHead(config, prefix, quantized, defer_lm_head=True)  # vLLM puts the trunk's there
        self.mtp_block = AXK1MTPBlock(vllm_config, prefix, config)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        previous_hidden_states: torch.Tensor,
        inputs_embeds: torch.Tensor | None = None,
        spec_step_index: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings and post-norm states ``[tokens, hidden]`` to the state before and after ``shared_head.norm``."""
        pair = torch.cat([self.enorm(inputs_embeds), self.hnorm(previous_hidden_states)], dim=-1)
        hidden_states, residual = self.mtp_block(positions, self.eh_proj(pair), None)
        hidden_states = hidden_states + residual
        return hidden_states, self.shared_head(hidden_states)


class AXK1Predictor(DeepSeekMultiTokenPredictor):
    """All MTP modules, named by their index in the checkpoint."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        nn.Module.__init__(self)
        config = vllm_config.speculative_config.draft_model_config.hf_config
        self.mtp_start_layer_idx = config.num_hidden_layers
        self.num_mtp_layers = config.num_nextn_predict_layers
        first = config.num_hidden_layers
        self.layers = nn.ModuleDict(
            {
                str(index): AXK1PredictorLayer(vllm_config, config, f"{prefix}.layers.{index}")
                for index in range(first, first + self.num_mtp_layers)
            }
        )
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, prefix=maybe_prefix(prefix, "embed_tokens")
        )
        self.logits_processor = LogitsProcessor(config.vocab_size)


@support_torch_compile
class AXK1MTP(DeepSeekMTP):
    """The draft model of ``{"method": "mtp"}``; architecture ``AXK1MTPModel``.

    Raises:
        ValueError: a configuration whose model vLLM would compute wrongly.
    """

    packed_modules_mapping = {
        "gate_up_proj": ["gate_proj", "up_proj"],
        "fused_qkv_a_proj": ["q_a_proj", "kv_a_proj_with_mqa"],
    }

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        nn.Module.__init__(self)
        self.config = vllm_config.speculative_config.draft_model_config.hf_config
        check_config(self.config, vllm_config.model_config.max_model_len)
        keep_kv_b_full(vllm_config)
        self.quant_config = vllm_config.quant_config
        self.model = AXK1Predictor(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.set_moe_parameters()
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states", "residual"], self.config.hidden_size
        )
        use_native_rope(self)

    def set_moe_parameters(self) -> None:
        """Tells vLLM's expert balancing where the experts are."""
        blocks: list[Any] = [layer.mtp_block for layer in self.model.layers.values()]
        self.num_moe_layers = len(blocks)
        self.num_expert_groups = self.config.n_group
        self.moe_mlp_layers = [block.mlp for block in blocks]
        self.moe_layers = [block.mlp.experts for block in blocks]
        self.extract_moe_parameters(self.moe_mlp_layers[-1])
        self.is_fused_shared_expert_enabled = blocks[-1].mlp.is_fused_shared_expert_enabled

    def load_weights(self, weights: Weights) -> set[str]:
        """Loads the MTP layers out of ``(name, tensor)`` pairs in any layout; returns the parameters that were set."""
        kept = ((name, tensor) for name, tensor in weights if not is_ignored(name))
        layers = with_full_kv_b(layers_from(kept, self.config.num_hidden_layers), self.config)
        mtp = per_expert(layers, self.config)
        parameters = {name.replace(".mtp_block", ""): value for name, value in self.named_parameters()}
        return super().load_weights(with_defaults(mtp, parameters, self.config.is_moe_layer))

    def process_weights_after_loading(self) -> None:
        """vLLM's last step of loading."""
        finish_loading(self, super())
