"""Writes a checkpoint piece by piece from another one: shards, index, side files; goes on after an interruption."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import convert_file_size_to_int
from rich.filesize import decimal

from axk1.allocator import free_memory
from axk1.checkpoint.beside import copy_beside
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.files import INDEX, SINGLE, Stored
from axk1.checkpoint.journal import STATE, Journal
from axk1.checkpoint.names import detect_prefix, expected_tensors, expert_slices
from axk1.checkpoint.shards import DTYPES, Output, split_shards
from axk1.checkpoint.source import Source
from axk1.checkpoint.writer import AT_ONCE, FLUSHED, Writer, cores, pieces_at_once
from axk1.config import AXK1Config
from axk1.files import only_writer, remove_unfinished, write_text
from axk1.quantized.plan import BLOCK

PIECE_BYTES = 64 << 20
"""Bytes of the source that are worked on at once, where a matrix can be taken in rows."""
SCRATCH = 192 << 20
"""Bytes that making something of a piece takes beside it: rounding copies 4 million values to float32 at a time."""
ROWS = BLOCK
"""Rows of a piece are a multiple of this many, so that none of a format's blocks is split."""
Progress = Callable[[int, int], None]
"""Called with (bytes of the source that are done, all bytes)."""


class Piece(NamedTuple):
    """A part of a source tensor that is read at once: all of it, some of its rows, or rows of one expert."""

    key: str
    expert: int | None = None
    start: int = 0
    stop: int | None = None


def rows_of(pieces: Sequence[Piece], start: int, stop: int | None) -> Piece:
    """Some rows of the matrix (or all of the tensor) that is made of ``pieces``, which follow each other in one tensor
    of the source."""
    first, last = pieces[0], pieces[-1]
    return first._replace(start=first.start + start, stop=last.stop if stop is None else first.start + stop)


class Made(NamedTuple):
    """What becomes of a piece."""

    parts: Sequence[torch.Tensor]
    """A part of each output."""
    squares: tuple[float, float] | None = None
    """Of rounding: the sums of the squared errors and of the squared weights."""


@dataclass(frozen=True)
class Job:
    """Tensors that are made of the same pieces, and how.

    ``make`` turns one piece into a part of each output; the parts of all pieces in this order are the outputs' bytes.
    Without pieces, ``make`` is given an empty tensor, once.
    """

    outputs: tuple[Output, ...]
    pieces: tuple[Piece, ...]
    make: Callable[[torch.Tensor], Made]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return sum(output.nbytes for output in self.outputs)


class Reader:
    """Reads pieces of a source."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._numbers = {file: i for i, file in enumerate(source.files)}

    @property
    def sources(self) -> list[Source]:
        """Everything that is read from."""
        return [self.source]

    def __call__(self, piece: Piece) -> torch.Tensor:
        held = self.source.stored.tensors[piece.key]
        dtype, (start, shape) = DTYPES[held.dtype], self._part(piece)
        values = torch.empty(shape, dtype=dtype)
        if values.numel():
            raw = values.flatten().view(torch.uint8).numpy().data
            self.source.read_into(piece.key, start * dtype.itemsize, raw)
        return values

    def nbytes(self, piece: Piece) -> int:
        """Bytes that are read for ``piece``."""
        return math.prod(self._part(piece)[1]) * DTYPES[self.source.stored.tensors[piece.key].dtype].itemsize

    def place(self, piece: Piece) -> tuple[int, int]:
        """The file of ``piece``, by its number, and where in it the piece begins."""
        held, place = self.source.stored.tensors[piece.key], self.source.places[piece.key]
        return self._numbers[held.file], place.start + self._part(piece)[0] * DTYPES[held.dtype].itemsize

    def files(self, piece: Piece) -> set[Path]:
        """The files that ``piece`` is read from."""
        return {self.source.stored.tensors[piece.key].file}

    def _part(self, piece: Piece) -> tuple[int, tuple[int, ...]]:
        """The first value of ``piece`` in its tensor, and the shape of what it is."""
        shape = self.source.stored.tensors[piece.key].shape
        if piece.expert is None and not piece.start and piece.stop is None:
            return 0, shape
        rows = shape[1:] if piece.expert is not None else shape
        stop = rows[0] if piece.stop is None else piece.stop
        return ((piece.expert or 0) * rows[0] + piece.start) * math.prod(rows[1:]), (stop - piece.start, *rows[1:])


def write_checkpoint(
    read: Reader,
    target: Path,
    jobs: list[Job],
    wish: dict[str, Any],
    max_shard_size: int | str,
    config: dict[str, Any],
    progress: Progress | None = None,
    *,
    card: str | None = None,
    parameters: int | None = None,
    workers: int | None = None,
    finished: Callable[[Path], object] | None = None,
    manifest: bool = False,
) -> list[Path]:
    """Writes the outputs of ``jobs`` to the folder ``target`` and returns its weight files.

    A run that was cut off goes on with the same arguments: shards whose sum is the noted one stay. Configuration and
    tokenizer files are copied from the first of the sources, code and pickles are not.

    Args:
        wish: what was asked for, in JSON's types; another wish does not go on with this one's files.
        config: values that ``config.json`` gets in place of the source's.
        card: a model card in place of the source's, where the weights are not the source's.
        parameters: of the model, for the index; the values written where left out.
        workers: threads that make pieces; as many as there are cores where left out, 0: this thread does.
        finished: called with each shard once it is whole and what it was made of verified. It may take the file away:
            the sum that was noted stands for it.
        manifest: write ``axk1-manifest.json`` as well.

    Raises:
        CheckpointError: the target holds something else, is being written by another run, or has no room.
        ValueError: there is not enough free memory.
    """
    shards = _shards(jobs, byte_count(max_shard_size))
    begun = begun_with(read.sources, {**wish, "max_shard_size": max_shard_size})
    _check_room(target, shards, Journal.found(target, begun), taken_away=finished is not None)
    workers = cores() if workers is None else workers
    check_memory(read, jobs, workers)
    target.mkdir(parents=True, exist_ok=True)
    with only_writer(target):
        journal = begin(target, begun)
        copy_beside(read.sources[0].folder, target, config, card)
        Writer(target, read, journal, workers, progress, finished).write(shards)
        if list(shards) != [SINGLE]:
            write_text(target / INDEX, _index(shards, parameters))
        if manifest:
            journal.write_manifest(read.sources[0], wish)
        (target / STATE).unlink()
    return [target / name for name in shards]


def _check_room(target: Path, shards: dict[str, list[Job]], journal: Journal | None, taken_away: bool) -> None:
    done = journal.shards if journal else {}
    sizes = [sum(job.nbytes for job in shard) for name, shard in shards.items() if name not in done]
    check_room(target, sum(sorted(sizes)[-AT_ONCE:] if taken_away else sizes))


def check_room(target: Path, needed: int) -> None:
    """Before hours of work, whether the disk of ``target`` has room for the ``needed`` bytes.

    Raises:
        CheckpointError: it has not.
    """
    place = next(folder for folder in (target, *target.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise CheckpointError(
            f"needs {decimal(needed)}, and {decimal(free)} are free: make room, or choose another disk.",
            target,
        )


def check_memory(read: Reader, jobs: Sequence[Job], workers: int) -> None:
    """Before hours of work, whether there is memory for the pieces that are held at once, and what is made of them.

    Raises:
        ValueError: there is not.
    """
    largest = max((read.nbytes(piece) for job in jobs for piece in job.pieces), default=0)
    needed = 2 * pieces_at_once(workers) * largest + max(1, workers) * SCRATCH + 2 * FLUSHED
    if needed > (free := free_memory()):
        raise ValueError(
            f"This needs {decimal(needed)} of memory for parts of the weights of up to {decimal(largest)}, "
            f"and {decimal(free)} are free: end other programs, or raise the limit of this one."
        )


def source_pieces(stored: Stored, config: AXK1Config) -> dict[str, tuple[Piece, ...]]:
    """Where the bytes of every tensor come from that can be made of the stored ones, in either layout."""
    sources: dict[str, tuple[Piece, ...]] = {name: _in_rows(name, stored) for name in stored.tensors}
    for spec in expected_tensors(config, "released", detect_prefix(stored.tensors)):
        parts = expert_slices(config, spec.name)
        if parts and spec.name in stored.tensors:
            sources[spec.name] = tuple(Piece(spec.name, expert, 0, spec.shape[1]) for expert in range(spec.shape[0]))
            sources.update({part.name: (Piece(spec.name, part.expert, part.start, part.stop),) for part in parts})
        elif parts:
            sources[spec.name] = tuple(Piece(part.name) for part in parts)
    return sources


def _in_rows(name: str, stored: Stored) -> tuple[Piece, ...]:
    """A tensor as one piece, or a large one by its rows."""
    shape, itemsize = stored.tensors[name].shape, DTYPES[stored.tensors[name].dtype].itemsize
    if len(shape) < 2 or math.prod(shape) * itemsize <= PIECE_BYTES:
        return (Piece(name),)
    rows = max(1, PIECE_BYTES // (math.prod(shape[1:]) * itemsize) // ROWS) * ROWS
    return tuple(Piece(name, None, start, min(shape[0], start + rows)) for start in range(0, shape[0], rows))


def byte_count(size: int | str) -> int:
    """Bytes of a size such as ``"5GB"``.

    Raises:
        ValueError: it is none.
    """
    try:
        number = convert_file_size_to_int(size)
    except (ValueError, OverflowError):
        number = 0
    if number < 1:
        raise ValueError(f"max_shard_size is {size!r}; it must be a size such as 5GB or 500MB.")
    return number


def _shards(jobs: list[Job], max_bytes: int) -> dict[str, list[Job]]:
    sizes = {i: job.nbytes for i, job in enumerate(jobs)}
    shards = split_shards(jobs, sizes, [job.outputs[0].name for job in jobs], max_bytes)
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    return dict(zip(names, shards, strict=True))


def begun_with(sources: Sequence[Source], wish: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for a run to go on, in JSON's types."""
    return json.loads(json.dumps({"sources": [[source.identity(), source.revision] for source in sources], **wish}))


def begin(target: Path, begun: dict[str, Any]) -> Journal:
    """The journal of unfinished work in the folder ``target`` that began the same, or a new one.

    Raises:
        CheckpointError: the folder holds something else.
    """
    found = Journal.found(target, begun)
    remove_unfinished(target)  # of a run that was killed while it wrote
    if found is not None:
        found.check()
        return found
    if any(target.iterdir()):
        raise CheckpointError("is not empty and holds no unfinished conversion of this source. Choose another.", target)
    return Journal.begin(target, begun)


def _index(shards: dict[str, list[Job]], parameters: int | None) -> str:
    outputs = {output: name for name, jobs in shards.items() for job in jobs for output in job.outputs}
    metadata = {
        "total_parameters": parameters or sum(torch.Size(output.shape).numel() for output in outputs),
        "total_size": sum(output.nbytes for output in outputs),
    }
    weight_map = {output.name: name for output, name in outputs.items()}
    return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
