"""A.X K1 (SK Telecom): DeepSeek-V3's attention and experts, and one more norm after each MoE block.

This file is written as one of mlx-lm's own (``mlx_lm/models/axk1.py``), whose neighbours it imports.
"""

# pyright: reportMissingImports=false

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from . import deepseek_v3
from .pipeline import PipelineMixin
from .rope_utils import apply_yarn_mscale, initialize_rope

TOKENIZER_DEFAULTS = {"tool_parser_type": "json_tools"}  # hermes style: <tool_call>{json}</tool_call>

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32768,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.0,
}


@dataclass
class ModelArgs(deepseek_v3.ModelArgs):
    model_type: str = "axk1"
    vocab_size: int = 163840
    hidden_size: int = 7168
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 61
    num_attention_heads: int = 64
    n_shared_experts: int | None = 1
    n_routed_experts: int = 192
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    routed_scaling_factor: float = 2.5
    first_k_dense_replace: int | None = 1
    moe_layer_freq: int | None = 1
    max_position_embeddings: int = 131072
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] = None  # pyright: ignore[reportAssignmentType]: see __post_init__
    rope_parameters: dict | None = None
    rope_interleave: bool = True
    mlp_layer_types: list[str] = None  # pyright: ignore[reportAssignmentType]
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        self._set_rope()
        self.n_shared_experts = self.n_shared_experts or None
        if self.mlp_layer_types is None:
            dense = 1 if self.first_k_dense_replace is None else self.first_k_dense_replace
            every = self.moe_layer_freq or 1
            layers = range(self.num_hidden_layers)
            self.mlp_layer_types = ["sparse" if i >= dense and i % every == 0 else "dense" for i in layers]
        self._refuse_others()

    def _set_rope(self) -> None:
        """One form of the two spellings, with the released YaRN where a configuration says nothing."""
        rope = self.rope_parameters or self.rope_scaling
        if rope is None and self.rope_theta is None and self.max_position_embeddings == 131072:
            rope = YARN
        rope = {key: value for key, value in (rope or {}).items() if value is not None}
        self.rope_theta = rope.get("rope_theta") or self.rope_theta or 10000.0
        rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type", "default")
        self.rope_scaling = rope

    def _refuse_others(self) -> None:
        """Raises ValueError for what a checkpoint of this architecture may ask for and this file does not compute."""
        rope = self.rope_scaling
        supported = {
            "scoring_func": ("sigmoid", "softmax"),
            "topk_method": ("noaux_tc",),
            "hidden_act": ("silu",),
            "tie_word_embeddings": (False,),
        }
        for name, values in supported.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r} is not supported: axk1 in MLX takes {values}.")
        if rope["rope_type"] not in ("default", "linear", "yarn"):
            raise ValueError(f"rope_type={rope['rope_type']!r} is not supported: default, linear and yarn are.")
        if "attention_factor" in rope or rope.get("truncate", True) is not True:
            raise ValueError("YaRN with attention_factor or without truncate is not supported.")
        if self.num_hidden_layers > 61:
            raise ValueError(f"num_hidden_layers={self.num_hidden_layers} is not supported: 61 at most.")


class AXK1Attention(deepseek_v3.DeepseekV3Attention):
    def __init__(self, args: ModelArgs):
        super().__init__(args)
        self.scale = apply_yarn_mscale(self.q_head_dim**-0.5, args.rope_scaling)
        rope = dict(args.rope_scaling)
        if not (rope.get("mscale") and rope.get("mscale_all_dim")):  # each counts only beside the other
            rope |= {"mscale": 1.0, "mscale_all_dim": 0.0}
        self.rope = initialize_rope(
            dims=args.qk_rope_head_dim,
            base=args.rope_theta,
            traditional=args.rope_interleave,
            scaling_config=rope,
            max_position_embeddings=args.max_position_embeddings,
        )

    def __call__(self, x: mx.array, mask: mx.array | None = None, cache: Any | None = None) -> mx.array:
        if hasattr(cache, "bits"):
            raise ValueError("The latents that A.X K1 keeps cannot be quantized: leave out --kv-bits.")
        return super().__call__(x, mask, cache)


@mx.compile
def select_experts(
    logits: mx.array,
    bias: mx.array,
    softmax: bool,
    top_k: int,
    n_group: int,
    topk_group: int,
    normalize: bool,
    scaling: float,
) -> tuple[mx.array, mx.array]:
    """The experts of each token and their weights, both ``(..., top_k)``; ``bias`` takes part in the choice alone."""
    scores = mx.softmax(logits, axis=-1) if softmax else mx.sigmoid(logits)
    choice = scores + bias
    if (dropped := n_group - topk_group) > 0:
        choice = mx.unflatten(choice, axis=-1, shape=(n_group, -1))
        best = mx.topk(choice, 2, axis=-1).sum(axis=-1, keepdims=True)
        worst = mx.argpartition(best, kth=dropped - 1, axis=-2)[..., :dropped, :]
        # not zero: with negative biases an expert of a kept group may be below it
        choice = mx.put_along_axis(choice, mx.stop_gradient(worst), mx.array(-mx.inf), axis=-2)
        choice = mx.flatten(choice, -2, -1)
    indices = mx.stop_gradient(mx.argpartition(-choice, kth=top_k - 1, axis=-1)[..., :top_k])
    weights = mx.take_along_axis(scores, indices, axis=-1)
    if normalize:
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
    return indices, weights * scaling


class AXK1Router(deepseek_v3.MoEGate):
    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        return select_experts(
            x.astype(mx.float32) @ self.weight.astype(mx.float32).T,
            self.e_score_correction_bias,
            self.config.scoring_func == "softmax",
            self.top_k,
            self.n_group,
            self.topk_group,
            self.norm_topk_prob,
            self.routed_scaling_factor,
        )


class AXK1MoE(deepseek_v3.DeepseekV3MoE):
    def __init__(self, args: ModelArgs):
        super().__init__(args)
        self.gate = AXK1Router(args)


class AXK1DecoderLayer(nn.Module):
    def __init__(self, args: ModelArgs, layer_idx: int):
        super().__init__()
        self.is_moe = args.mlp_layer_types[layer_idx] == "sparse"
        self.self_attn = AXK1Attention(args)
        self.mlp = AXK1MoE(args) if self.is_moe else deepseek_v3.DeepseekV3MLP(args)
        self.input_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        if self.is_moe:
            self.post_mlp_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(self, x: mx.array, mask: mx.array | None = None, cache: Any | None = None) -> mx.array:
        h = x + self.self_attn(self.input_layernorm(x), mask, cache)
        r = self.mlp(self.post_attention_layernorm(h))
        return h + (self.post_mlp_layernorm(r) if self.is_moe else r)


class AXK1Model(deepseek_v3.DeepseekV3Model):
    def __init__(self, args: ModelArgs):
        PipelineMixin.__init__(self)  # and not DeepSeek's, which would make its own layers
        self.vocab_size = args.vocab_size
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [AXK1DecoderLayer(args, i) for i in range(args.num_hidden_layers)]
        self.norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)


class Model(deepseek_v3.Model):
    def __init__(self, args: ModelArgs):
        nn.Module.__init__(self)
        self.args = args
        self.model_type = args.model_type
        self.model = AXK1Model(args)
        self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Reads experts that are fused, as released, or one by one; MTP modules and the norm after a dense MLP, which
        is stored but never applied, are left out."""
        layers = len(self.args.mlp_layer_types)
        weights = {k: v for k, v in weights.items() if not _is_unused(k, layers, self.args.mlp_layer_types)}
        for i, kind in enumerate(self.args.mlp_layer_types):
            mlp = f"model.layers.{i}.mlp"
            if (fused := weights.pop(f"{mlp}.experts.gate_up_proj", None)) is not None:
                gate, up = mx.split(fused, 2, axis=1)
                weights[f"{mlp}.switch_mlp.gate_proj.weight"] = mx.contiguous(gate)
                weights[f"{mlp}.switch_mlp.up_proj.weight"] = mx.contiguous(up)
                weights[f"{mlp}.switch_mlp.down_proj.weight"] = weights.pop(f"{mlp}.experts.down_proj")
            if kind == "sparse":  # a router without a bias has a bias of zero
                zero = mx.zeros((self.args.n_routed_experts,))
                weights.setdefault(f"{mlp}.gate.e_score_correction_bias", zero)
        return super().sanitize(weights)


def _is_unused(name: str, layers: int, kinds: list[str]) -> bool:
    parts = name.split(".")
    if parts[:2] != ["model", "layers"]:
        return False
    layer = int(parts[2])
    return layer >= layers or (kinds[layer] == "dense" and parts[3] == "post_mlp_layernorm")
