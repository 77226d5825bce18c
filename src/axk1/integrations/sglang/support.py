"""What the SGLang adapter can serve: other settings are refused, because SGLang would ignore them in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from axk1.config import AXK1Config

YARN_FIELDS = {
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
}
"""What SGLang's YaRN reads."""
NEUTRAL = {"truncate": True, "partial_rotary_factor": 1.0, "attention_factor": None}
"""What it does not read, at the value that it takes for granted."""


def check_config(config: AXK1Config) -> None:
    """Raises ValueError, one sentence, for an architecture that SGLang's DeepSeek classes would compute differently."""
    for name, served in (
        ("scoring_func", "sigmoid"),
        ("topk_method", "noaux_tc"),
        ("hidden_act", "silu"),
        ("attention_bias", False),
    ):
        if (value := getattr(config, name)) != served:
            raise ValueError(f"{name}={value!r} is not served by axk1's SGLang integration: only {served!r} is.")
    if config.n_shared_experts == 0:
        raise ValueError("n_shared_experts=0 is not served by axk1's SGLang integration: SGLang needs one or more.")
    if config.first_k_dense_replace is None or config.moe_layer_freq is None:
        raise ValueError(
            f"mlp_layer_types={config.mlp_layer_types!r} cannot be served by SGLang, which knows dense layers by "
            "first_k_dense_replace and moe_layer_freq only: the dense layers must come first."
        )
    _check_rope(config)


def check_draft(config: AXK1Config) -> None:
    """Raises ValueError, one sentence, unless the checkpoint has exactly one MTP module."""
    depth = config.num_nextn_predict_layers
    if depth == 0:
        raise ValueError(
            "num_nextn_predict_layers=0: this checkpoint has no MTP module (the released A.X K1 has none), so there "
            "is nothing to speculate with: leave out --speculative-algorithm, or train a module with axk1 first."
        )
    if depth != 1:
        raise ValueError(f"num_nextn_predict_layers={depth}: SGLang's NextN draft has one MTP module, not {depth}.")


def _check_rope(config: AXK1Config) -> None:
    rope = config.rope_parameters or {}
    kind = rope.get("rope_type")
    if kind == "default":
        return
    if kind not in ("yarn", "deepseek_yarn"):  # SGLang writes the second into the dictionary that it was given
        raise ValueError(f"rope_type={kind!r}: SGLang would compute YaRN; only 'default' and 'yarn' are served.")
    ignored = sorted(key for key, value in rope.items() if key not in YARN_FIELDS and value != NEUTRAL.get(key))
    if ignored:
        names = ", ".join(ignored)
        raise ValueError(f"rope_parameters {names}: SGLang's YaRN ignores them, so the answers would differ.")
