"""Checks a checkpoint against its configuration: from headers before loading, for NaN and infinity on request."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from axk1.checkpoint.compressed import check_method, held_specs, read_plan, stored_specs
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.files import Stored, StoredTensor, load_config, open_checkpoint, read_headers
from axk1.checkpoint.journal import check_manifest
from axk1.checkpoint.names import (
    HEAD_KEYS,
    Layout,
    TensorSpec,
    detect_layout,
    detect_prefix,
    expected_tensors,
    fused_name,
    is_ignored,
    layer_index,
)
from axk1.checkpoint.sums import check_sums
from axk1.config import AXK1Config
from axk1.quantized.plan import PACKED

if TYPE_CHECKING:
    from axk1.quantized.plan import Plan

_FLOATS = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16, "F64": torch.float64}
FLOATS = tuple(_FLOATS)
Progress = Callable[[int, int], None]
"""Called with (values read, all values) while tensors are read."""


@dataclass(frozen=True)
class Found:
    """What a checkpoint turned out to be."""

    layout: Layout
    prefix: str
    mtp_layers: int
    """MTP layers in the file; those beyond the configuration's are left out when it is loaded."""
    absent: tuple[str, ...]
    """Optional tensors that the file does not hold and that need no training: the heads are not among them."""


@dataclass(frozen=True)
class Report:
    """The result of ``verify_checkpoint``."""

    path: str
    layout: Layout
    files: int
    tensors: int
    parameters: int
    """Of the model, as ``axk1 info`` counts them; of a single file, its values."""
    mtp_layers: int
    dtypes: dict[str, int]
    finite: bool | None
    """``None`` where values were not read."""
    sums: int
    """Files that have the SHA-256 that the hub or a manifest has noted; 0 where none is or values were not read."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self)


def check_tensors(stored: Stored, config: AXK1Config, shapes: bool = True) -> Found:
    """Compares headers with the tensors that ``config`` asks for.

    Allowed, as in transformers: a trunk without head and without ``model.``, classification heads beside or instead of
    ``lm_head``, the optional tensors of the table, and more MTP layers than the configuration has, or none at all.

    Args:
        shapes: ``False`` leaves shapes to transformers (``ignore_mismatched_sizes=True``).

    Raises:
        CheckpointError: a missing, surplus or misshapen tensor, or one that is no float; the first, and how many.
    """
    plan = read_plan(config, stored.files[0].parent)
    layout = detect_layout(stored.tensors, _where(stored))
    layout = "per_expert" if plan else layout
    prefix = detect_prefix(stored.tensors)
    mtp = _mtp_layers(stored.tensors, config)
    specs = _specs(stored, with_mtp_layers(config, mtp), layout, prefix, plan)
    _check_missing(stored, specs)
    _check_surplus(stored, specs)
    for name, spec in specs.items():
        if name in stored.tensors:
            _check_one(name, stored.tensors[name], spec, shapes)
    absent = tuple(name for name in specs if name not in stored.tensors and name not in HEAD_KEYS)
    return Found(layout, prefix, mtp, absent)


def verify_checkpoint(
    path: Path | str, finite: bool = True, progress: Progress | None = None, variant: str | None = None
) -> Report:
    """Checks a local checkpoint completely, one tensor in memory at a time.

    Args:
        path: folder with ``config.json`` and safetensors files, or one such file, which is checked by itself.
        finite: also read every value, look for NaN and infinity, and compare the files with the sums that a download
            from the hub left beside them.

    Raises:
        CheckpointError: the first fault found; names file and key.
    """
    folder = Path(path)
    if folder.is_file():
        return _verify_file(folder, finite, progress)
    config = load_config(folder)
    check_method(config, folder)
    stored = open_checkpoint(folder, variant=variant)
    found = check_tensors(stored, config)
    expected = expected_tensors(with_mtp_layers(config, found.mtp_layers), found.layout, found.prefix)
    heads = [stored.tensors[key].size for key in HEAD_KEYS[1:] if key in stored.tensors]
    own = held_specs(expected, read_plan(config, folder), stored.tensors)
    parameters = sum(spec.parameters for spec in own) + sum(heads)
    return _report(folder, stored, found.layout, parameters, found.mtp_layers, finite, progress)


def _verify_file(file: Path, finite: bool, progress: Progress | None) -> Report:
    """One file by itself: its header, its length, its values, its sum."""
    stored = read_headers([file])
    values = sum(tensor.size for tensor in stored.tensors.values())
    return _report(file, stored, detect_layout(stored.tensors, file), values, 0, finite, progress)


def _report(
    path: Path, stored: Stored, layout: Layout, parameters: int, mtp: int, finite: bool, progress: Progress | None
) -> Report:
    sizes = {name: tensor.size for name, tensor in stored.tensors.items()}
    if finite:
        _check_values(stored, sizes, progress)
    sums = check_sums(stored.files) + check_manifest(path) if finite else 0
    dtypes: dict[str, int] = {}
    for name, tensor in stored.tensors.items():
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + sizes[name]
    files, tensors = len(stored.files), len(stored.tensors)
    return Report(str(path), layout, files, tensors, parameters, mtp, dtypes, True if finite else None, sums)


def check_loaded(state_dict: Mapping[str, torch.Tensor], stored: Stored, everything: bool = False) -> None:
    """Looks for NaN and infinity in loaded tensors: in those whose number format became narrower, or in all.

    A tensor's sum is finite only if all its values are, and costs no second copy; where it is not, the values decide.

    Args:
        everything: reads every tensor, those offloaded to disk from their files.

    Raises:
        CheckpointError: names the file and the stored tensor.
    """
    sources = _sources(stored.tensors)
    for name, tensor in state_dict.items():
        keys = sources.get(_bare(name), [])
        if not keys or not (everything or _is_narrower(tensor, stored.tensors[keys[0]])):
            continue
        if tensor.device.type != "meta" and _sum_is_finite(tensor):
            continue
        for key in keys:
            _check_stored(stored.tensors[key].file, key)
        if tensor.device.type != "meta" and not tensor.float().isfinite().all():
            file = stored.tensors[keys[0]].file
            raise CheckpointError(f"tensor {keys[0]!r} overflows in {tensor.dtype}: load in bfloat16.", file, keys[0])


def with_mtp_layers(config: AXK1Config, layers: int) -> AXK1Config:
    """``config`` with another number of MTP layers."""
    config = copy.copy(config)
    config.num_nextn_predict_layers = layers
    return config


def _mtp_layers(names: Iterable[str], config: AXK1Config) -> int:
    """MTP layers to expect: those in the file, at least the configuration's, but none where the file holds none."""
    first = config.num_hidden_layers
    beyond = [(index, name) for name in names if (index := layer_index(name) or 0) >= first and not is_ignored(name)]
    if not beyond:
        return 0
    complete = {index for index, name in beyond if name.endswith(("eh_proj.weight", "eh_proj.weight_packed"))}
    held = next(count for count in itertools.count() if first + count not in complete)
    return max(held, config.num_nextn_predict_layers)


def _specs(stored: Stored, config: AXK1Config, layout: Layout, prefix: str, plan: Plan | None) -> dict[str, TensorSpec]:
    """Expected tensors by name. The head may be absent from a bare trunk and beside a classification head."""
    specs = {spec.name: spec for spec in stored_specs(expected_tensors(config, layout, prefix), plan)}
    head = specs.get(HEAD_KEYS[0])
    if head and (not prefix or any(key in stored.tensors for key in HEAD_KEYS[1:])):
        specs[head.name] = replace(head, optional=True)
    return specs


def _check_missing(stored: Stored, specs: dict[str, TensorSpec]) -> None:
    missing = [name for name, spec in specs.items() if not spec.optional and name not in stored.tensors]
    if missing:
        raise CheckpointError(
            f"lacks tensor {missing[0]!r}{_more(missing)}, which the configuration asks for. Download the checkpoint "
            "again, or give the config.json that belongs to it.",
            _where(stored),
            missing[0],
        )


def _check_surplus(stored: Stored, specs: dict[str, TensorSpec]) -> None:
    surplus = [name for name in stored.tensors if name not in specs and name not in HEAD_KEYS and not is_ignored(name)]
    if surplus:
        raise CheckpointError(
            f"holds tensor {surplus[0]!r}{_more(surplus)}, which the configuration has no place for. Give the "
            "config.json that belongs to this checkpoint.",
            stored.tensors[surplus[0]].file,
            surplus[0],
        )


def _check_one(name: str, tensor: StoredTensor, spec: TensorSpec, shapes: bool) -> None:
    allowed = FLOATS if spec.dtype in FLOATS else (spec.dtype,)
    if tensor.dtype not in allowed:
        raise CheckpointError(
            f"tensor {name!r} is stored as {tensor.dtype}, expected one of {', '.join(allowed)}. Quantised files need "
            "their 'quantization_config' in config.json.",
            tensor.file,
            name,
        )
    if shapes and tensor.shape != spec.shape:
        raise CheckpointError(
            f"tensor {name!r} has shape {list(tensor.shape)}, the configuration asks for {list(spec.shape)}. Give the "
            "config.json that belongs to this checkpoint.",
            tensor.file,
            name,
        )


def _check_values(stored: Stored, sizes: Mapping[str, int], progress: Progress | None) -> None:
    done, total = 0, sum(sizes.values())
    for name, tensor in stored.tensors.items():
        packed = stored.tensors.get(name.removesuffix("_shape") + "_packed")
        if packed and name.endswith(".weight_shape"):
            _check_shape(tensor.file, name, packed)
        _check_stored(tensor.file, name)
        done += sizes[name]
        if progress:
            progress(done, total)


def _check_stored(file: Path, key: str) -> None:
    """Reads one tensor, a slice of its first dimension at a time where it is a stack of experts."""
    with safe_open(file, framework="pt") as opened:
        view = opened.get_slice(key)
        shape = view.get_shape()
        blocks = (view[i] for i in range(shape[0])) if len(shape) == 3 else (opened.get_tensor(key),)
        for block in blocks:
            if not _sum_is_finite(block) and not (values := block.float()).isfinite().all():
                word = "NaN" if values.isnan().any() else "infinity"
                raise CheckpointError(f"tensor {key!r} holds {word}. Download the file again.", file, key)


def _check_shape(file: Path, key: str, packed: StoredTensor) -> None:
    """The shape beside a packed weight is only a note, and has to be the right one."""
    with safe_open(file, framework="pt") as opened:
        noted = opened.get_tensor(key).tolist()
    per_item = PACKED.get(packed.dtype, 1)
    if noted != [packed.shape[0], packed.shape[1] * per_item]:
        held = f"{list(packed.shape)} {packed.dtype}"
        raise CheckpointError(f"tensor {key!r} says {noted}, but its weight is {held}.", file, key)


def _sum_is_finite(tensor: torch.Tensor) -> bool:
    if tensor.itemsize == 1 and tensor.is_floating_point():  # fp8 has no infinity, and no sum: NaN is all ones
        return not bool((tensor.view(torch.uint8) & 127 == 127).any())
    return not tensor.is_floating_point() or bool(tensor.sum().isfinite())


def _is_narrower(tensor: torch.Tensor, stored: StoredTensor) -> bool:
    """Whether finite values of the file may be infinite in memory."""
    held = _FLOATS.get(stored.dtype)
    if held is None or tensor.device.type == "meta" or not tensor.is_floating_point():
        return False
    return torch.finfo(tensor.dtype).max < torch.finfo(held).max / 2  # bfloat16 and float32 count as equally wide


def _sources(names: Mapping[str, StoredTensor]) -> dict[str, list[str]]:
    """Stored keys by the model tensor they fill, ``model.`` left out on both sides."""
    sources: dict[str, list[str]] = {}
    for key in names:
        sources.setdefault(_bare(fused_name(key) or key), []).append(key)
    return sources


def _bare(name: str) -> str:
    return name.removeprefix("model.")


def _where(stored: Stored) -> Path:
    return stored.files[0] if len(stored.files) == 1 else stored.files[0].parent


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
