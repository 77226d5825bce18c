"""A.X K1 and its MTP draft as subclasses of SGLang's DeepSeek classes: one more norm, declared as an output transform.

SGLang's stage boundary runs a transform on the FFN's **complete** output: behind the all-reduce over the experts' and
the shared expert's parts, before the sum goes into the residual. It also keeps the all-reduce from being put off to
the next layer, where it would be fused with that layer's norm.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from sglang.srt.layers.layer_boundary.output import OutputTransform
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.models import deepseek_nextn, deepseek_v2
from sglang.srt.models.utils import WeightsMapper
from torch import nn

from axk1.integrations.sglang import DRAFT, TARGET
from axk1.integrations.sglang.weights import checked, without_dense_norms

_BUILDING = threading.RLock()


class AXK1DecoderLayer(deepseek_v2.DeepseekV2DecoderLayer):
    """DeepSeek-V2's layer with ``post_mlp_layernorm`` behind the MoE block; dense layers have none."""

    def __init__(self, config: Any, layer_id: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, layer_id, *args, build_stages=False, **kwargs)
        self.post_mlp_layernorm: nn.Module | None = None
        if self.is_layer_sparse:
            self.post_mlp_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            # SGLang leaves the bias uninitialised; a checkpoint without one means zero
            nn.init.zeros_(self.mlp.gate.e_score_correction_bias)
        self.attn_boundary, self.ffn_boundary = self._build_stages(
            input_layernorm=self.input_layernorm,
            post_attention_layernorm=self.post_attention_layernorm,
            qkv_latent_func=self.self_attn.prepare_qkv_latent,
            post_mlp_layernorm=self.post_mlp_layernorm,
        )

    @classmethod
    def stage_facts(
        cls, config: Any, layer_id: int, *, is_nextn: bool = False, post_mlp_layernorm: nn.Module | None = None
    ) -> Any:
        """What SGLang binds to the layer's two stages; asked for without modules, too, to plan its neighbours."""
        sparse = cls._is_layer_sparse(config, layer_id, is_nextn=is_nextn)
        output = OutputTransform(post_mlp_layernorm) if sparse else None
        return super().stage_facts(config, layer_id, is_nextn=is_nextn, output=output)


@contextmanager
def layers_of_ours(module: ModuleType) -> Iterator[None]:
    """Inside, SGLang's ``module`` builds our decoder layers: its constructors name their layer class directly."""
    with _BUILDING:
        theirs = module.DeepseekV2DecoderLayer
        setattr(module, theirs.__name__, AXK1DecoderLayer)
        try:
            yield
        finally:
            setattr(module, theirs.__name__, theirs)


class AXK1ForCausalLM(deepseek_v2.DeepseekV2ForCausalLM):
    """The model. Reads the released layout (fused experts) and the per-expert layout, with and without router bias."""

    fused_shared_experts_architecture = TARGET

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        with layers_of_ours(deepseek_v2):
            super().__init__(config, quant_config, prefix)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], is_nextn: bool = False) -> None:
        """Loads ``(name, tensor)`` pairs of a checkpoint.

        Raises:
            ValueError: a tensor is missing that nothing would have filled (see ``weights.checked``).
        """
        weights = without_dense_norms(self.config, weights)
        super().load_weights(checked(self, weights, is_draft=False), is_nextn)


class AXK1ForCausalLMNextN(deepseek_nextn.DeepseekV3ForCausalLMNextN):
    """The MTP module as a draft; it sees the trunk's state after the final norm, embedding and head are the trunk's."""

    fused_shared_experts_architecture = DRAFT

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        with layers_of_ours(deepseek_nextn):
            super().__init__(config, quant_config, prefix)

    @classmethod
    def get_hf_to_sglang_mapper(cls, config: Any) -> WeightsMapper:
        """Where the module's tensors go; DeepSeek's own class takes 61 layers for granted."""
        return WeightsMapper(orig_to_new_substr={f"model.layers.{config.num_hidden_layers}": "model.decoder"})

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Loads the MTP module's tensors out of the whole checkpoint's ``(name, tensor)`` pairs.

        Raises:
            ValueError: a tensor of the module is missing.
        """
        super().load_weights(checked(self, weights, is_draft=True))


EntryClass = [AXK1ForCausalLM, AXK1ForCausalLMNextN]
