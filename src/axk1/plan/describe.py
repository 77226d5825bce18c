"""Describes a checkpoint or a preset: parameters by part, bytes, cache. From headers or the table of tensors only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from axk1.checkpoint.compressed import PartFormat, held_specs, mixed_formats
from axk1.checkpoint.held import model_specs, read_held
from axk1.checkpoint.hub import HubId, hub_folder
from axk1.checkpoint.names import PARTS, Layout, TensorSpec
from axk1.config import PRESETS, AXK1Config
from axk1.plan.bounds import expanded_bytes, latent_bytes
from axk1.plan.formats import plain_specs, stored_as
from axk1.plan.weights import Sizes, active_parameters, sum_sizes

FORMATS = ("fp32", "bf16", "fp8", "int8", "int4", "int3")
"""What an unquantised model is also sized in, as ``axk1 quantize`` writes it (fp32: twice bf16)."""
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
    formats: tuple[PartFormat, ...] = ()
    """By part and layer, where they are mixed by layer."""

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
        specs = list(plain_specs(config))
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
    specs = held_specs(model_specs(stored, config, held.layout), plan, stored.tensors)
    kinds = ", ".join(dict.fromkeys(str(scheme) for _, scheme in plan.groups)) if plan else None
    info = _info(name, config, specs, held.layout, dtypes, len(stored.files), len(held.specs), sizes, kinds)
    return replace(info, formats=mixed_formats(config, plan) if plan else ())


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
    specs = list(specs)
    for spec in specs:
        parts[spec.part] += spec.parameters
    parts = {part: size for part, size in parts.items() if size}
    total = sum(parts.values())
    read = active_parameters(config, specs)
    active = read if config.tie_word_embeddings else read + parts["embedding"]
    sizes = ({"stored": stored} if stored else {}) | dict(_other_sizes(config))
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
        bytes={name: size.total for name, size in sizes.items()},
        bytes_per_token={name: size.per_token for name, size in sizes.items()},
        cache_bytes_per_token=_cache(config, 1),
        cache=tuple(_cache(config, context) for context in contexts),
        mtp_layers=config.num_nextn_predict_layers,
        quantization=quantization,
    )


def _other_sizes(config: AXK1Config) -> Iterator[tuple[str, Sizes]]:
    for name in FORMATS:
        with contextlib.suppress(ValueError):  # no matrix whose width a group divides
            yield name, sum_sizes(config, stored_as(config, name).specs)


def _cache(config: AXK1Config, context: int) -> Cache:
    return Cache(context, latent_bytes(config) * context, expanded_bytes(config) * context)
