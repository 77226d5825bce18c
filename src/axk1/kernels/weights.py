"""Finds a model's weights for the compiled steps, in modules as this package builds them and in no others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from axk1.config import AXK1Config
from axk1.kernels.conditions import is_hooked
from axk1.kernels.draft_head import draft_head
from axk1.kernels.lossless import PackedExperts, PackedLinear
from axk1.kernels.native import Layers
from axk1.kernels.streamed import StreamedExperts
from axk1.modeling.moe import AXK1MLP, AXK1Experts, AXK1MoE, AXK1Router
from axk1.modeling.norm import AXK1RMSNorm
from axk1.quantized.modules import QuantizedExperts, QuantizedLinear

if TYPE_CHECKING:
    from axk1.modeling.causal_lm import AXK1ForCausalLM
    from axk1.modeling.layer import AXK1DecoderLayer
    from axk1.modeling.mtp import AXK1MTPLayer
    from axk1.modeling.trunk import AXK1Model

FORMATS = (torch.float32, torch.bfloat16)
LATENT_EPS = 1e-6
"""Of the norms of latents, whatever the configuration says of the others."""


class Weight(NamedTuple):
    """A tensor that the kernels read, and what belongs beside it: scales, or the other part of a packed one."""

    weight: Tensor
    side: Tensor | None = None


class Foreign(Exception):
    """A module that kernels do not stand in for: adapted, hooked, offloaded, of another class or setting."""


def read_layers(
    model: AXK1Model, layers: Sequence[AXK1DecoderLayer], norm: nn.Module, dtype: torch.dtype
) -> Layers | None:
    """``layers`` and ``norm`` for states of ``dtype``; None where a part of them is not ours, or not in memory.

    Norms and the router's bias are fp32 copies, all else is the layers' own memory.
    """
    try:
        return _finished(_read_layers(model, layers, norm, dtype))
    except Foreign:
        return None


def read_model(model: AXK1ForCausalLM, module: AXK1MTPLayer | None = None) -> Layers | None:
    """The same of all layers with embedding and head; or of an MTP module, with what it combines its inputs by."""
    trunk, embedding, head = model.model, model.model.embed_tokens, model.lm_head
    layers = [module] if module else trunk.decoder_layers
    if type(embedding) is not nn.Embedding or type(head) is not nn.Linear or head.bias is not None:
        return None
    if head.weight.dtype != embedding.weight.dtype:
        return None
    chosen = draft_head(model) if module else None
    try:
        norm = module.shared_head.norm if module else trunk.norm
        read = _read_layers(trunk, cast(Sequence, layers), norm, embedding.weight.dtype)
        _set(read, -1, "embed_tokens", Weight(embedding.weight))
        _set(read, -1, "lm_head", Weight(chosen.weight if chosen else head.weight))
        if chosen:
            read.set_head_ids(chosen.ids)
        if module:
            eps = model.config.rms_norm_eps
            _set(read, -1, "hnorm", _norm(module.hnorm, eps))
            _set(read, -1, "enorm", _norm(module.enorm, eps))
            _set(read, -1, "eh_proj", _linear(module.eh_proj))
        return _finished(read)
    except Foreign:
        return None


def _finished(layers: Layers) -> Layers:
    layers.finish()
    return layers


def _read_layers(model: AXK1Model, layers: Sequence[AXK1DecoderLayer], norm: nn.Module, dtype: torch.dtype) -> Layers:
    config = layers[0].self_attn.config
    if config.hidden_act != "silu" or is_hooked(norm) or dtype not in FORMATS:
        raise Foreign
    scaling = layers[0].self_attn.scaling
    sizes = _sizes(config, len(layers), dtype == torch.float32)
    turned = model.rotary_emb.attention_scaling
    routed = config.routed_scaling_factor
    read = Layers(**sizes, softmax_scale=scaling, eps=config.rms_norm_eps, routed_scaling=routed, angle_factor=turned)
    for number, layer in enumerate(layers):
        if any(is_hooked(module) for module in layer.modules()):
            raise Foreign
        for name, weight in (*_attention(layer, config), *_mlp(layer, config)):
            if weight.side is not None and weight.side.dtype == torch.uint8 and dtype != torch.bfloat16:
                raise Foreign  # packed without loss: products of bfloat16 only
            _set(read, number, name, weight)
        _set_store(read, number, layer.mlp)
    _set(read, -1, "norm", _norm(norm, config.rms_norm_eps))
    return read


def _set(layers: Layers, number: int, name: str, weight: Weight) -> None:
    for tensor in weight:
        if tensor is not None and not (tensor.is_cpu and tensor.is_contiguous()):
            raise Foreign
    layers.set(number, name, *weight)


def _set_store(layers: Layers, number: int, mlp: nn.Module) -> None:
    experts = getattr(mlp, "experts", None)
    if type(experts) is not StreamedExperts:
        return
    if experts.stream is None:
        raise ValueError("The model was loaded without its routed experts: call axk1.experts.stream_experts.")
    layers.set_store(number, experts.stream, experts.layer)


def _sizes(config: AXK1Config, layers: int, exact: bool) -> dict[str, int]:
    sizes = {
        "layers": layers,
        "hidden": config.hidden_size,
        "vocabulary": config.vocab_size,
        "heads": config.num_attention_heads,
        "nope": config.qk_nope_head_dim,
        "rope": config.qk_rope_head_dim,
        "value": config.v_head_dim,
        "query_rank": config.q_lora_rank,
        "latent": config.kv_lora_rank,
        "interleave": config.rope_interleave,
        "dense_width": config.intermediate_size,
        "expert_width": config.moe_intermediate_size,
        "shared_width": config.moe_intermediate_size * (config.n_shared_experts or 0),
        "experts": config.n_routed_experts,
        "groups": config.n_group,
        "kept_groups": config.topk_group,
        "group_best": 2 if config.topk_method == "noaux_tc" else 1,
        "chosen": config.num_experts_per_tok,
        "sigmoid": config.scoring_func == "sigmoid",
        "normalise": config.norm_topk_prob,
        "grouped": config.topk_method != "greedy",
        "exact": exact,
    }
    return {name: int(size) for name, size in sizes.items()}


def _attention(layer: AXK1DecoderLayer, config: AXK1Config) -> Iterator[tuple[str, Weight]]:
    attention = layer.self_attn
    yield "input_layernorm", _norm(layer.input_layernorm, config.rms_norm_eps)
    for name in ("q_a_layernorm", "kv_a_layernorm"):
        yield f"self_attn.{name}", _norm(getattr(attention, name), LATENT_EPS)
    for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"):
        yield f"self_attn.{name}", _linear(getattr(attention, name))
    kv_b = attention.kv_b_proj
    if type(kv_b) is QuantizedLinear and kv_b.scheme.packed:
        raise Foreign  # it is read in columns too
    yield "post_attention_layernorm", _norm(layer.post_attention_layernorm, config.rms_norm_eps)


def _mlp(layer: AXK1DecoderLayer, config: AXK1Config) -> Iterator[tuple[str, Weight]]:
    if type(layer.mlp) is AXK1MLP:
        yield from _swiglu("mlp", layer.mlp)
        return
    moe = cast(AXK1MoE, layer.mlp)
    if type(moe.gate) is not AXK1Router:
        raise Foreign
    yield "post_mlp_layernorm", _norm(layer.post_mlp_layernorm, config.rms_norm_eps)
    yield "mlp.gate", Weight(moe.gate.weight)
    yield "mlp.gate.e_score_correction_bias", Weight(moe.gate.e_score_correction_bias.float())
    if type(moe.experts) is not StreamedExperts:
        for name, weight in zip(("gate_up_proj", "down_proj"), _experts(moe.experts), strict=True):
            yield f"mlp.experts.{name}", weight
    if moe.shared_experts is not None:
        yield from _swiglu("mlp.shared_experts", moe.shared_experts)


def _swiglu(name: str, mlp: AXK1MLP) -> Iterator[tuple[str, Weight]]:
    for part in ("gate_proj", "up_proj", "down_proj"):
        yield f"{name}.{part}", _linear(getattr(mlp, part))


def _experts(experts: nn.Module) -> tuple[Weight, Weight]:
    if type(experts) is QuantizedExperts:
        gate_up = _quantized(experts.gate_up_values, experts.gate_up_proj_scale)
        return gate_up, _quantized(experts.down_values, experts.down_proj_scale)
    if type(experts) is PackedExperts:
        return Weight(*experts.gate_up), Weight(*experts.down)
    if type(experts) is not AXK1Experts:
        raise Foreign
    return _floating(cast(Tensor, experts.gate_up_proj)), _floating(cast(Tensor, experts.down_proj))


def _linear(module: nn.Module) -> Weight:
    if getattr(module, "bias", None) is not None:
        raise Foreign
    if type(module) is QuantizedLinear:
        return _quantized(module.values, module.weight_scale)
    if type(module) is PackedLinear:
        return Weight(module.values, module.side)
    if type(module) is not nn.Linear:
        raise Foreign
    return _floating(module.weight)


def _quantized(values: Tensor, scale: Tensor) -> Weight:
    """int8 with a scale per row, int4 and int3 per group; fp8 is left to PyTorch."""
    group = 8 * values.shape[-1] // scale.shape[-1]  # of int4
    if values.dtype in (torch.int8, torch.uint8) or (values.dtype == torch.int32 and group % 32 == 0):
        return Weight(values, scale)
    raise Foreign


def _norm(module: nn.Module, eps: float) -> Weight:
    """Of an RMSNorm that is exactly ours: not of an adapter around it, another class or with another eps."""
    if type(module) is not AXK1RMSNorm or module.eps != eps:
        raise Foreign
    return Weight(module.weight.detach().float())


def _floating(weight: Tensor) -> Weight:
    if weight.dtype not in FORMATS:
        raise Foreign
    return Weight(weight)
