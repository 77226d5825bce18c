"""The tensors of an A.X K1 checkpoint, as one table used in both directions.

Two layouts exist. They differ in the routed experts only:

* ``released``: fused, ``mlp.experts.gate_up_proj`` ``[E, 2F, D]`` (gate rows first), ``mlp.experts.down_proj``
  ``[E, D, F]``;
* ``per_expert``: ``mlp.experts.N.{gate,up,down}_proj.weight``, used by an earlier upload and by other tools' exports.

Loading, saving, converting, verifying, ``axk1 info`` and ``docs/weights.md`` all read this file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from axk1.checkpoint.errors import CheckpointError
from axk1.config import AXK1Config
from axk1.quantized.plan import FUSED

Layout = Literal["released", "per_expert"]
LAYOUTS: tuple[Layout, ...] = ("released", "per_expert")
PREFIX = "model."  # a trunk saved alone (AXK1Model) has none
PARTS: tuple[str, ...] = (
    "embedding",
    "head",
    "attention",
    "dense MLP",
    "routed experts",
    "shared experts",
    "router",
    "norms",
    "MTP",
)
_EXPERT = re.compile(
    r"(?P<base>.*\.mlp\.experts\.)(?P<expert>\d+)\.(?P<proj>gate_proj|up_proj|down_proj)"
    r"\.weight(?P<suffix>|_packed|_scale|_shape)"  # the suffixes are those of quantised weights
)
# DeepSeek-style MTP layers repeat the trunk's embedding and head; older files hold rotary tables. All are ignored.
_IGNORED = re.compile(r"(model\.)?layers\.\d+\.(embed_tokens|shared_head\.head)\.weight|.*rotary_emb\.inv_freq")
ROUTER_BIAS = "e_score_correction_bias"
HEAD_KEYS = ("lm_head.weight", "score.weight", "score.bias")


@dataclass(frozen=True)
class Row:
    """One kind of tensor: the key below ``model.`` (or below ``model.layers.N.``), its shape and its meaning."""

    key: str
    shape: Callable[[AXK1Config], tuple[int, ...]]
    part: str
    meaning: str
    layers: Literal["none", "all", "dense", "moe", "mtp"] = "all"
    layout: Layout | None = None
    optional: bool = False
    float32: bool = False
    when: Callable[[AXK1Config], bool] = field(default=lambda config: True)


@dataclass(frozen=True)
class TensorSpec:
    """One expected tensor. ``dtype`` is the released one; readers accept any float type."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    part: str
    meaning: str
    optional: bool = False

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def parameters(self) -> int:
        """Number of parameters: as transformers counts, without the router's bias, which no gradient reaches."""
        return 0 if self.name.endswith(ROUTER_BIAS) else self.size


class ExpertSlice(NamedTuple):
    """Where a per-expert tensor lies in its fused tensor: ``fused[expert, start:stop]``."""

    name: str
    expert: int
    start: int
    stop: int


class ExpertPart(NamedTuple):
    """A tensor of one expert, taken apart: ``{base}{expert}.{projection}.weight{suffix}``."""

    base: str
    expert: int
    projection: str
    suffix: str
    """``_packed``, ``_scale`` and ``_shape`` of quantised weights; else empty."""


def _bias(config: AXK1Config) -> bool:
    return config.attention_bias


def _shared(config: AXK1Config) -> bool:
    return config.n_shared_experts > 0


def _shared_width(c: AXK1Config) -> int:
    return c.moe_intermediate_size * c.n_shared_experts


def _latent(c: AXK1Config) -> int:
    return c.kv_lora_rank + c.qk_rope_head_dim


MODEL_ROWS = (
    Row(
        "embed_tokens.weight",
        lambda c: (c.vocab_size, c.hidden_size),
        "embedding",
        "token embedding, one row a token id",
        "none",
    ),
    Row("norm.weight", lambda c: (c.hidden_size,), "norms", "RMSNorm after the last layer", "none"),
)
LAYER_ROWS = (
    Row("input_layernorm.weight", lambda c: (c.hidden_size,), "norms", "RMSNorm before attention"),
    Row(
        "self_attn.q_a_proj.weight",
        lambda c: (c.q_lora_rank, c.hidden_size),
        "attention",
        "hidden state to query latent",
    ),
    Row(
        "self_attn.q_a_proj.bias",
        lambda c: (c.q_lora_rank,),
        "attention",
        "its bias (`attention_bias` only)",
        when=_bias,
    ),
    Row("self_attn.q_a_layernorm.weight", lambda c: (c.q_lora_rank,), "attention", "RMSNorm of the query latent"),
    Row(
        "self_attn.q_b_proj.weight",
        lambda c: (c.num_attention_heads * c.qk_head_dim, c.q_lora_rank),
        "attention",
        "query latent to queries; in each head the part without rotation first, then the rotary part",
    ),
    Row(
        "self_attn.kv_a_proj_with_mqa.weight",
        lambda c: (_latent(c), c.hidden_size),
        "attention",
        "hidden state to key/value latent, then the rotary key that all heads share: the two things that are cached",
    ),
    Row(
        "self_attn.kv_a_proj_with_mqa.bias",
        lambda c: (_latent(c),),
        "attention",
        "its bias (`attention_bias` only)",
        when=_bias,
    ),
    Row(
        "self_attn.kv_a_layernorm.weight",
        lambda c: (c.kv_lora_rank,),
        "attention",
        "RMSNorm of the key/value latent",
    ),
    Row(
        "self_attn.kv_b_proj.weight",
        lambda c: (c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank),
        "attention",
        "key/value latent to keys (without rotation) and values; in each head keys first",
    ),
    Row(
        "self_attn.o_proj.weight",
        lambda c: (c.hidden_size, c.num_attention_heads * c.v_head_dim),
        "attention",
        "heads to hidden state",
    ),
    Row(
        "self_attn.o_proj.bias", lambda c: (c.hidden_size,), "attention", "its bias (`attention_bias` only)", when=_bias
    ),
    Row("post_attention_layernorm.weight", lambda c: (c.hidden_size,), "norms", "RMSNorm before the MLP or MoE block"),
    Row(
        "mlp.gate_proj.weight",
        lambda c: (c.intermediate_size, c.hidden_size),
        "dense MLP",
        "SwiGLU gate",
        "dense",
    ),
    Row("mlp.up_proj.weight", lambda c: (c.intermediate_size, c.hidden_size), "dense MLP", "SwiGLU up", "dense"),
    Row("mlp.down_proj.weight", lambda c: (c.hidden_size, c.intermediate_size), "dense MLP", "SwiGLU down", "dense"),
    Row(
        "mlp.gate.weight",
        lambda c: (c.n_routed_experts, c.hidden_size),
        "router",
        "router, one row an expert; computed in fp32",
        "moe",
    ),
    Row(
        "mlp.gate.e_score_correction_bias",
        lambda c: (c.n_routed_experts,),
        "router",
        "added to the scores when experts are chosen, never to their weights; missing means zero; not written while "
        "all are zero",
        "moe",
        optional=True,
        float32=True,
    ),
    Row(
        "mlp.experts.gate_up_proj",
        lambda c: (c.n_routed_experts, 2 * c.moe_intermediate_size, c.hidden_size),
        "routed experts",
        "SwiGLU gate and up of every expert; in each expert the gate rows first",
        "moe",
        "released",
    ),
    Row(
        "mlp.experts.down_proj",
        lambda c: (c.n_routed_experts, c.hidden_size, c.moe_intermediate_size),
        "routed experts",
        "SwiGLU down of every expert",
        "moe",
        "released",
    ),
    Row(
        "mlp.experts.{e}.gate_proj.weight",
        lambda c: (c.moe_intermediate_size, c.hidden_size),
        "routed experts",
        "SwiGLU gate of one expert",
        "moe",
        "per_expert",
    ),
    Row(
        "mlp.experts.{e}.up_proj.weight",
        lambda c: (c.moe_intermediate_size, c.hidden_size),
        "routed experts",
        "SwiGLU up of one expert",
        "moe",
        "per_expert",
    ),
    Row(
        "mlp.experts.{e}.down_proj.weight",
        lambda c: (c.hidden_size, c.moe_intermediate_size),
        "routed experts",
        "SwiGLU down of one expert",
        "moe",
        "per_expert",
    ),
    Row(
        "mlp.shared_experts.gate_proj.weight",
        lambda c: (_shared_width(c), c.hidden_size),
        "shared experts",
        "SwiGLU gate of the experts that every token uses",
        "moe",
        when=_shared,
    ),
    Row(
        "mlp.shared_experts.up_proj.weight",
        lambda c: (_shared_width(c), c.hidden_size),
        "shared experts",
        "SwiGLU up of the experts that every token uses",
        "moe",
        when=_shared,
    ),
    Row(
        "mlp.shared_experts.down_proj.weight",
        lambda c: (c.hidden_size, _shared_width(c)),
        "shared experts",
        "SwiGLU down of the experts that every token uses",
        "moe",
        when=_shared,
    ),
    Row(
        "post_mlp_layernorm.weight",
        lambda c: (c.hidden_size,),
        "norms",
        "RMSNorm of the complete MoE sum, before the residual add",
        "moe",
    ),
    Row(
        "post_mlp_layernorm.weight",
        lambda c: (c.hidden_size,),
        "norms",
        "stored in dense layers too, but never applied there; missing means ones",
        "dense",
        optional=True,
    ),
    Row("enorm.weight", lambda c: (c.hidden_size,), "MTP", "RMSNorm of the next token's embedding", "mtp"),
    Row("hnorm.weight", lambda c: (c.hidden_size,), "MTP", "RMSNorm of the trunk's state after its final norm", "mtp"),
    Row(
        "eh_proj.weight",
        lambda c: (c.hidden_size, 2 * c.hidden_size),
        "MTP",
        "the two, embedding first, to the module's input",
        "mtp",
    ),
    Row("shared_head.norm.weight", lambda c: (c.hidden_size,), "MTP", "RMSNorm before the trunk's `lm_head`", "mtp"),
)
HEAD_ROW = Row(
    "lm_head.weight",
    lambda c: (c.vocab_size, c.hidden_size),
    "head",
    "hidden state to logits, not tied to the embedding",
    "none",
)


def layer_rows(config: AXK1Config, layer_idx: int, layout: Layout) -> list[Row]:
    """The rows of one decoder layer; an index from ``num_hidden_layers`` on is an MTP layer, which is a MoE layer."""
    kinds = {"all", "moe" if config.is_moe_layer(layer_idx) else "dense"}
    if layer_idx >= config.num_hidden_layers:
        kinds.add("mtp")
    return [row for row in LAYER_ROWS if row.layers in kinds and row.layout in (None, layout) and row.when(config)]


def expected_tensors(
    config: AXK1Config, layout: Layout = "released", prefix: str = PREFIX, head: bool = True
) -> Iterator[TensorSpec]:
    """Every tensor of a checkpoint, the optional ones included, in file order.

    Args:
        config: the architecture; its MTP layers are included.
        layout: ``released`` or ``per_expert``.
        prefix: ``"model."``, or ``""`` for a trunk saved alone.
        head: include ``lm_head.weight`` (never there when embeddings are tied).
    """
    embedding, final_norm = MODEL_ROWS
    yield _spec(config, prefix, embedding)
    for layer_idx in range(config.num_hidden_layers + config.num_nextn_predict_layers):
        base = f"{prefix}layers.{layer_idx}."
        part = "MTP" if layer_idx >= config.num_hidden_layers else None
        for experts, rows in _runs(layer_rows(config, layer_idx, layout)):
            for expert in range(config.n_routed_experts if experts else 1):
                yield from (_spec(config, base, row, part, expert) for row in rows)
    yield _spec(config, prefix, final_norm)
    if head and not config.tie_word_embeddings:
        yield _spec(config, "", HEAD_ROW)


def expert_slices(config: AXK1Config, name: str) -> list[ExpertSlice]:
    """The per-expert tensors that make up a fused one (``...experts.gate_up_proj``), in memory order; [] for others."""
    base, _, last = name.rpartition(".")
    if not base.endswith("mlp.experts") or last not in FUSED:
        return []
    rows = config.hidden_size if last == "down_proj" else config.moe_intermediate_size
    return [
        ExpertSlice(f"{base}.{expert}.{proj}.weight", expert, i * rows, (i + 1) * rows)
        for expert in range(config.n_routed_experts)
        for i, proj in enumerate(FUSED[last])
    ]


def expert_part(name: str) -> ExpertPart | None:
    """Which tensor of which expert ``name`` is, quantised or not; ``None`` for every other tensor."""
    match = _EXPERT.fullmatch(name)
    return match and ExpertPart(match["base"], int(match["expert"]), match["proj"], match["suffix"])


def fused_name(name: str) -> str | None:
    """The fused tensor that holds the per-expert tensor ``name``; ``None`` for every other tensor."""
    part = expert_part(name)
    if part is None:
        return None
    return part.base + next(fused for fused, parts in FUSED.items() if part.projection in parts) + part.suffix


def detect_layout(names: Iterable[str], where: Path | None = None) -> Layout:
    """The layout of the keys ``names``, stored in ``where``.

    Raises:
        CheckpointError: both layouts are mixed.
    """
    per_expert = fused = None
    for name in names:
        if _EXPERT.fullmatch(name):
            per_expert = name
        elif re.search(r"\.mlp\.experts\.(gate_up_proj|down_proj)$", name):
            fused = name
    if per_expert and fused:
        message = f"stores experts in two layouts at once: {fused!r} and {per_expert!r}. Remove one."
        raise CheckpointError(message, where, per_expert)
    return "per_expert" if per_expert else "released"


def detect_prefix(names: Iterable[str]) -> str:
    """``"model."``, or ``""`` for a trunk that was saved alone."""
    return PREFIX if any(name.startswith(PREFIX) for name in names) else ""


def is_ignored(name: str) -> bool:
    """Whether ``name`` repeats something the model has already (see ``docs/weights.md``)."""
    return _IGNORED.fullmatch(name) is not None


def layer_index(name: str) -> int | None:
    """The decoder layer that ``name`` belongs to, MTP layers included."""
    match = re.match(r"(?:model\.)?layers\.(\d{1,9})\.", name, re.ASCII)
    return int(match[1]) if match else None


def _spec(config: AXK1Config, base: str, row: Row, part: str | None = None, expert: int = 0) -> TensorSpec:
    name = base + row.key.replace("{e}", str(expert))
    dtype = "F32" if row.float32 else "BF16"
    return TensorSpec(name, row.shape(config), dtype, part or row.part, row.meaning, row.optional)


def _runs(rows: list[Row]) -> Iterator[tuple[bool, list[Row]]]:
    """Consecutive rows, those of the numbered experts apart, so that an expert's tensors stay together."""
    run: list[Row] = []
    for row in rows:
        if run and ("{e}" in row.key) != ("{e}" in run[-1].key):
            yield "{e}" in run[-1].key, run
            run = []
        run.append(row)
    if run:
        yield "{e}" in run[-1].key, run
