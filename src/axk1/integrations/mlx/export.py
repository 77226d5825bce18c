"""Writes a checkpoint as ``mlx_lm.convert --quantize`` would, one matrix of one expert at a time.

mlx-lm itself decides what is quantised and how: its own functions do that to a model without values, whose names and
shapes are then filled from the source.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from axk1.checkpoint.beside import quantized_card
from axk1.checkpoint.compressed import check_not_quantized
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.files import Stored, load_config
from axk1.checkpoint.names import ROUTER_BIAS, expected_tensors
from axk1.checkpoint.reading import read_json
from axk1.checkpoint.shards import Output
from axk1.checkpoint.source import open_source
from axk1.checkpoint.streaming import Job, Made, Piece, Progress, Reader, rows_of, source_pieces, write_checkpoint
from axk1.checkpoint.verify import check_tensors
from axk1.config import AXK1Config
from axk1.integrations.mlx import register

BITS = (4, 5, 6, 8, 3, 2)
GROUP_SIZES = (64, 32, 128)
RECIPES = ("mixed_4_6", "mixed_3_6", "mixed_3_4", "mixed_2_6")
"""mlx-lm's own: more bits for the head, and for ``down_proj`` of some layers."""
CACHE = 2**28
"""Bytes of freed memory that MLX may keep for later."""
Transform = Callable[[torch.Tensor], torch.Tensor]


def export_mlx(
    source: Path | str,
    target: Path | str,
    bits: int = BITS[0],
    group_size: int = GROUP_SIZES[0],
    mixed: str | None = None,
    max_shard_size: int | str = "5GB",
    progress: Progress | None = None,
) -> list[Path]:
    """Writes ``source``, in either layout, quantised for mlx-lm to the folder ``target``; returns its weight files.

    Memory stays at one matrix. A run that was cut off goes on with the same arguments: finished
    shards stay. Norms and routers keep their bits; MTP modules, which mlx-lm does not run, are left out.

    Args:
        source: a folder, a name on the hub or an HTTP address.
        bits: of a weight: 4, 5, 6, 8, 3 or 2; with ``mixed`` the recipe's.
        group_size: weights that share a scale and a bias, 64, 32 or 128; rows that it does not divide stay as they are.
        mixed: a recipe of mlx-lm, such as ``mixed_4_6``.
        max_shard_size: bytes, or a text such as ``"5GB"``; a larger tensor gets a shard of its own.

    Raises:
        CheckpointError: the source is faulty, not finite or quantised already, or the target holds something else.
        ValueError: an unknown argument, no mlx-lm, one that was not tested, or a model that it cannot run.
    """
    for name, value, known in (("bits", bits, BITS), ("group_size", group_size, GROUP_SIZES)):
        if value not in known:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(map(str, known))}.")
    if mixed is not None and mixed not in RECIPES:
        raise ValueError(f"mixed={mixed!r} must be one of {', '.join(RECIPES)}.")
    with open_source(source) as opened:
        stored, config = opened.stored, load_config(opened.folder)
        check_not_quantized(config, opened.folder, "exported")
        found = check_tensors(stored, config)
        if not found.prefix or "lm_head.weight" not in stored.tensors:
            raise CheckpointError("holds no language model with a head, which mlx-lm needs.", opened.given)
        register()
        model, quantization = _quantized(read_json(opened.folder / "config.json"), bits, group_size, mixed)
        formats = f"MLX {mixed or f'{bits} bits'}, groups of {group_size}"
        return write_checkpoint(
            Reader(opened),
            Path(target),
            _jobs(model, stored, config),
            {"mlx": quantization},
            max_shard_size,
            {"quantization": quantization, "quantization_config": quantization},
            progress,
            card=quantized_card(opened.folder, formats, "axk1 export mlx", "mlx", opened.name),
            parameters=sum(
                spec.parameters for spec in expected_tensors(config) if spec.part != "MTP" and not spec.optional
            ),
            workers=0,  # MLX computes in the thread that loaded it
        )


def exported_bytes(
    values: dict[str, Any], bits: int, group_size: int = GROUP_SIZES[0], mixed: str | None = None
) -> int:
    """Bytes of all tensors that `export_mlx` writes of a bf16 model whose ``config.json`` holds ``values``."""
    from mlx.utils import tree_flatten

    register()
    model, _ = _quantized(values, bits, group_size, mixed)
    width = {"uint32": 4, "float32": 2}  # a model without values has fp32 for every float
    return sum(
        value.size * (4 if name.endswith(ROUTER_BIAS) else width[str(value.dtype).rpartition(".")[2]])
        for name, value in tree_flatten(model.parameters())
    )


def _quantized(values: dict[str, Any], bits: int, group_size: int, mixed: str | None) -> tuple[Any, dict[str, Any]]:
    """The model as mlx-lm quantises it, none of whose values is ever computed, and what goes into ``config.json``."""
    import mlx.core as mx
    from mlx_lm.convert import mixed_quant_predicate_builder
    from mlx_lm.models.axk1 import Model, ModelArgs
    from mlx_lm.utils import quantize_model

    mx.set_cache_limit(CACHE)
    model = Model(ModelArgs.from_dict(values))
    predicate = mixed_quant_predicate_builder(mixed, model, group_size) if mixed else None
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the mean of bits
        model, config = quantize_model(model, {}, group_size, bits, quant_predicate=predicate)
    return model, config["quantization"]


def _jobs(model: Any, stored: Stored, config: AXK1Config) -> list[Job]:
    from mlx.utils import tree_flatten

    sources, modules = source_pieces(stored, config), dict(model.named_modules())
    shapes = [(name, tuple(value.shape)) for name, value in tree_flatten(model.parameters())]
    jobs = []
    for path, run in groupby(shapes, lambda item: item[0].rpartition(".")[0]):
        held = {name.rpartition(".")[2]: shape for name, shape in run}
        if "scales" in held:
            packed = {key: held.pop(key) for key in ("weight", "scales", "biases")}
            jobs.append(_matrix(path, packed, modules[path], sources, stored, config))
        jobs += [_copy(path, key, shape, sources, stored, config) for key, shape in held.items()]
    return jobs


def _matrix(
    path: str,
    shapes: dict[str, tuple[int, ...]],
    module: Any,
    sources: dict[str, tuple[Piece, ...]],
    stored: Stored,
    config: AXK1Config,
) -> Job:
    pieces, transform = _origin(path, sources, config)
    dtype = stored.tensors[pieces[0].key].dtype
    outputs = tuple(Output(f"{path}.{key}", "U32" if key == "weight" else dtype, s) for key, s in shapes.items())

    def make(weight: torch.Tensor) -> Made:
        if not weight.isfinite().all():
            raise CheckpointError(f"a tensor of {path!r} is not finite.", stored.tensors[pieces[0].key].file, path)
        return Made(packed(transform(weight), module.bits, module.group_size))

    return Job(outputs, pieces, make)


def packed(weight: torch.Tensor, bits: int, group_size: int) -> list[torch.Tensor]:
    """``weight`` ``[..., D]`` as MLX packs it: words ``[..., D bits / 32]``, scales and biases ``[..., D / group]``."""
    import mlx.core as mx
    import numpy as np

    half = weight.dtype is torch.bfloat16  # which NumPy does not have
    array = mx.array(weight.view(torch.uint16).numpy()).view(mx.bfloat16) if half else mx.array(weight.numpy())
    words, *rest = mx.quantize(array, group_size, bits)
    scales = [torch.from_numpy(np.array(part.view(mx.uint16) if half else part)) for part in rest]
    return [torch.from_numpy(np.array(words)), *(part.view(weight.dtype) for part in scales)]


def _copy(
    path: str,
    key: str,
    shape: tuple[int, ...],
    sources: dict[str, tuple[Piece, ...]],
    stored: Stored,
    config: AXK1Config,
) -> Job:
    name = f"{path}.{key}"
    if key == ROUTER_BIAS and name not in sources:  # zero, as mlx-lm's own conversion writes
        return Job((Output(name, "F32", shape),), (), lambda _: Made((torch.zeros(shape),)))
    pieces, transform = _origin(path, sources, config) if key == "weight" else (sources[name], _unchanged)
    output = Output(name, stored.tensors[pieces[0].key].dtype, shape)
    return Job((output,), pieces, lambda tensor: Made((transform(tensor),)))


def _origin(
    path: str, sources: dict[str, tuple[Piece, ...]], config: AXK1Config
) -> tuple[tuple[Piece, ...], Transform]:
    """The source's pieces of the matrix of the module ``path``, in their order, and what is done to each."""
    layer, _, module = path.rpartition(".")
    if layer.endswith(".mlp.switch_mlp"):
        experts = layer.removesuffix("switch_mlp") + "experts"
        names = [f"{experts}.{expert}.{module}.weight" for expert in range(config.n_routed_experts)]
        return tuple(piece for name in names for piece in sources[name]), _unchanged
    if module in ("embed_q", "unembed_out"):
        whole = rows_of(sources[f"{layer}.kv_b_proj.weight"], 0, None)  # its heads are taken apart
        return (whole,), lambda weight: _absorbed(weight, module, config)
    return sources[f"{path}.weight"], _unchanged


def _unchanged(weight: torch.Tensor) -> torch.Tensor:
    return weight


def _absorbed(weight: torch.Tensor, module: str, config: AXK1Config) -> torch.Tensor:
    """Of ``kv_b_proj`` what turns queries into latents, ``[H, C, N]``, or latents into values, ``[H, V, C]``."""
    heads = weight.view(config.num_attention_heads, -1, config.kv_lora_rank)
    keys, values = heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
    return (keys.transpose(1, 2) if module == "embed_q" else values).contiguous()
