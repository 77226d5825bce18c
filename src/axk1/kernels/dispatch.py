"""The one place that names the path of a step: the table of thresholds, and what is chosen by it.

``modeling`` knows of no processor and no faster way. :func:`install` puts those of this file where it asks for one: a
whole step, an attention function, the experts' function. Each has the conditions under which it may stand in.

Thresholds were measured, by ``axk1 bench``, on the processors that they name; ``axk1 info --paths`` prints what this
machine takes, and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from axk1.config import AXK1Config
from axk1.kernels import instructions, native
from axk1.kernels.batch import Executor
from axk1.kernels.conditions import is_half_inference_on_cpu, is_hooked, is_inference
from axk1.kernels.experts import one_by_one
from axk1.kernels.prompt_attention import blocked_attention
from axk1.kernels.step import CPUExecutor, run_layers
from axk1.kernels.weights import FORMATS, read_model
from axk1.modeling.attention import STAND_INS, is_standard, products
from axk1.modeling.cache import LatentCache
from axk1.modeling.causal_lm import AXK1ForCausalLM
from axk1.modeling.layer import AXK1DecoderLayer
from axk1.modeling.norm import AXK1RMSNorm
from axk1.modeling.trunk import AXK1Model

STEP_TOKENS = 32
"""Up to as many tokens of a sequence are computed one by one, with sums in one order whatever runs beside them. More
are a prompt where nobody says what they are (``generate`` of transformers). Measured on a Zen 4 (AVX-512, bf16)."""
STEP_ROWS = 128
"""Tokens of a step, over all sequences: more are computed as prompts are. Measured on a Zen 4."""
PROMPT_TOKENS = 4_096
"""Tokens of prompts that are run at once, over all sequences: what bounds the memory for activations."""
ABSORBED_COST = 1.5
"""A multiplication of a step's absorbed attention takes as long as this many of a prompt's expanded one (Zen 4)."""
EXPERTS = "axk1"
"""The name of :func:`run_experts` in transformers' experts interface: the default of our models."""


def install() -> None:
    """Lets models of this process take every way of this file."""
    AXK1Model.whole_step = whole_step  # pyright: ignore[reportAttributeAccessIssue] - its self is named model
    STAND_INS["sdpa"] = attend
    ALL_EXPERTS_FUNCTIONS.register(EXPERTS, run_experts)


def is_prompt(config: AXK1Config, batch: int, tokens: int, cached: int) -> bool:
    """Whether T tokens of each sequence, S cached with these, are read as a prompt where nobody says what they are."""
    if batch * tokens > STEP_ROWS:
        return True
    if tokens <= STEP_TOKENS:
        return False
    expanded, absorbed = products(config, tokens, cached)
    return expanded < ABSORBED_COST * absorbed


def whole_step(
    model: AXK1Model,
    layers: Sequence[AXK1DecoderLayer],
    norm: AXK1RMSNorm,
    hidden_states: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor,
    cache: Cache | None,
    **kwargs: Any,
) -> Tensor | None:
    """:meth:`axk1.modeling.AXK1Model.whole_step` on compiled kernels.

    It declines in training, in compiled graphs, on other devices, with another cache than ours or a mask that is not of
    its columns, and where more than states is asked for."""
    batch, tokens, _ = hidden_states.shape
    if hidden_states.device.type != "cpu" or not isinstance(cache, LatentCache) or not tokens:
        return None
    if model.training or not is_inference() or not asks_for_states_alone(model, **kwargs):
        return None
    seen = cache.get_seq_length(layers[0].self_attn.layer_idx) + tokens
    if attention_mask is not None and attention_mask.shape != (batch, seen):
        return None
    how = {"prompt": is_prompt(model.config, batch, tokens, seen), "piece": max(PROMPT_TOKENS // batch, 1)}
    return run_layers(model, layers, norm, hidden_states, position_ids, attention_mask, cache, **how)


def asks_for_states_alone(model: AXK1Model, **kwargs: Any) -> bool:
    """Whether a call with these arguments wants no outputs recorded, of an attention that may take any form: not one
    that was chosen for itself (``eager``, the reference, or someone's own)."""
    config = model.config
    names = (f"output_{name}" for name in model._can_record_outputs or {})
    recorded = any(kwargs.get(name, getattr(config, name, False)) for name in names)
    chosen = config._attn_implementation == "eager" or not is_standard(config)
    return not (recorded or chosen or kwargs.get("is_causal", True) is False)


def logits(head: nn.Linear, states: Tensor, cache: Cache | None) -> Tensor:
    """``head(states)``, ``[..., vocab]``; after a cache of ours on compiled kernels, summed in fp32."""
    plain = type(head) is nn.Linear and head.bias is None and not is_hooked(head)
    if not plain or not isinstance(cache, LatentCache) or not is_inference() or not states.numel():
        return head(states)
    weight = head.weight
    usable = states.is_cpu and weight.is_cpu and weight.is_contiguous() and states.dtype == weight.dtype
    if not (usable and weight.dtype in FORMATS and native.available()):
        return head(states)
    return native.linear(states, weight.detach(), exact=weight.dtype == torch.float32)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """transformers' ``sdpa``; :func:`blocked_attention` for prompts in 16 bits on the CPU. In fp32 that one stays, to
    the bit."""
    prompt = query.shape[2] > 1 and is_half_inference_on_cpu(query) and kwargs.get("is_causal") is not False
    run = blocked_attention if prompt else ALL_ATTENTION_FUNCTIONS["sdpa"]
    return run(module, query, key, value, attention_mask, **kwargs)


def run_experts(experts: Any, hidden_states: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """transformers' ``grouped_mm``; one expert after the other in 16 bits on the CPU, where that is the faster for
    prompts. In fp32 ``grouped_mm`` stays, to the bit; and what is asked for by name always runs."""
    run = one_by_one if is_half_inference_on_cpu(hidden_states) else ALL_EXPERTS_FUNCTIONS["grouped_mm"]
    return run(experts, hidden_states, indices, weights)


def executor(model: AXK1ForCausalLM, dtype: torch.dtype) -> Executor | None:
    """What runs paged batches of ``model``, with pages of ``dtype`` and the weights and hooks that it has now.

    None where its modules have to: on other devices, in training, while something records what is computed or listens
    in on a module, with an attention that was chosen for itself."""
    outside = (model, model.model, model.model.embed_tokens, model.lm_head)
    if model.device.type != "cpu" or model.training or not is_inference() or dtype not in FORMATS:
        return None
    if any(is_hooked(each) for each in outside) or not asks_for_states_alone(model.model) or not native.available():
        return None
    trunk = read_model(model)
    return None if trunk is None else CPUExecutor(model, dtype, trunk)


def describe() -> dict[str, str]:
    """What computes on this machine, by what is computed, with the reason."""
    chosen = native.instructions()
    if chosen is None:
        reason = "AXK1_KERNELS=0" if instructions.wanted() == "0" else "no kernels here: see the warning above"
        return {"all": f"PyTorch's operators ({reason})"}
    best = [each.name for each in instructions.usable()]
    asked = instructions.wanted()
    why = f"AXK1_KERNELS={asked}" if asked not in ("0", "1") else f"the first of {', '.join(best)}"
    narrow = "bfloat16 products" if chosen in ("amx", "avx512_bf16") else "bfloat16 widened to float32"
    return {
        "instruction set": f"{chosen} ({why})",
        "replies": f"kernels, {chosen}: {narrow}; up to {STEP_ROWS} tokens at once, each with bits of its own",
        "prompts in bfloat16": f"kernels, {chosen}",
        "prompts in float32": f"kernels, {chosen}",
    }
