"""Schemes chosen within a size: each part of each layer gets the bits that lower its measured error most per byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.filesize import decimal

from axk1.checkpoint.compressed import Matrix, Wanted, matrices, mixed_plan, part_of
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.names import layer_index
from axk1.checkpoint.source import Source
from axk1.checkpoint.streaming import Job, Piece, Reader, rows_of, source_pieces
from axk1.config import AXK1Config
from axk1.quantized.formats import Rounder
from axk1.quantized.plan import Plan, Scheme

LADDER = (Wanted("int3", 64), Wanted("int4", 64), Wanted("int8"))
"""What is chosen among, from fewest bits to most."""
EXPERTS, ROWS = 4, 128
"""Experts of a layer, and rows of a matrix, whose rounding is measured: a thousandth of K1."""
Unit = tuple[int, str]
"""A layer and a part of it: what gets a scheme of its own."""


@dataclass(frozen=True)
class Budget:
    """What a build may take."""

    bytes: int
    """Of all tensors, those that are not quantised included."""


@dataclass(frozen=True)
class Step:
    """A part of a layer in one of ``LADDER``."""

    wanted: Wanted
    bytes: int
    error: float
    """Squared error of rounding over squared weights, the mean of its matrices."""


def choose(steps: Mapping[Unit, Sequence[Step]], budget: int) -> dict[Unit, Step]:
    """A step for each unit, of ``budget`` bytes in all at most: from the smallest on, whatever lowers the sum of the
    units' errors most per byte that it adds, until nothing more fits.

    Raises:
        ValueError: the smallest of all are more.
    """
    chosen = {unit: min(of, key=lambda step: step.bytes) for unit, of in steps.items()}
    left = budget - sum(step.bytes for step in chosen.values())
    if left < 0:
        raise ValueError(f"they take {decimal(budget - left)} of the {decimal(budget)} that are left for them")
    while better := list(_better(steps, chosen, left)):
        _, unit, step = max(better, key=lambda found: found[0])
        left -= step.bytes - chosen[unit].bytes
        chosen[unit] = step
    return chosen


def _better(
    steps: Mapping[Unit, Sequence[Step]], chosen: dict[Unit, Step], left: int
) -> Iterator[tuple[float, Unit, Step]]:
    """Steps that fit and lower an error, and by how much per byte."""
    for unit, of in steps.items():
        now = chosen[unit]
        for step in of:
            more = step.bytes - now.bytes
            if 0 < more <= left and step.error < now.error:
                yield (now.error - step.error) / more, unit, step


def plan_within(
    opened: Source,
    config: AXK1Config,
    prefix: str,
    budget: Budget,
    rounder: Rounder,
    jobs: Callable[[Plan], list[Job]],
) -> Plan:
    """The plan for a source within ``budget``.

    Args:
        config: MTP layers counted as the source has them.
        jobs: what is written by a plan.

    Raises:
        CheckpointError: the budget is too small, or the source not finite.
        ValueError: no matrix whose width a group divides.
    """
    plans = [mixed_plan(config, lambda layer, part, wanted=wanted: wanted) for wanted in LADDER]
    bytes_of = [_bytes_by_unit(jobs(plan)) for plan in plans]
    errors = measured(opened, config, prefix, rounder)
    steps = {
        unit: [Step(wanted, of[unit], error) for wanted, of, error in zip(LADDER, bytes_of, errors[unit], strict=True)]
        for unit in errors
    }
    others = sum(size for unit, size in bytes_of[0].items() if unit not in errors)
    try:
        chosen = choose(steps, budget.bytes - others)
    except ValueError as error:
        least = others + sum(min(step.bytes for step in of) for of in steps.values())
        raise CheckpointError(
            f"does not go into {decimal(budget.bytes)}: with three bits for every matrix it takes {decimal(least)}.",
            opened.given,
        ) from error
    return mixed_plan(config, lambda layer, part: chosen[layer, part].wanted)


def measured(opened: Source, config: AXK1Config, prefix: str, rounder: Rounder) -> dict[Unit, list[float]]:
    """The relative squared error of each part of each layer in each of ``LADDER``, of some of its rows.

    Raises:
        CheckpointError: the source is not finite.
    """
    read, pieces = _unproven(opened), source_pieces(opened.stored, config)
    found: dict[Unit, list[list[float]]] = {}
    for matrix in matrices(config):
        names = [f"{prefix}layers.{matrix.layer}.{matrix.key.replace('{e}', str(e))}" for e in _some(matrix)]
        if names[0] not in pieces:
            continue
        weight = torch.cat([_middle(read, pieces[name], matrix.shape[0]) for name in names])
        found.setdefault((matrix.layer, matrix.part), []).append(
            [_error(weight, wanted.scheme(matrix.key, matrix.width), rounder, names[0], opened) for wanted in LADDER]
        )
    return {unit: [sum(each) / len(each) for each in zip(*of, strict=True)] for unit, of in found.items()}


def _unproven(opened: Source) -> Reader:
    """Reads ranges whose file's sum is not compared: that would take the whole file, and is done when it is rounded."""
    files: Any = {name: each.file for name, each in opened.files.items()}
    return Reader(replace(opened, files=files))


def _some(matrix: Matrix) -> list[int]:
    """Numbers of experts, evenly."""
    count = min(EXPERTS, matrix.count)
    return [i * matrix.count // count for i in range(count)]


def _middle(read: Reader, pieces: Sequence[Piece], rows: int) -> torch.Tensor:
    start = max(0, rows - ROWS) // 2
    return read(rows_of(pieces, start, min(rows, start + ROWS)))


def _error(weight: torch.Tensor, scheme: Scheme | None, rounder: Rounder, name: str, opened: Source) -> float:
    if scheme is None:
        return 0.0
    try:
        _, (error, size) = rounder(weight, scheme)
    except ValueError as problem:
        raise CheckpointError(f"tensor {name!r} {problem}.", opened.given, name) from problem
    return error / size if size else 0.0


def _bytes_by_unit(jobs: Sequence[Job]) -> dict[Unit | None, int]:
    """Bytes of what is quantised or may be, by unit; None: of all else."""
    found: dict[Unit | None, int] = {}
    for output in (output for job in jobs for output in job.outputs):
        layer = layer_index(output.name)
        key = output.name.split(f"layers.{layer}.", 1)[-1]
        part = part_of(key)
        unit = None if layer is None or part is None else (layer, part)
        found[unit] = found.get(unit, 0) + output.nbytes
    return found
