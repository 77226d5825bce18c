"""Describes a checkpoint or a preset: parameters by part, bytes, cache. From headers or the table of tensors only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from axk1.checkpoint.compressed import Sizes, check_method, held_specs, read_plan, stored_specs, sum_sizes
from axk1.checkpoint.files import Stored, load_config, open_checkpoint
from axk1.checkpoint.hub import HubId, hub_folder
from axk1.checkpoint.names import (
    HEAD_KEYS,
    PARTS,
    Layout,
    TensorSpec,
    detect_prefix,
    expected_tensors,
)
from axk1.checkpoint.verify import check_tensors, with_mtp_layers
from axk1.config import PRESETS, AXK1Config
from axk1.quantized.plan import Plan

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
    """Of the whole model: ``stored`` as the files are, the others as they would be."""
    bytes_per_token: dict[str, int]
    """Weights read to decode one token at batch 1: the active ones without the input embedding."""
    cache_bytes_per_token: Cache
    cache: tuple[Cache, ...]
    mtp_layers: int
    quantization: str | None
    """The formats of the matrices of a quantised checkpoint."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self)


def describe(name: str) -> Info:
    """Describes the preset ``name``, or the checkpoint in the folder ``name`` or of that name in the hub's cache.

    Raises:
        CheckpointError: a faulty checkpoint.
        ValueError: neither a preset nor a folder, nor a name of the hub whose checkpoint is here.
    """
    folder = Path(name)
    if name in PRESETS and not (folder / "config.json").is_file():
        config = AXK1Config.preset(name)
        specs = [spec for spec in expected_tensors(config) if not spec.name.endswith("e_score_correction_bias")]
        return _info(name, config, specs, "released", ("BF16",), 0, len(specs))
    if not folder.is_dir():
        wanted = HubId.parse(name)
        if wanted is None:
            raise ValueError(f"{name!r} is neither a folder nor a preset ({', '.join(sorted(PRESETS))}).")
        folder = hub_folder(wanted, download=False)  # a description is not worth a terabyte
    held = read_held(folder)
    stored, config, plan = held.stored, held.config, held.plan
    sizes = sum_sizes(config, held.specs)
    dtypes = tuple(sorted({tensor.dtype for tensor in stored.tensors.values()}))
    specs = held_specs(_specs(stored, config, held.layout), plan, stored.tensors)
    kinds = ", ".join(dict.fromkeys(str(scheme) for _, scheme in plan.groups)) if plan else None
    return _info(name, config, specs, held.layout, dtypes, len(stored.files), len(held.specs), sizes, kinds)


@dataclass(frozen=True)
class Held:
    """What the files of a checkpoint hold, from their headers."""

    config: AXK1Config
    """MTP layers counted as stored."""
    plan: Plan | None
    layout: Layout
    stored: Stored
    specs: tuple[TensorSpec, ...]
    """The tensors, repeated ones left out, each with the type and shape it is stored in."""


def read_held(folder: Path) -> Held:
    """Reads the headers of the checkpoint in ``folder``.

    Raises:
        CheckpointError: a faulty checkpoint.
    """
    config, stored = load_config(folder), open_checkpoint(folder)
    check_method(config, folder)
    found = check_tensors(stored, config)
    config, plan = with_mtp_layers(config, found.mtp_layers), read_plan(config, folder)
    specs = stored_specs(held_specs(_specs(stored, config, found.layout), plan, stored.tensors), plan)
    typed = tuple(replace(spec, dtype=stored.tensors[spec.name].dtype) for spec in specs)
    return Held(config, plan, found.layout, stored, typed)


def _specs(stored: Stored, config: AXK1Config, layout: Layout) -> list[TensorSpec]:
    """Expected tensors with the part of the model they belong to; heads in the shape they are stored in."""
    specs = expected_tensors(config, layout, detect_prefix(stored.tensors), head=False)
    heads = [key for key in HEAD_KEYS if key in stored.tensors]
    return [*specs, *(TensorSpec(key, stored.tensors[key].shape, "", "head", "") for key in heads)]


def _info(
    name: str,
    config: AXK1Config,
    specs: Iterable[TensorSpec],
    layout: Layout,
    dtypes: tuple[str, ...],
    files: int,
    tensors: int,
    stored: Sizes | None = None,
    quantization: str | None = None,
) -> Info:
    parts: dict[str, int] = dict.fromkeys(PARTS, 0)
    unused = 0
    for spec in specs:
        parts[spec.part] += spec.parameters
        if spec.optional and spec.part == "norms":  # the dense layers' post-MLP norm is stored, never applied
            unused += spec.parameters
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
        bytes={**({"stored": stored.total} if stored else {}), **{d: int(total * b / 8) for d, b in BITS.items()}},
        bytes_per_token={
            **({"stored": stored.per_token} if stored else {}),
            **{dtype: int(read * bits / 8) for dtype, bits in BITS.items()},
        },
        cache_bytes_per_token=_cache(config, 1),
        cache=tuple(_cache(config, context) for context in contexts),
        mtp_layers=config.num_nextn_predict_layers,
        quantization=quantization,
    )


def _cache(config: AXK1Config, context: int) -> Cache:
    values = 2 * config.num_hidden_layers * context  # two bytes a value
    latent = config.kv_lora_rank + config.qk_rope_head_dim
    expanded = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    return Cache(context, values * latent, values * expanded)
