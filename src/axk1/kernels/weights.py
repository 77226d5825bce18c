"""Finds a model's weights for the compiled steps, in modules as this package builds them and in no others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from axk1.config import AXK1Config
from axk1.kernels.draft_head import draft_head
from axk1.modeling.conditions import is_hooked
from axk1.modeling.moe import AXK1MLP, AXK1Experts, AXK1MoE, AXK1Router
from axk1.modeling.norm import AXK1RMSNorm
from axk1.quantized.lossless import PackedExperts, PackedLinear
from axk1.quantized.modules import QuantizedExperts, QuantizedLinear

if TYPE_CHECKING:
    from axk1.modeling.attention import AXK1Attention
    from axk1.modeling.causal_lm import AXK1ForCausalLM
    from axk1.modeling.layer import AXK1DecoderLayer
    from axk1.modeling.mtp import AXK1MTPLayer
    from axk1.modeling.trunk import AXK1Model

FORMATS = (torch.float32, torch.bfloat16)
LATENT_EPS = 1e-6
"""Of the norms of latents, whatever the configuration says of the others."""
STEP_TOKENS = 32
"""More of one sequence may be read as a prompt, whose rounding depends on their number."""


class Weight(NamedTuple):
    """A tensor the operators read, and its scales if it is quantised."""

    weight: Tensor
    scale: Tensor | None = None


def read_layers(
    model: AXK1Model, layers: Sequence[AXK1DecoderLayer], norm: AXK1RMSNorm, dtype: torch.dtype
) -> Any | None:
    """``torch.classes.axk1.Layers`` (``cpu/library.cpp``) of ``layers`` and ``norm``, for states of ``dtype``; None
    where a part is adapted, hooked or offloaded.

    Norms and the router's bias are fp32 copies, all else is the layers' own memory.
    """
    config = layers[0].self_attn.config
    if config.hidden_act != "silu" or is_hooked(norm) or dtype not in FORMATS:
        return None
    found: list[Weight] = []
    parts: list[int] = []  # for each layer, how many of its weights belong to the MLP block
    for layer in layers:
        if any(is_hooked(module) for module in layer.modules()):
            return None
        attention = [_norm(layer.input_layernorm, config.rms_norm_eps), *_attention(layer.self_attn)]
        mlp = [_norm(layer.post_attention_layernorm, config.rms_norm_eps), *_mlp(layer, config.rms_norm_eps)]
        if None in attention or None in mlp:
            return None
        found += cast(list[Weight], attention + mlp)
        parts.append(len(mlp))
    last = _norm(norm, config.rms_norm_eps)
    if last is None:
        return None
    found.append(last)
    if not _readable(tensor for weight in found for tensor in weight):
        return None
    packed = any(weight.scale is not None and weight.scale.dtype == torch.uint8 for weight in found)
    if packed and (dtype != torch.bfloat16 or not torch.ops.axk1.reads_lossless()):
        return None
    # detached: a parameter whose data is replaced later leaves the memory that these read alone
    tensors, scales = ([None if one is None else one.detach() for one in column] for column in zip(*found, strict=True))
    settings = _settings(config, layers[0].self_attn.scaling, model.rotary_emb.attention_scaling)
    return torch.classes.axk1.Layers(tensors, scales, parts, *settings, dtype == torch.float32)


def read_model(model: AXK1ForCausalLM, module: AXK1MTPLayer | None = None) -> Any | None:
    """The same of all layers with embedding and head; or of an MTP module, with what it combines its inputs by."""
    trunk, embedding, head = model.model, model.model.embed_tokens, model.lm_head
    layers = [module] if module else trunk.decoder_layers
    chosen = draft_head(model) if module else None
    ends, ids = [embedding.weight, chosen.weight if chosen else head.weight], chosen.ids if chosen else None
    plain = type(embedding) is nn.Embedding and type(head) is nn.Linear and head.bias is None
    if not plain or not _readable(ends) or any(end.dtype != embedding.weight.dtype for end in ends):
        return None
    combination = _combination(module) if module else ([], Weight(ends[0]))
    norm = module.shared_head.norm if module else trunk.norm
    read = read_layers(trunk, cast(Any, layers), norm, embedding.weight.dtype) if combination else None
    if read is None or combination is None:
        return None
    norms, eh_proj = combination
    read.surround(
        *(end.detach() for end in ends), ids, norms, eh_proj.weight.detach() if module else None, eh_proj.scale
    )
    return read


def _combination(module: AXK1MTPLayer) -> tuple[list[Tensor], Weight] | None:
    """The norms of states and embeddings, and the matrix over both."""
    found, eh_proj = [_norm(norm, module.hnorm.eps) for norm in (module.hnorm, module.enorm)], _linear(module.eh_proj)
    norms = [norm.weight for norm in found if norm is not None]
    readable = eh_proj is not None and len(norms) == 2 and _readable([*norms, *eh_proj])
    return (norms, eh_proj) if eh_proj is not None and readable else None


def _readable(tensors: Iterable[Tensor | None]) -> bool:
    return all(tensor is None or (tensor.is_cpu and tensor.is_contiguous()) for tensor in tensors)


def _settings(config: AXK1Config, scaling: float, turned: float) -> tuple[list[int], list[int], list[float]]:
    heads = [config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim]
    shape = [*heads, config.rope_interleave, STEP_TOKENS]
    groups = [config.n_group, config.topk_group, 2 if config.topk_method == "noaux_tc" else 1]
    choice = [config.scoring_func == "sigmoid", config.norm_topk_prob, config.topk_method != "greedy"]
    routing = [*groups, config.num_experts_per_tok, *choice]
    numbers = [scaling, config.rms_norm_eps, config.routed_scaling_factor, turned]
    return [int(value) for value in shape], [int(value) for value in routing], [float(value) for value in numbers]


def _attention(attention: AXK1Attention) -> list[Weight | None]:
    kv_b = _linear(attention.kv_b_proj)
    if type(attention.kv_b_proj) is QuantizedLinear and attention.kv_b_proj.scheme.kind == "int4":
        return [None]  # it is read in columns too
    return [
        _linear(attention.q_a_proj),
        _norm(attention.q_a_layernorm, LATENT_EPS),
        _linear(attention.q_b_proj),
        _linear(attention.kv_a_proj_with_mqa),
        _norm(attention.kv_a_layernorm, LATENT_EPS),
        kv_b,
        _linear(attention.o_proj),
    ]


def _mlp(layer: AXK1DecoderLayer, eps: float) -> list[Weight | None]:
    if type(layer.mlp) is AXK1MLP:
        return _swiglu(layer.mlp)
    moe = cast(AXK1MoE, layer.mlp)
    shared = [] if moe.shared_experts is None else _swiglu(moe.shared_experts)
    if type(moe.gate) is not AXK1Router:
        return [None]
    router = [Weight(moe.gate.weight), Weight(moe.gate.e_score_correction_bias.float())]
    return [_norm(layer.post_mlp_layernorm, eps), *router, *_experts(moe.experts), *shared]


def _swiglu(mlp: AXK1MLP) -> list[Weight | None]:
    return [_linear(mlp.gate_proj), _linear(mlp.up_proj), _linear(mlp.down_proj)]


def _experts(experts: nn.Module) -> list[Weight | None]:
    if type(experts) is QuantizedExperts:
        gate_up = _quantized(experts.gate_up_values, experts.gate_up_proj_scale)
        return [gate_up, _quantized(experts.down_values, experts.down_proj_scale)]
    if type(experts) is PackedExperts:
        return [Weight(*experts.gate_up), Weight(*experts.down)]
    if type(experts) is not AXK1Experts:
        return [None]
    return [_floating(cast(Tensor, experts.gate_up_proj)), _floating(cast(Tensor, experts.down_proj))]


def _linear(module: nn.Module) -> Weight | None:
    if getattr(module, "bias", None) is not None:
        return None
    if type(module) is QuantizedLinear:
        return _quantized(module.values, module.weight_scale)
    if type(module) is PackedLinear:
        return Weight(module.values, module.side)
    return _floating(module.weight) if type(module) is nn.Linear else None


def _quantized(values: Tensor, scale: Tensor) -> Weight | None:
    """int8 a row and int4 a group; fp8 is left to PyTorch."""
    group = 2 * values.shape[-1] // scale.shape[-1]
    readable = values.dtype == torch.int8 or (values.dtype == torch.uint8 and group % 32 == 0)
    return Weight(values, scale) if readable else None


def _norm(module: nn.Module, eps: float) -> Weight | None:
    """None where the module is no RMSNorm of ours (an adapter, another class) or has another eps."""
    if type(module) is not AXK1RMSNorm or module.eps != eps:
        return None
    return Weight(module.weight.detach().float())


def _floating(weight: Tensor) -> Weight | None:
    return Weight(weight) if weight.dtype in FORMATS else None
