"""Rewrites a checkpoint with quantised weights, one matrix at a time (``docs/quantization.md``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from axk1.checkpoint.beside import quantized_card
from axk1.checkpoint.budget import Budget, plan_within
from axk1.checkpoint.compressed import check_not_quantized, is_matrix, make_plan, mixed_formats
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.files import Stored, load_config
from axk1.checkpoint.names import HEAD_KEYS, TensorSpec, expected_tensors
from axk1.checkpoint.recipe import Recipe
from axk1.checkpoint.shards import Output
from axk1.checkpoint.source import Source, open_source
from axk1.checkpoint.streaming import (
    Job,
    Made,
    Piece,
    Progress,
    Reader,
    check_room,
    source_pieces,
    write_checkpoint,
)
from axk1.checkpoint.verify import check_tensors, with_mtp_layers
from axk1.config import AXK1Config
from axk1.quantized.formats import Rounder, rounded
from axk1.quantized.plan import KINDS, Kind, Plan, Scheme

Squares = tuple[float, float]
"""The sums of the squared errors of rounding and of the squared weights."""
ACTIVATIONS: dict[Kind, str] = {"int8": "int8", "fp8": "fp8", "fp8-block": "fp8"}
"""What activations may be rounded to beside weights of a format."""
FITTED = "fitted."
"""How names begin of tensors that are rounded already; beside the source's, they could be the same."""


class Fitted(NamedTuple):
    """Matrices that are rounded elsewhere, before any is written."""

    round: Callable[[Source, Plan], Sequence[Path]]
    """Rounds those of a source by a plan; returns safetensors files with what is to be written of each, ``FITTED``
    before the names, and under ``squares`` in their metadata, as JSON, what ``Made.squares`` says of it."""
    identity: dict[str, Any]
    """What the result depends on beside the two."""


def quantize_checkpoint(
    source: Path | str,
    target: Path | str,
    scheme: Kind | Recipe | Budget,
    group_size: int | None = None,
    activations: str | None = None,
    max_shard_size: int | str = "5GB",
    progress: Progress | None = None,
    finished: Callable[[Path], object] | None = None,
    rounder: Rounder = rounded,
    fitted: Fitted | None = None,
) -> list[Path]:
    """Writes ``source``, in either layout, quantised to the folder ``target`` and returns its weight files.

    The source is a folder, a name on the hub or an HTTP address; of what is not here, ranges are read and nothing is
    kept. Memory stays at some matrices. A run that was cut off goes on with the same arguments: finished shards stay.
    Embedding, head, norms and routers keep their bits, beside fp8 ``kv_b_proj`` too.

    Args:
        scheme: one of ``KINDS``; a recipe, or a budget within which to choose by layer.
        group_size: of int4 and int3: weights that share a scale, 128, 64 or 32; None: 128 of int4, 64 of int3.
        activations: ``int8`` or ``fp8``, as the scheme, where activations are to be rounded as well; None: not.
        max_shard_size: bytes, or a text such as ``"5GB"``; a larger tensor gets a shard of its own.
        finished: called with each shard as soon as it is whole and everything it was made of verified; it may take the
            file away, to the hub for instance: the run goes on with the sum that was noted.
        rounder: what rounds a matrix; ``axk1.kernels.rounding.rounded`` gives the same bits in less time.
        fitted: what rounds all of them in place of ``rounder``.

    Raises:
        CheckpointError: the source is faulty, not finite or quantised already, or the target holds something else.
        ValueError: unknown or contradicting arguments.
    """
    if isinstance(scheme, Recipe | Budget):
        if group_size or activations:
            raise ValueError("A recipe or a budget says group sizes and activations itself; leave these arguments out.")
    elif scheme not in KINDS:
        raise ValueError(f"scheme={scheme!r} must be one of {', '.join(KINDS)}.")
    elif activations and ACTIVATIONS.get(scheme) != activations:
        raise ValueError(f"activations={activations!r} does not go with scheme={scheme!r}: 8 bits go with the same 8.")
    with open_source(source) as opened:
        stored, config = opened.stored, load_config(opened.folder)
        check_not_quantized(config, opened.folder, "quantised")
        found = check_tensors(stored, config)
        config = with_mtp_layers(config, found.mtp_layers)

        def jobs(plan: Plan) -> list[Job]:
            return matrix_jobs(stored, config, plan, found.prefix, rounder)

        if isinstance(scheme, Recipe):
            plan = scheme.plan(config)
        elif isinstance(scheme, Budget):
            plan = plan_within(opened, config, found.prefix, scheme, rounder, jobs)
        else:
            plan = make_plan(config, scheme, group_size, activations is not None)
        read, made, values = Reader(opened), jobs(plan), {"quantization_config": plan.to_dict()}
        if fitted is not None:
            check_room(Path(target), 2 * sum(job.nbytes for job in made))
            files = fitted.round(opened, plan)
            read = Reader(reduce(lambda source, file: source.with_file(file, lambda name: True), files, opened))
            made = matrix_jobs(read.source.stored, config, plan, found.prefix, rounder, _squares(files))
        mixed = [asdict(each) for each in mixed_formats(config, plan)]
        formats = ", ".join(dict.fromkeys(str(scheme) for _, scheme in plan.groups))
        wish = values | ({"formats": mixed} if mixed else {})
        return write_checkpoint(
            read,
            Path(target),
            made,
            wish | ({"calibration": fitted.identity} if fitted else {}),
            max_shard_size,
            values,
            progress,
            card=quantized_card(opened.folder, formats, name=opened.name),
            parameters=_parameters(stored, config, found.prefix),
            finished=finished,
            manifest=True,
        )


def _parameters(stored: Stored, config: AXK1Config, prefix: str) -> int:
    """Those of the source, in either layout."""
    sources = source_pieces(stored, config)
    own = sum(s.parameters for s in expected_tensors(config, "per_expert", prefix, head=False) if s.name in sources)
    return own + sum(stored.tensors[key].size for key in HEAD_KEYS if key in stored.tensors)


def _squares(files: Sequence[Path]) -> dict[str, Squares]:
    found: dict[str, Squares] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            found |= {name: (error, size) for name, (error, size) in json.loads(opened.metadata()["squares"]).items()}
    return found


def matrix_jobs(
    stored: Stored,
    config: AXK1Config,
    plan: Plan,
    prefix: str,
    rounder: Rounder,
    fitted: Mapping[str, Squares] | None = None,
) -> list[Job]:
    """What is to be written of the tensors ``stored`` by ``plan``, in the order of the table.

    Args:
        fitted: matrices whose values and scales are among ``stored``, and how far they are from the source.
    """
    sources, jobs = source_pieces(stored, config), []
    for spec in expected_tensors(config, "per_expert", prefix, head=False):
        if spec.name in sources:
            pieces = sources[spec.name]
            scheme = plan.scheme(spec.name.removesuffix(".weight")) if is_matrix(spec) else None
            if scheme and fitted is not None:
                jobs += _fitted(spec, scheme, stored, sources, fitted[spec.name])
            elif scheme:
                jobs += _matrix(spec, pieces, stored, scheme, rounder)
            else:
                jobs.append(_copy(spec.name, spec.shape, pieces, stored))
    heads = [key for key in HEAD_KEYS if key in stored.tensors]
    return [*jobs, *(_copy(key, stored.tensors[key].shape, sources[key], stored) for key in heads)]


def _copy(name: str, shape: tuple[int, ...], pieces: tuple[Piece, ...], stored: Stored) -> Job:
    return Job((Output(name, stored.tensors[pieces[0].key].dtype, shape),), pieces, lambda tensor: Made((tensor,)))


def _matrix(spec: TensorSpec, pieces: tuple[Piece, ...], stored: Stored, scheme: Scheme, rounder: Rounder) -> list[Job]:
    """The matrix and its scales of the same pieces; the shape, where the format has it, of none."""
    held = stored.tensors[pieces[0].key]
    base = spec.name.removesuffix("weight")
    # scales are of the source's type, as compressed-tensors has it; float16 would round small ones
    words = {"BF16": "F32" if held.dtype == "F16" else held.dtype}
    values, scales, *shapes = (
        Output(base + suffix, words.get(word, word), shape)
        for suffix, (word, shape) in scheme.tensors(*spec.shape).items()
    )

    def make(weight: torch.Tensor) -> Made:
        try:
            return Made(*rounder(weight, scheme))
        except ValueError as error:
            raise CheckpointError(f"tensor {pieces[0].key!r} {error}.", held.file, pieces[0].key) from error

    return [Job((values, scales), pieces, make), *_shapes(spec, shapes)]


def _shapes(spec: TensorSpec, outputs: Sequence[Output]) -> list[Job]:
    return [Job((shape,), (), lambda _: Made((torch.tensor(spec.shape),))) for shape in outputs]


def _fitted(
    spec: TensorSpec, scheme: Scheme, stored: Stored, sources: Mapping[str, tuple[Piece, ...]], squares: Squares
) -> list[Job]:
    """The matrix and its scales as they are stored, and the shape."""
    base = spec.name.removesuffix("weight")
    values, scales, *shapes = ((base + suffix, *held) for suffix, held in scheme.tensors(*spec.shape).items())
    of_values, of_scales = sources[FITTED + values[0]], sources[FITTED + scales[0]]
    share = (squares[0] / len(of_values), squares[1] / len(of_values))
    matrix = replace(_copy(values[0], values[2], of_values, stored), make=lambda tensor: Made((tensor,), share))
    noted = _shapes(spec, [Output(*shape) for shape in shapes])
    return [matrix, _copy(scales[0], scales[2], of_scales, stored), *noted]
