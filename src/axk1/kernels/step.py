"""Runs decoder layers on the compiled operators: one call for all of them, on their own weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from axk1.config import AXK1Config
from axk1.kernels.build import available
from axk1.modeling.conditions import is_hooked
from axk1.modeling.moe import AXK1MLP, AXK1Experts, AXK1MoE, AXK1Router
from axk1.quantized.modules import QuantizedExperts, QuantizedLinear

if TYPE_CHECKING:
    from axk1.modeling.attention import AXK1Attention
    from axk1.modeling.cache import LatentCache
    from axk1.modeling.layer import AXK1DecoderLayer
    from axk1.modeling.model import AXK1Model
    from axk1.modeling.mtp import AXK1MTPLayer
    from axk1.modeling.norm import AXK1RMSNorm
    from axk1.modeling.rope import AXK1RotaryEmbedding

MOST_ROWS = 32
"""Tokens a step, over all sequences; above this PyTorch's matrix products are the faster ones."""

FORMATS = (torch.float32, torch.bfloat16)


class Weight(NamedTuple):
    """A tensor the operators read, and its scales if it is quantised."""

    weight: Tensor
    scale: Tensor | None = None


class Weights(NamedTuple):
    """The operator's arguments (``cpu/library.cpp``) for some layers and the norm behind them.

    Norms and the router's bias are fp32 copies, all else is the layers' own memory; scales are those of quantised ones.
    """

    tensors: list[Tensor]
    scales: list[Tensor | None]
    parts: list[int]
    """For each layer, how many of its tensors belong to the MLP block; eight before them to the attention block."""
    shape: tuple[int, ...]
    """Heads, widths of a query's parts, and whether rotary pairs are interleaved."""
    routing: tuple[int, ...]
    numbers: tuple[float, ...]
    """Softmax scale, epsilon of the norms, factors of the routed experts and of rotary angles' cos and sin."""


class Combination(NamedTuple):
    """The same of an MTP module's ``combine``."""

    hnorm: Tensor
    enorm: Tensor
    eh_proj: Tensor
    scale: Tensor | None
    eps: float


_SEEN: WeakKeyDictionary[LatentCache, dict[nn.Module, Any]] = WeakKeyDictionary()
Read = TypeVar("Read", bound=tuple)


def run_layers(
    model: AXK1Model,
    layers: Sequence[AXK1DecoderLayer],
    norm: AXK1RMSNorm,
    hidden_states: Tensor,
    position_ids: Tensor,
    attention_mask: Tensor | None,
    cache: LatentCache,
    embeddings: Tensor | None = None,
) -> Tensor | None:
    """Runs ``layers`` and ``norm`` over ``[B, T, D]`` new tokens behind ``cache``, which grows by T; None: it cannot.

    Args:
        position_ids: ``[B or 1, T]``.
        attention_mask: ``[B, S]`` over cached and new tokens, 0 where nothing is to be attended; None: all.
        embeddings: ``[B, T, D]``, combined with the states first; of an MTP module, which is then the one layer.
    """
    batch, tokens, _ = hidden_states.shape
    if not _takes(hidden_states):
        return None
    weights = _looked_up(cache, layers[0], lambda: _read(model, layers, norm))
    if weights is None:
        return None
    if embeddings is not None:
        module = cast("AXK1MTPLayer", layers[0])
        combination = _looked_up(cache, module.eh_proj, lambda: _read_combination(module))
        if combination is None:
            return None
        exact = hidden_states.dtype == torch.float32
        hidden_states = torch.ops.axk1.combine(hidden_states, embeddings, *combination, exact)
    keep = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool().contiguous()
    held = [cache.layers[layer.self_attn.layer_idx] for layer in layers]
    for one in held:
        one.append_space(batch, tokens, hidden_states.dtype, hidden_states.device)
    buffers, cached = [one.buffer for one in held], held[0].length
    frequencies = _frequencies(model.rotary_emb, position_ids)
    return torch.ops.axk1.layers_step(hidden_states, *weights, buffers, cached, position_ids, frequencies, keep)


def _takes(states: Tensor) -> bool:
    """Whether ``states`` ``[B, T, D]`` are few, of a format that is read, and there are operators to run them."""
    batch, tokens, _ = states.shape
    few = batch * tokens <= MOST_ROWS and states.dtype in FORMATS
    return few and available() and not torch.compiler.is_compiling()


_FP32 = torch.empty(0)  # the rotary embedding answers in the dtype of what it is given


def _frequencies(rotary: AXK1RotaryEmbedding, position_ids: Tensor) -> Tensor:
    """``[R / 2]`` fp32 for these positions."""
    if rotary.rope_type in ("dynamic", "longrope"):  # they depend on the length, and change when it is asked for angles
        rotary(_FP32, position_ids)
    return rotary.inv_freq.float()


def linear(x: Tensor, weight: Tensor) -> Tensor | None:
    """``[..., I]`` times ``[O, I]`` for few rows on the CPU, summed in fp32, to x's dtype; or None, as above."""
    usable = x.numel() <= MOST_ROWS * x.shape[-1] and x.dtype == weight.dtype and weight.dtype in FORMATS
    if not usable or not (weight.is_contiguous() and weight.is_cpu and available()):
        return None
    return torch.ops.axk1.linear(x.contiguous(), weight, None, x.dtype == torch.float32)


def _looked_up(cache: LatentCache, owner: nn.Module, read: Callable[[], Read | None]) -> Read | None:
    """What ``read`` makes of the weights of ``owner``; once for a cache, so that weights that are replaced between
    generations are seen."""
    seen = _SEEN.setdefault(cache, {})
    if owner not in seen:
        seen[owner] = read()
    return seen[owner]


def _read(model: AXK1Model, layers: Sequence[AXK1DecoderLayer], norm: AXK1RMSNorm) -> Weights | None:
    """The layers' tensors, or None if a part is not as this package builds it: adapted, hooked, offloaded."""
    config = layers[0].self_attn.config
    if config.hidden_act != "silu" or is_hooked(norm):
        return None
    read = Weights([], [], [], *_settings(config, layers[0].self_attn.scaling, model.rotary_emb.attention_scaling))
    for layer in layers:
        if any(is_hooked(module) for module in layer.modules()):
            return None
        attention = [_norm(layer.input_layernorm), *_attention(layer.self_attn)]
        mlp = [_norm(layer.post_attention_layernorm), *_mlp(layer)]
        if None in attention or None in mlp:
            return None
        parts = cast(list[Weight], attention + mlp)
        if not _readable(tensor for part in parts for tensor in part):
            return None
        read.tensors.extend(part.weight for part in parts)
        read.scales.extend(part.scale for part in parts)
        read.parts.append(len(mlp))
    read.tensors.append(_norm(norm).weight)
    read.scales.append(None)
    return read


def _read_combination(layer: AXK1MTPLayer) -> Combination | None:
    hnorm, enorm, eh_proj = _norm(layer.hnorm).weight, _norm(layer.enorm).weight, _linear(layer.eh_proj)
    if eh_proj is None or not _readable([hnorm, enorm, *eh_proj]):
        return None
    return Combination(hnorm, enorm, eh_proj.weight, eh_proj.scale, layer.self_attn.config.rms_norm_eps)


def _readable(tensors: Iterable[Tensor | None]) -> bool:
    return all(tensor is None or (tensor.is_cpu and tensor.is_contiguous()) for tensor in tensors)


def _settings(
    config: AXK1Config, scaling: float, turned: float
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    shape = (config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim, config.rope_interleave)
    groups = (config.n_group, config.topk_group, 2 if config.topk_method == "noaux_tc" else 1)
    choice = (config.scoring_func == "sigmoid", config.norm_topk_prob, config.topk_method != "greedy")
    numbers = (scaling, config.rms_norm_eps, config.routed_scaling_factor, turned)
    return shape, (*groups, config.num_experts_per_tok, *choice), numbers


def _attention(attention: AXK1Attention) -> list[Weight | None]:
    kv_b = _linear(attention.kv_b_proj)
    if kv_b is not None and kv_b.weight.dtype == torch.uint8:  # read in columns too, which int4 cannot be
        return [None]
    return [
        _linear(attention.q_a_proj),
        _norm(attention.q_a_layernorm),
        _linear(attention.q_b_proj),
        _linear(attention.kv_a_proj_with_mqa),
        _norm(attention.kv_a_layernorm),
        kv_b,
        _linear(attention.o_proj),
    ]


def _mlp(layer: AXK1DecoderLayer) -> list[Weight | None]:
    if type(layer.mlp) is AXK1MLP:
        return _swiglu(layer.mlp)
    moe = cast(AXK1MoE, layer.mlp)
    shared = [] if moe.shared_experts is None else _swiglu(moe.shared_experts)
    if type(moe.gate) is not AXK1Router:
        return [None]
    router = [Weight(moe.gate.weight), Weight(moe.gate.e_score_correction_bias.float())]
    return [_norm(layer.post_mlp_layernorm), *router, *_experts(moe.experts), *shared]


def _swiglu(mlp: AXK1MLP) -> list[Weight | None]:
    return [_linear(mlp.gate_proj), _linear(mlp.up_proj), _linear(mlp.down_proj)]


def _experts(experts: nn.Module) -> list[Weight | None]:
    if type(experts) is QuantizedExperts:
        gate_up = _quantized(experts.gate_up_values, experts.gate_up_proj_scale)
        return [gate_up, _quantized(experts.down_values, experts.down_proj_scale)]
    if type(experts) is not AXK1Experts:
        return [None]
    return [_floating(cast(Tensor, experts.gate_up_proj)), _floating(cast(Tensor, experts.down_proj))]


def _linear(module: nn.Module) -> Weight | None:
    if getattr(module, "bias", None) is not None:
        return None
    if type(module) is QuantizedLinear:
        return _quantized(module.values, module.weight_scale)
    return _floating(module.weight) if type(module) is nn.Linear else None


def _quantized(values: Tensor, scale: Tensor) -> Weight | None:
    """int8 a row and int4 a group; fp8 is left to PyTorch."""
    group = 2 * values.shape[-1] // scale.shape[-1]
    readable = values.dtype == torch.int8 or (values.dtype == torch.uint8 and group % 32 == 0)
    return Weight(values, scale) if readable else None


def _norm(module: nn.Module) -> Weight:
    return Weight(cast(Tensor, module.weight).detach().float())


def _floating(weight: Tensor) -> Weight | None:
    return Weight(weight) if weight.dtype in FORMATS else None
