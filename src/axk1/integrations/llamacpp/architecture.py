"""A configuration in the fields of llama.cpp's architecture ``deepseek2``, or why it cannot be told in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf  # pyright: ignore[reportMissingImports]

from axk1.checkpoint.errors import CheckpointError
from axk1.config import AXK1Config

ARCHITECTURE = "deepseek2"
LITE = (26, 27)
"""Numbers of layers by which llama.cpp takes a file for a DeepSeek-V2-Lite, whose queries have no latent."""
EPS = 1e-6


def add_architecture(writer: Any, config: AXK1Config) -> None:
    """Adds all fields but the tokenizer's to ``writer``. Attention is written absorbed: one head of keys, the cached
    latent, whose first part is the value."""
    latent, rope = config.kv_lora_rank, config.qk_rope_head_dim
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers + config.num_nextn_predict_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(latent)
    writer.add_key_length(latent + rope)
    writer.add_value_length(latent)
    writer.add_key_length_mla(config.qk_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_rope_dimension_count(rope)
    _add_experts(writer, config)
    _add_rope(writer, dict(config.rope_parameters or {}))
    if config.num_nextn_predict_layers:
        writer.add_nextn_predict_layers(config.num_nextn_predict_layers)


def _add_experts(writer: Any, config: AXK1Config) -> None:
    writer.add_leading_dense_block_count(_dense_layers(config))
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType[config.scoring_func.upper()])
    if config.topk_method != "greedy" and config.topk_group < config.n_group:  # else all groups take part
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)


def _add_rope(writer: Any, rope: dict[str, Any]) -> None:
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "default":
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType[rope["rope_type"].upper()])
    writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
        writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)
        if rope.get("mscale_all_dim") is not None:  # llama.cpp's field is a tenth of DeepSeek's
            writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])


def _dense_layers(config: AXK1Config) -> int:
    return sum(not config.is_moe_layer(layer_idx) for layer_idx in range(config.num_hidden_layers))


def check_architecture(config: AXK1Config, folder: Path) -> None:
    """Whether llama.cpp computes what the model computes.

    Raises:
        CheckpointError: it would not; the message says which value is why.
    """
    for wrong, text in _obstacles(config):
        if wrong:
            raise CheckpointError(f"{text}, which llama.cpp's {ARCHITECTURE} cannot compute.", folder / "config.json")


def _obstacles(config: AXK1Config) -> list[tuple[bool, str]]:
    """What llama.cpp would compute wrongly or refuse, each with the words for it."""
    rope = dict(config.rope_parameters or {})
    kind, both = rope.get("rope_type"), (rope.get("mscale"), rope.get("mscale_all_dim"))
    dense = [not config.is_moe_layer(layer_idx) for layer_idx in range(config.num_hidden_layers)]
    experts_per_group = config.n_routed_experts // config.n_group
    grouped = config.topk_method != "greedy" and config.topk_group < config.n_group
    return [
        (config.tie_word_embeddings, "tie_word_embeddings=True"),
        (config.attention_bias, "attention_bias=True"),
        (not config.rope_interleave, "rope_interleave=False"),
        (config.hidden_act != "silu", f"hidden_act={config.hidden_act!r}"),
        (config.rms_norm_eps != EPS, f"rms_norm_eps={config.rms_norm_eps} (the latents' norms have {EPS})"),
        (config.n_shared_experts == 0, "n_shared_experts=0"),
        (config.topk_method not in ("noaux_tc", "greedy"), f"topk_method={config.topk_method!r}"),
        (grouped and (experts_per_group < 2 or config.n_group >= config.n_routed_experts), "groups of one expert"),
        (dense != sorted(dense, reverse=True), "a dense layer behind a MoE layer"),
        (all(dense), "no MoE layer"),
        (config.num_hidden_layers in LITE, f"num_hidden_layers={config.num_hidden_layers}"),
        (config.num_hidden_layers == 48 and config.vocab_size == 128_256, "48 layers with a vocabulary of 128,256"),
        (kind not in ("default", "linear", "yarn"), f"rope_type={kind!r}"),
        (rope.get("attention_factor") is not None, "attention_factor"),
        (rope.get("truncate") is False, "truncate=False"),
        (kind == "yarn" and all(both) and both[0] != both[1], f"mscale={both[0]} with mscale_all_dim={both[1]}"),
        (kind == "yarn" and bool(both[1]) and not both[0], "mscale_all_dim without mscale"),
        (kind == "linear" and bool(both[1]), "linear rope with mscale_all_dim"),
    ]
