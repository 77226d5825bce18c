"""Describes a checkpoint or a preset: parameters by part, bytes, cache. From headers or the table of tensors only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from axk1.checkpoint.files import Stored, load_config, open_checkpoint
from axk1.checkpoint.names import (
    HEAD_KEYS,
    PARTS,
    Layout,
    TensorSpec,
    detect_layout,
    detect_prefix,
    expected_tensors,
    is_ignored,
)
from axk1.checkpoint.verify import check_tensors, with_mtp_layers
from axk1.config import PRESETS, AXK1Config

BITS = {"fp32": 32.0, "bf16": 16.0, "fp8": 8.0, "int4": 4.5}
"""Bits a weight; int4 with one 16-bit scale for 32 weights."""
CONTEXTS = (4_096, 32_768, 131_072)


@dataclass(frozen=True)
class Cache:
    """Bytes of a bf16 key/value cache."""

    context: int
    latent: int
    """What A.X K1 caches: ``kv_lora_rank + qk_rope_head_dim`` values a token and layer."""
    expanded: int
    """What caching the heads' keys and values would take."""


@dataclass(frozen=True)
class Info:
    """What ``axk1 info`` shows."""

    name: str
    layout: Layout
    dtypes: tuple[str, ...]
    files: int
    tensors: int
    parts: dict[str, int]
    total: int
    active: int
    """Parameters that one token uses, input embedding included, MTP layers not."""
    active_without_embedding: int
    bytes: dict[str, int]
    bytes_per_token: dict[str, int]
    """Weights read to decode one token at batch 1: the active ones without the input embedding."""
    cache_bytes_per_token: Cache
    cache: tuple[Cache, ...]
    mtp_layers: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self)


def describe(name: str) -> Info:
    """Describes the preset ``name``, or the checkpoint in the folder ``name``.

    Raises:
        CheckpointError: a faulty checkpoint.
        ValueError: neither a preset nor a folder.
    """
    folder = Path(name)
    if name in PRESETS and not (folder / "config.json").is_file():
        config = AXK1Config.preset(name)
        specs = [spec for spec in expected_tensors(config) if not spec.name.endswith("e_score_correction_bias")]
        return _info(name, config, specs, "released", ("BF16",), 0)
    if not folder.is_dir():
        raise ValueError(f"{name!r} is neither a folder nor a preset ({', '.join(sorted(PRESETS))}).")
    config, stored = load_config(folder), open_checkpoint(folder)
    config = with_mtp_layers(config, check_tensors(stored, config).mtp_layers)
    dtypes = tuple(sorted({tensor.dtype for tensor in stored.tensors.values()}))
    return _info(name, config, _held(stored, config), detect_layout(stored.tensors), dtypes, len(stored.files))


def _held(stored: Stored, config: AXK1Config) -> list[TensorSpec]:
    """The stored tensors with the part of the model they belong to."""
    layout = detect_layout(stored.tensors)
    specs = {spec.name: spec for spec in expected_tensors(config, layout, detect_prefix(stored.tensors))}
    specs.update({key: TensorSpec(key, (), "", "head", "") for key in HEAD_KEYS})
    return [
        replace(specs[key], shape=tensor.shape, dtype=tensor.dtype)
        for key, tensor in stored.tensors.items()
        if not is_ignored(key)
    ]


def _info(
    name: str, config: AXK1Config, specs: Iterable[TensorSpec], layout: Layout, dtypes: tuple[str, ...], files: int
) -> Info:
    parts: dict[str, int] = dict.fromkeys(PARTS, 0)
    tensors = unused = 0
    for spec in specs:
        parts[spec.part] += spec.size
        tensors += 1
        if spec.optional and spec.part == "norms":  # the dense layers' post-MLP norm is stored, never applied
            unused += spec.size
    parts = {part: size for part, size in parts.items() if size}
    total = sum(parts.values())
    routed = parts.get("routed experts", 0)
    active = (
        total - unused - parts.get("MTP", 0) - routed + routed * config.num_experts_per_tok // config.n_routed_experts
    )
    read = active if config.tie_word_embeddings else active - parts["embedding"]
    longest = config.max_position_embeddings
    contexts = sorted({longest, *(context for context in CONTEXTS if context < longest)})
    return Info(
        name=name,
        layout=layout,
        dtypes=dtypes,
        files=files,
        tensors=tensors,
        parts=parts,
        total=total,
        active=active,
        active_without_embedding=read,
        bytes={dtype: int(total * bits / 8) for dtype, bits in BITS.items()},
        bytes_per_token={dtype: int(read * bits / 8) for dtype, bits in BITS.items()},
        cache_bytes_per_token=_cache(config, 1),
        cache=tuple(_cache(config, context) for context in contexts),
        mtp_layers=config.num_nextn_predict_layers,
    )


def _cache(config: AXK1Config, context: int) -> Cache:
    values = 2 * config.num_hidden_layers * context  # two bytes a value
    latent = config.kv_lora_rank + config.qk_rope_head_dim
    expanded = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    return Cache(context, values * latent, values * expanded)
