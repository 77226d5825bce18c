"""What the machine allows: bytes and operations of a step, over rates that were measured on it.

Decoding reads the active weights and the cached latents once per token, so memory bandwidth limits it. Prefilling uses
each weight for many tokens, so the rate of matrix multiplications does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from axk1.checkpoint.names import fused_name, layer_index
from axk1.config import AXK1Config


@dataclass(frozen=True)
class Rates:
    """Measured on the machine: bytes per second, and floating-point operations per second by dtype."""

    bandwidth: float
    matmul: Mapping[str, float]


def experts_touched(config: AXK1Config, tokens: float) -> float:
    """Expected number of a layer's routed experts that ``tokens`` tokens use, each choosing evenly."""
    missed = (1 - config.num_experts_per_tok / config.n_routed_experts) ** tokens
    return config.n_routed_experts * (1 - missed)


def weight_bytes(sizes: Mapping[str, int], config: AXK1Config, tokens: int = 1) -> float:
    """Bytes of weights that one step over ``tokens`` tokens reads.

    All of the trunk, of the routed experts those that are touched, of the embedding nothing (one row per token).

    Args:
        sizes: bytes by tensor name, as stored.
    """
    share = experts_touched(config, tokens) / config.n_routed_experts
    total = 0.0
    for name, size in sizes.items():
        layer = layer_index(name)
        if layer is not None and layer >= config.num_hidden_layers:  # MTP modules draft; they are not the step
            continue
        if "embed_tokens" in name and not config.tie_word_embeddings:
            continue
        total += size * share if is_routed(name) else size
    return total


def is_routed(name: str) -> bool:
    """Whether a tensor belongs to the routed experts, in either layout."""
    return fused_name(name) is not None or ".mlp.experts." in name


def latent_bytes(config: AXK1Config, itemsize: int = 2) -> int:
    """Bytes that one token of context takes in a cache of latents, all layers of the trunk."""
    return config.num_hidden_layers * (config.kv_lora_rank + config.qk_rope_head_dim) * itemsize


def expanded_bytes(config: AXK1Config, itemsize: int = 2) -> int:
    """Bytes that the keys and values of all heads would take in place of one token's latents."""
    each = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    return config.num_hidden_layers * each * itemsize


def decode_bound(
    rates: Rates,
    sizes: Mapping[str, int],
    config: AXK1Config,
    context: int,
    batch: int,
    scale: float = 1.0,
    itemsize: int = 2,
) -> float:
    """Tokens per second that bandwidth allows when ``batch`` sequences of ``context`` tokens each gain one per step.

    Args:
        sizes: bytes of the weights by tensor name.
        scale: bytes of the engine's weights over those.
        itemsize: bytes of a cached value.
    """
    read = weight_bytes(sizes, config, batch) * scale + batch * context * latent_bytes(config, itemsize)
    return batch * rates.bandwidth / read


def prefill_flops(config: AXK1Config, parameters: float, tokens: int) -> float:
    """Operations of a prompt of ``tokens``: two a weight and token, and causal attention over expanded heads.

    Args:
        parameters: weights that one token uses, without the embedding; the head is counted for the last token only.
    """
    head = config.vocab_size * config.hidden_size
    pairs = tokens * (tokens + 1) / 2
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    return 2 * (parameters - head) * tokens + 2 * head + attention * pairs


def prefill_bound(rates: Rates, dtype: str, config: AXK1Config, parameters: float, tokens: int) -> float:
    """Tokens per second that matrix multiplications allow for a prompt of ``tokens``: those of ``dtype``, or of float32
    where a processor without products of ``dtype`` is faster in it."""
    rate = max(rates.matmul[dtype], rates.matmul.get("float32", 0.0))
    return tokens * rate / prefill_flops(config, parameters, tokens)
