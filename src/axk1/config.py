"""Configuration of the A.X K1 architecture: every field, its default, its released value.

The defaults are the released 519B model. Field names are those of the released ``config.json``; older and
DeepSeek-style spellings are read and normalised here, so that no other file needs to know them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, cast

from transformers import PreTrainedConfig

# YaRN from 32,768 to 131,072 tokens. cos/sin are scaled by 1.138629, the softmax scale stays qk_head_dim ** -0.5.
K1_ROPE: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32_768,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.0,
}

RELEASED_TOKEN_IDS: dict[str, Any] = {
    "pad_token_id": 163_692,  # <|pad|>
    "bos_token_id": 163_691,  # <|endoftext|>
    "eos_token_id": [163_704, 163_691],  # <|im_end|>, <|endoftext|>
}

# Least and largest: far above what anyone has built, and low enough that a hostile file costs no time and no memory.
_SIZES = {
    "vocab_size": (1, 2**24),
    "hidden_size": (1, 2**17),
    "intermediate_size": (1, 2**20),
    "moe_intermediate_size": (1, 2**18),
    "num_hidden_layers": (1, 1_024),
    "num_attention_heads": (1, 1_024),
    "n_routed_experts": (1, 2**14),
    "num_experts_per_tok": (1, 2**14),
    "n_group": (1, 2**14),
    "topk_group": (1, 2**14),
    "kv_lora_rank": (1, 2**14),
    "q_lora_rank": (1, 2**16),
    "qk_rope_head_dim": (1, 1_024),
    "qk_nope_head_dim": (1, 4_096),
    "v_head_dim": (1, 4_096),
    "max_position_embeddings": (1, 2**26),
    "num_nextn_predict_layers": (0, 64),
    "n_shared_experts": (0, 256),
}
_ALL_EXPERTS = 2**18
"""Routed experts of all layers together (released: 11,520)."""
_ROPE_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "longrope": {"factor", "short_factor", "long_factor", "attention_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings", "attention_factor", "truncate"}
    | {"beta_fast", "beta_slow", "mscale", "mscale_all_dim"},
}
"""What a rotary embedding reads, by its type, beside ``rope_theta``."""
_ROPE_KNOWN = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}.union(*_ROPE_KEYS.values())
_LARGEST = 1e12
"""No rotary setting is larger."""
_ROPE_OPTIONAL = {"attention_factor", "truncate", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
_NOT_NEGATIVE = [
    "mtp_loss_weight",
    "router_aux_loss_coef",
    "router_bias_update_rate",
    "routed_scaling_factor",
    "attention_dropout",
    "initializer_range",
    "rms_norm_eps",
]


class _Activations:
    """The activations of transformers by name. Their module imports half of that library: not for the usual one."""

    def __contains__(self, name: object) -> bool:
        return name == "silu" or name in list(self)

    def __iter__(self) -> Iterator[str]:
        from transformers.activations import ACT2FN

        return iter(ACT2FN)


_CHOICES: dict[str, Collection[Any] | _Activations] = {
    "scoring_func": ("sigmoid", "softmax"),
    "topk_method": ("noaux_tc", "group_limited_greedy", "greedy"),
    "rope_interleave": (True, False),
    "norm_topk_prob": (True, False),
    "attention_bias": (True, False),
    "tie_word_embeddings": (True, False),
    "output_router_logits": (True, False),
    "hidden_act": _Activations(),
}


class _TheirPlan:
    """A plan of transformers' own configuration of the installed version, imported when a model asks for it: it brings
    all of transformers' model classes along."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, config: Any, owner: type | None = None) -> Any:
        from transformers.models.axk1 import configuration_axk1

        return getattr(configuration_axk1.AXK1Config, self.name)


class AXK1Config(PreTrainedConfig):
    """Shape and behaviour of an A.X K1 model.

    Args:
        vocab_size: rows of the embedding and of the untied head (released: 163,840).
        hidden_size: width of the residual stream (7,168).
        intermediate_size: width of the SwiGLU in dense layers (18,432).
        moe_intermediate_size: width of the SwiGLU of one expert (2,048).
        num_hidden_layers: decoder layers of the trunk, MTP modules not counted (61).
        num_attention_heads: heads of the multi-head latent attention (64).
        num_key_value_heads: kept for other tools; MLA expands one latent to every head, so it must equal
            ``num_attention_heads``.
        n_shared_experts: experts that every token uses, stored as one wider SwiGLU (1).
        n_routed_experts: experts that the router chooses from (192).
        num_experts_per_tok: experts chosen for a token (8).
        n_group, topk_group: the experts form ``n_group`` groups, of which ``topk_group`` are kept for a token (8, 4).
        norm_topk_prob: normalise the chosen scores to sum 1 before scaling.
        routed_scaling_factor: factor on the routed experts' weights (2.5).
        scoring_func: ``sigmoid`` (released) or ``softmax`` over the router's logits.
        topk_method: ``noaux_tc`` ranks groups by the sum of their two best scores plus bias (released),
            ``group_limited_greedy`` by their best score, ``greedy`` ignores groups.
        q_lora_rank, kv_lora_rank: ranks of the query and of the key/value latents (1,536 and 512).
        qk_nope_head_dim, qk_rope_head_dim, v_head_dim: parts of a head (128, 64, 128).
        rope_parameters: rotary settings; ``rope_scaling`` + ``rope_theta`` are read too. Default: YaRN to 131,072.
        rope_interleave: rotate pairs (0, 1), (2, 3), ... (released) instead of halves.
        num_nextn_predict_layers: depth of multi-token prediction (the released file holds no MTP weights: 0).
        mtp_loss_weight: weight of the mean MTP loss beside the next-token loss.
        router_aux_loss_coef: weight of the sequence-wise balance loss (DeepSeek-V3, eq. 17-20); 0 turns it off.
        router_bias_update_rate: step of the auxiliary-loss-free bias update; 0 turns it off.
        first_k_dense_replace, moe_layer_freq, mlp_layer_types: which layers are dense. Any of the two spellings
            is read, both are written.

    Raises:
        ValueError: an inconsistent value; the message names the field, the value and the rule.
    """

    model_type = "axk1"
    keys_to_ignore_at_inference = [  # Trainer's predictions are the logits alone
        "past_key_values",
        "cache",
        "router_logits",
        "router_indices",
        "mtp_logits",
        "lm_loss",
        "mtp_loss",
        "aux_loss",
    ]
    attribute_map = {
        "num_local_experts": "n_routed_experts",
        "num_experts": "n_routed_experts",
        "num_mtp_layers": "num_nextn_predict_layers",
    }
    # Our modules have the names of transformers' own class, so its plans shard them too, MTP modules included.
    base_model_tp_plan = _TheirPlan()  # pyright: ignore[reportAssignmentType]
    base_model_ep_plan = _TheirPlan()  # pyright: ignore[reportAssignmentType]
    base_model_pp_plan = _TheirPlan()  # pyright: ignore[reportAssignmentType]

    vocab_size: int = 163_840
    hidden_size: int = 7_168
    intermediate_size: int = 18_432
    moe_intermediate_size: int = 2_048
    num_hidden_layers: int = 61
    num_attention_heads: int = 64
    num_key_value_heads: int | None = None
    n_shared_experts: int = 1
    n_routed_experts: int = 192
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    scoring_func: str = "sigmoid"
    topk_method: str = "noaux_tc"
    q_lora_rank: int = 1_536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 131_072
    rope_parameters: dict[str, Any] | None = None
    rope_interleave: bool = True
    attention_bias: bool = False
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    num_nextn_predict_layers: int = 0
    mtp_loss_weight: float = 0.3
    router_aux_loss_coef: float = 0.0
    router_bias_update_rate: float = 0.0
    output_router_logits: bool = False
    first_k_dense_replace: int | None = None
    moe_layer_freq: int | None = None
    mlp_layer_types: list[str] | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for derived in ("model_type", "head_dim", "qk_head_dim"):  # "AXK1" in older files; the others follow from sizes
            kwargs.pop(derived, None)
        self._check_unknown(kwargs)
        self._read_mtp_alias(kwargs)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self._set_token_ids()
        self._check_sizes()
        self._set_layer_types()
        self.qk_head_dim = self.qk_nope_head_dim + self.qk_rope_head_dim
        self.head_dim = self.qk_rope_head_dim  # what transformers' rotary code rotates
        if self.rope_parameters is None and not kwargs.get("rope_scaling"):
            plain = "rope_theta" in kwargs or self.max_position_embeddings != AXK1Config.max_position_embeddings
            self.rope_parameters = {"rope_type": "default"} if plain else dict(K1_ROPE)
        elif self.rope_parameters is not None:
            self.rope_parameters = _given_rope(self.rope_parameters)
        if kwargs.get("rope_scaling"):
            kwargs["rope_scaling"] = _given_rope(kwargs["rope_scaling"])  # the caller's own dictionary stays as it is
        super().__post_init__(**kwargs)
        self._check_rules()

    @classmethod
    def preset(cls, name: Literal["nano", "mini", "k1"] | str, **overrides: Any) -> AXK1Config:
        """A named configuration: ``nano`` (shipped, trained), ``mini`` (about 0.5B, smoke tests), ``k1`` (released)."""
        if name not in PRESETS:
            raise ValueError(f"Unknown preset {name!r}: choose one of {', '.join(sorted(PRESETS))}.")
        return cls(**{**PRESETS[name], **overrides})

    def is_moe_layer(self, layer_idx: int) -> bool:
        """Whether layer ``layer_idx`` has experts; MTP layers (index >= ``num_hidden_layers``) always have."""
        return layer_idx >= self.num_hidden_layers or cast(list, self.mlp_layer_types)[layer_idx] == "sparse"

    @classmethod
    def _check_unknown(cls, kwargs: dict[str, Any]) -> None:
        """Refuses further values that would change how the model or this class works."""
        for name, value in kwargs.items():
            if callable(getattr(cls, name, None)):
                raise ValueError(f"{name}={_short(value)} is no field of a configuration.")
        if kwargs.get("per_layer_config") is not None:
            raise ValueError("per_layer_config is not supported: all layers have the same sizes.")
        if kwargs.get("partial_rotary_factor") not in (None, 1):
            raise ValueError(
                f"partial_rotary_factor={_short(kwargs['partial_rotary_factor'])} is not supported: all of "
                "qk_rope_head_dim is rotated."
            )

    def _read_mtp_alias(self, kwargs: dict[str, Any]) -> None:
        if "num_mtp_layers" not in kwargs:
            return
        depth = kwargs.pop("num_mtp_layers")
        if self.num_nextn_predict_layers not in (AXK1Config.num_nextn_predict_layers, depth):
            other = _short(self.num_nextn_predict_layers)
            raise ValueError(
                f"num_mtp_layers={_short(depth)} contradicts num_nextn_predict_layers={other}: they are two names of "
                "one field, give one."
            )
        self.num_nextn_predict_layers = depth

    def _set_token_ids(self) -> None:
        """The released vocabulary brings its special tokens; in another one their ids would mean nothing."""
        if self.vocab_size == AXK1Config.vocab_size:
            for name, value in RELEASED_TOKEN_IDS.items():
                setattr(self, name, getattr(self, name) if getattr(self, name) is not None else value)

    def _check_token_ids(self) -> None:
        for name in RELEASED_TOKEN_IDS:
            value = getattr(self, name)
            for token in value if isinstance(value, list) else [value]:
                if token is not None and not (_is_whole(token) and 0 <= token < self.vocab_size):
                    raise ValueError(
                        f"{name}={_short(value)} must lie within the vocabulary (vocab_size={self.vocab_size})."
                    )

    def _check_sizes(self) -> None:
        for name, (least, largest) in _SIZES.items():
            if not _is_whole(value := getattr(self, name)) or not least <= value <= largest:
                raise ValueError(
                    f"{name}={_short(value)} must be a whole number of at least {least} and at most {largest:,}."
                )
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if not _is_number(value) or value < 0:
                raise ValueError(f"{name}={_short(value)} must be a number of at least 0.")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={_short(getattr(self, name))} must be one of {', '.join(map(str, allowed))}.")

    def _set_layer_types(self) -> None:
        """Derives the missing one of the two spellings of "which layers are dense"."""
        layers, dense, freq = self.num_hidden_layers, self.first_k_dense_replace, self.moe_layer_freq
        if self.mlp_layer_types is None or dense is not None or freq is not None:
            dense, freq = 1 if dense is None else dense, 1 if freq is None else freq
            if not _is_whole(dense) or dense < 0:
                raise ValueError(f"first_k_dense_replace={_short(dense)} must be a whole number of at least 0.")
            if not _is_whole(freq) or freq < 1:
                raise ValueError(f"moe_layer_freq={_short(freq)} must be a whole number of at least 1.")
            derived = ["sparse" if i >= dense and i % freq == 0 else "dense" for i in range(layers)]
            self.first_k_dense_replace, self.moe_layer_freq = dense, freq
            if self.mlp_layer_types is not None and self.mlp_layer_types != derived:
                raise ValueError(
                    f"mlp_layer_types={_short(self.mlp_layer_types)} contradicts first_k_dense_replace={dense} and "
                    f"moe_layer_freq={freq} over num_hidden_layers={layers}: give one of the two spellings."
                )
            self.mlp_layer_types = derived
        types = self.mlp_layer_types
        if (
            not isinstance(types, list)
            or len(types) != layers
            or any(each not in ("dense", "sparse") for each in types)
        ):
            raise ValueError(
                f"mlp_layer_types={_short(types)} must hold num_hidden_layers={layers} words, each 'dense' or 'sparse'."
            )
        if self.first_k_dense_replace is None:
            leading = [*self.mlp_layer_types, "sparse"].index("sparse")
            if "dense" not in self.mlp_layer_types[leading:]:
                self.first_k_dense_replace, self.moe_layer_freq = leading, 1

    def _check_rules(self) -> None:
        def require(ok: bool, name: str, rule: str) -> None:
            if not ok:
                raise ValueError(f"{name}={_short(getattr(self, name))} {rule}.")

        experts, groups = self.n_routed_experts, self.n_group
        layers = self.num_hidden_layers + self.num_nextn_predict_layers
        require(experts * layers <= _ALL_EXPERTS, "n_routed_experts", f"is too many for {layers} layers")
        require(experts % groups == 0, "n_routed_experts", f"must be a multiple of n_group={groups}")
        require(self.topk_group <= groups, "topk_group", f"must not exceed n_group={groups}")
        require(
            self.num_experts_per_tok
            <= experts // groups * (groups if self.topk_method == "greedy" else self.topk_group),
            "num_experts_per_tok",
            f"must fit into the experts of the kept groups (topk_group={self.topk_group} x {experts // groups})",
        )
        require(
            self.topk_method != "noaux_tc" or experts // groups >= 2,
            "topk_method",
            f"ranks groups by two experts, but n_routed_experts={experts} / n_group={groups} leaves one in a group",
        )
        require(self.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim", "must be even: rotary dimensions form pairs")
        require(
            self.num_key_value_heads == self.num_attention_heads,
            "num_key_value_heads",
            f"must equal num_attention_heads={self.num_attention_heads}: MLA has one key/value head a query head",
        )
        require(self.attention_dropout < 1, "attention_dropout", "must be less than 1")
        self._check_token_ids()
        self._check_rope(cast(dict, self.rope_parameters))

    def _check_rope(self, rope: dict[str, Any]) -> None:
        def require(ok: bool, key: str, rule: str) -> None:
            if not ok:
                raise ValueError(f"rope_parameters[{key!r}]={_short(rope.get(key))} {rule}.")

        kind, theta, half = rope.get("rope_type"), rope.get("rope_theta"), self.qk_rope_head_dim // 2
        require(kind in _ROPE_KEYS, "rope_type", f"must be one of {', '.join(_ROPE_KEYS)}")
        require(_is_number(theta) and 0 < theta <= _LARGEST, "rope_theta", "must be a number above 0")
        require(kind != "yarn" or theta > 1, "rope_theta", "must be above 1 for yarn")
        require(kind != "dynamic" or half > 1, "rope_type", "needs qk_rope_head_dim above 2")
        whole = rope.get("partial_rotary_factor")
        require(whole in (None, 1), "partial_rotary_factor", "is not supported: all of qk_rope_head_dim is rotated")
        for key in sorted(rope.keys() - _ROPE_KNOWN):
            require(rope[key] is None, key, "is no setting that this model knows")
        for key in sorted(_ROPE_KEYS[kind]):
            value = rope.get(key)
            if value is None:
                require(key in _ROPE_OPTIONAL or (kind, key) == ("longrope", "factor"), key, f"is missing for {kind}")
            elif key == "original_max_position_embeddings":
                require(
                    _is_whole(value) and 1 <= value <= self.max_position_embeddings,
                    key,
                    f"must be a whole number from 1 to max_position_embeddings={self.max_position_embeddings}",
                )
            elif key.endswith(("short_factor", "long_factor")):
                require(
                    isinstance(value, list) and len(value) == half and all(0 < each <= _LARGEST for each in value),
                    key,
                    f"must be a list of {half} numbers above 0, half of qk_rope_head_dim",
                )
            elif key != "truncate":
                least = 1 if key == "factor" else 0
                require(_is_number(value) and least <= value <= _LARGEST, key, f"must be a number of at least {least}")
        if kind == "llama3":
            require(rope["low_freq_factor"] < rope["high_freq_factor"], "low_freq_factor", "must be below the high one")


def _given_rope(rope: Any) -> dict[str, Any]:
    """A copy of the caller's rotary settings, if all that is in it is of a type that such settings have."""
    if not isinstance(rope, Mapping):
        raise ValueError(f"rope_parameters={_short(rope)} must be an object.")
    for key, value in rope.items():
        words = key in ("rope_type", "type") and isinstance(value, str)
        numbers = key in ("short_factor", "long_factor") and isinstance(value, list) and all(map(_is_number, value))
        flag = key == "truncate" and isinstance(value, bool)
        if not (value is None or _is_number(value) or words or numbers or flag):
            raise ValueError(f"rope_parameters[{key!r}]={_short(value)} is not a setting that this model reads.")
    return dict(rope)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _short(value: Any) -> str:
    """``value`` for an error message, of whatever size."""
    text = f"2**{value.bit_length() - 1}" if _is_whole(value) and value.bit_length() > 200 else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


PRESETS: dict[str, dict[str, Any]] = {
    "k1": {},
    "mini": dict(
        vocab_size=32_768,
        hidden_size=1_024,
        intermediate_size=3_072,
        moe_intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=16,
        n_routed_experts=64,
        q_lora_rank=768,
        num_nextn_predict_layers=1,
    ),
    "nano": dict(
        vocab_size=6_144,
        hidden_size=192,
        intermediate_size=512,
        moe_intermediate_size=96,
        num_hidden_layers=5,
        num_attention_heads=4,
        n_routed_experts=16,
        num_experts_per_tok=4,
        n_group=4,
        topk_group=2,
        q_lora_rank=96,
        qk_nope_head_dim=32,
        v_head_dim=32,
        max_position_embeddings=2_048,
        num_nextn_predict_layers=1,
        bos_token_id=6_080,
        pad_token_id=6_081,
        eos_token_id=[6_093, 6_080],
    ),
}
