"""Whether a quantised build is its source's: every matrix is rounded again, and its bits or its error compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from axk1.checkpoint.compressed import check_not_quantized, read_plan
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.files import load_config
from axk1.checkpoint.journal import rounded_by_this_version
from axk1.checkpoint.quantize import matrix_jobs
from axk1.checkpoint.shards import DTYPES, Output
from axk1.checkpoint.source import Source, open_source
from axk1.checkpoint.streaming import Job, Made, Progress, Reader, check_memory
from axk1.checkpoint.verify import check_tensors, with_mtp_layers
from axk1.checkpoint.writer import converted, cores, make_all
from axk1.quantized.formats import Rounder, dequantize, rounded

LIMIT = 3.0
"""Times the error of this version's rounding that a row of a build by another tool may have. Rounding without a
searched clip has up to 1.6 times; a row of another expert has about 17 times in int4, and more in eight bits."""


@dataclass(frozen=True)
class Comparison:
    """What a build is beside its source."""

    source: str
    identical: int
    """Tensors with the bits that this version writes, those that are copied included."""
    otherwise: int
    """Matrices that were rounded otherwise, all rows within ``LIMIT``."""
    worst: float
    """The largest error of a row among them, in times of what this version's rounding has; 0 where there is none."""


def compare_with_source(
    build: Path | str,
    source: Path | str,
    progress: Progress | None = None,
    rounder: Rounder = rounded,
    workers: int | None = None,
) -> Comparison:
    """Compares the quantised checkpoint ``build`` with ``source``, both a folder, a name on the hub or an HTTP address.

    A build that this version made without texts must have its bits. Of another one, copied tensors must have the
    source's bits, and each row of a matrix at most ``LIMIT`` times the error that rounding it here has.

    Args:
        rounder, workers: as of ``quantize_checkpoint`` and ``write_checkpoint``.

    Raises:
        CheckpointError: a build that is not of this source, naming the tensor; or one of the two is faulty.
    """
    with open_source(build) as built, open_source(source) as opened:
        plan = read_plan(load_config(built.folder), built.folder)
        if plan is None:
            raise CheckpointError("is not quantised, so there is no rounding to compare.", built.given)
        config = load_config(opened.folder)
        check_not_quantized(config, opened.folder, "compared with")
        found = check_tensors(opened.stored, config)
        config = with_mtp_layers(config, found.mtp_layers)
        jobs = matrix_jobs(opened.stored, config, plan, found.prefix, rounder)
        _check_outputs(built, [output for job in jobs for output in job.outputs])
        comparing = _Comparing(built, opened, exact=rounded_by_this_version(built.folder))
        return comparing.run(jobs, cores() if workers is None else workers, progress)


def _check_outputs(built: Source, outputs: Sequence[Output]) -> None:
    for output in outputs:
        held = built.stored.tensors.get(output.name)
        if held is None or (held.dtype, held.shape) != (output.dtype, output.shape):
            what = "is missing" if held is None else f"is {held.dtype} {list(held.shape)}"
            raise CheckpointError(
                f"tensor {output.name!r} {what}, and would be {output.dtype} {list(output.shape)} of this source.",
                built.given,
                output.name,
            )


class _Comparing:
    def __init__(self, built: Source, source: Source, exact: bool) -> None:
        self.built, self.source, self.exact = built, source, exact
        self.at: dict[str, int] = {}  # bytes of each tensor of the build that are compared
        self.differing: set[str] = set()
        self.worst = 0.0

    def run(self, jobs: Sequence[Job], workers: int, progress: Progress | None) -> Comparison:
        read = Reader(self.source)
        check_memory(read, jobs, workers)
        done, total = 0, sum(read.nbytes(piece) for job in jobs for piece in job.pieces)
        for job, piece, made in make_all(read, [_with_weight(job) for job in jobs], workers):
            self._compare(job, made)
            done += read.nbytes(piece) if piece else 0
            if progress:
                progress(done, total)
        self.source.finish(set())
        self.built.finish(set())
        tensors = sum(len(job.outputs) for job in jobs)
        return Comparison(self.source.given, tensors - len(self.differing), len(self.differing), self.worst)

    def _compare(self, job: Job, made: Made) -> None:
        *parts, weight = made.parts
        wanted = [converted(part, output) for part, output in zip(parts, job.outputs, strict=True)]
        held = [self._next(output.name, part) for output, part in zip(job.outputs, wanted, strict=True)]
        if all(map(_same_bits, wanted, held)):
            return
        name = job.outputs[0].name
        if len(held) == 1 or self.exact:
            origin = "this version makes of" if len(held) > 1 else "stands in"
            raise CheckpointError(
                f"tensor {name!r} is not what {origin} {self.source.given}.",
                self.built.stored.tensors[name].file,
                name,
            )
        self.differing.update(output.name for output in job.outputs)
        self._compare_rows(name, weight.float(), wanted, held)

    def _next(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """The build's next part of a tensor, in the type and shape of ``like``."""
        part = torch.empty(like.shape, dtype=DTYPES[self.built.stored.tensors[name].dtype])
        start = self.at.get(name, 0)
        self.built.read_into(name, start, part.flatten().view(torch.uint8).numpy().data)
        self.at[name] = start + part.nbytes
        return part

    def _compare_rows(
        self, name: str, weight: torch.Tensor, wanted: Sequence[torch.Tensor], held: Sequence[torch.Tensor]
    ) -> None:
        errors = (dequantize(values, scale) - weight for values, scale in (wanted, held))
        ours, theirs = (error.square().sum(-1).sqrt() for error in errors)
        ratio = (theirs / ours.clamp(min=1e-12 * weight.abs().max().clamp(min=1e-30))).max().item()
        if not math.isfinite(ratio) or ratio > LIMIT:
            raise CheckpointError(
                f"tensor {name!r} has a row that is {ratio:,.1f} times as far from {self.source.given} as rounding "
                "takes it: it is no rounding of this source.",
                self.built.stored.tensors[name].file,
                name,
            )
        self.worst = max(self.worst, ratio)


def _with_weight(job: Job) -> Job:
    """The same, with what it is made of as a last part."""

    def make(weight: torch.Tensor) -> Made:
        return Made((*job.make(weight).parts, weight))

    return replace(job, make=make)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    def raw(tensor: torch.Tensor) -> Any:
        return tensor.contiguous().flatten().view(torch.uint8)

    return torch.equal(raw(one), raw(other))
