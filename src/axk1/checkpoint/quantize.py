"""Rewrites a checkpoint with quantised weights, one matrix at a time (``docs/quantization.md``)."""

from __future__ import annotations

from pathlib import Path

import torch

from axk1.checkpoint.beside import quantized_card
from axk1.checkpoint.compressed import GROUP_SIZES, check_not_quantized, is_matrix, make_plan
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.files import Stored, load_config, open_checkpoint
from axk1.checkpoint.names import HEAD_KEYS, TensorSpec, expected_tensors
from axk1.checkpoint.shards import Output
from axk1.checkpoint.streaming import Job, Piece, Progress, Reader, source_pieces, write_checkpoint
from axk1.checkpoint.verify import check_tensors, with_mtp_layers
from axk1.config import AXK1Config
from axk1.quantized.formats import quantize
from axk1.quantized.plan import KINDS, Kind, Plan, Scheme


def quantize_checkpoint(
    source: Path | str,
    target: Path | str,
    scheme: Kind,
    group_size: int = GROUP_SIZES[0],
    activations: str | None = None,
    max_shard_size: int | str = "5GB",
    progress: Progress | None = None,
) -> list[Path]:
    """Writes ``source``, in either layout, quantised to the folder ``target`` and returns its weight files.

    Memory stays at one matrix (or the embedding). A run that was cut off goes on with the same arguments: finished
    shards stay. Embedding, head, norms and routers keep their bits, beside fp8 ``kv_b_proj`` too.

    Args:
        scheme: ``int8``, ``int4`` or ``fp8``.
        group_size: int4: weights that share a scale, 128, 64 or 32.
        activations: ``int8`` or ``fp8``, as the scheme, where activations are to be rounded as well; None: not.
        max_shard_size: bytes, or a text such as ``"5GB"``; a larger tensor gets a shard of its own.

    Raises:
        CheckpointError: the source is faulty, not finite or quantised already, or the target holds something else.
        ValueError: unknown or contradicting arguments.
    """
    source, target = Path(source), Path(target)
    if scheme not in KINDS:
        raise ValueError(f"scheme={scheme!r} must be one of {', '.join(KINDS)}.")
    if activations not in (None, scheme) or (activations and scheme == "int4"):
        raise ValueError(f"activations={activations!r} does not go with scheme={scheme!r}: 8 bits go with the same 8.")
    stored, config = open_checkpoint(source), load_config(source)
    check_not_quantized(config, source, "quantised")
    found = check_tensors(stored, config)
    config = with_mtp_layers(config, found.mtp_layers)
    plan = make_plan(config, scheme, group_size, activations is not None)
    jobs = _jobs(stored, config, plan, found.prefix)
    values = {"quantization_config": plan.to_dict()}
    formats = ", ".join(dict.fromkeys(str(scheme) for _, scheme in plan.groups))
    return write_checkpoint(
        source,
        target,
        jobs,
        Reader(stored),
        values,
        max_shard_size,
        values,
        progress,
        card=quantized_card(source, formats),
        parameters=_parameters(stored, config, found.prefix),
    )


def _parameters(stored: Stored, config: AXK1Config, prefix: str) -> int:
    """Those of the source, in either layout."""
    sources = source_pieces(stored, config)
    own = sum(s.parameters for s in expected_tensors(config, "per_expert", prefix, head=False) if s.name in sources)
    return own + sum(stored.tensors[key].size for key in HEAD_KEYS if key in stored.tensors)


def _jobs(stored: Stored, config: AXK1Config, plan: Plan, prefix: str) -> list[Job]:
    sources, jobs = source_pieces(stored, config), []
    for spec in expected_tensors(config, "per_expert", prefix, head=False):
        if spec.name in sources:
            (piece,) = sources[spec.name]
            scheme = plan.scheme(spec.name.removesuffix(".weight")) if is_matrix(spec) else None
            jobs.append(_matrix(spec, piece, stored, scheme) if scheme else _copy(spec.name, spec.shape, piece, stored))
    heads = [key for key in HEAD_KEYS if key in stored.tensors]
    return [*jobs, *(_copy(key, stored.tensors[key].shape, Piece(key), stored) for key in heads)]


def _copy(name: str, shape: tuple[int, ...], piece: Piece, stored: Stored) -> Job:
    return Job((Output(name, stored.tensors[piece.key].dtype, shape),), (piece,), lambda tensor: (tensor,))


def _matrix(spec: TensorSpec, piece: Piece, stored: Stored, scheme: Scheme) -> Job:
    held = stored.tensors[piece.key]
    base = spec.name.removesuffix("weight")
    # scales are of the source's type, as compressed-tensors has it; float16 would round small ones
    words = {"BF16": "F32" if held.dtype == "F16" else held.dtype}
    outputs = tuple(
        Output(base + suffix, words.get(word, word), shape)
        for suffix, (word, shape) in scheme.tensors(*spec.shape).items()
    )

    def make(weight: torch.Tensor) -> list[torch.Tensor]:
        try:
            values, scale = quantize(weight, scheme)
        except ValueError as error:
            raise CheckpointError(f"tensor {piece.key!r} {error}.", held.file, piece.key) from error
        return [values, scale, torch.tensor(spec.shape)][: len(outputs)]

    return Job(outputs, (piece,), make)
