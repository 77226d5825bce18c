"""Writes a checkpoint piece by piece from another one: shards, index, side files; goes on after an interruption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import convert_file_size_to_int
from safetensors import safe_open

from axk1.checkpoint.beside import copy_beside
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.files import INDEX, SINGLE, Stored, read_headers
from axk1.checkpoint.names import detect_prefix, expected_tensors, expert_slices
from axk1.checkpoint.reading import read_json
from axk1.checkpoint.shards import DTYPES, Output, split_shards, write_header
from axk1.config import AXK1Config
from axk1.files import only_writer, remove_unfinished, replacing, write_text

STATE = ".axk1-convert.json"
Progress = Callable[[int, int], None]
"""Called with (bytes written, all bytes)."""


class Piece(NamedTuple):
    """A part of a source tensor that is read at once: all of it, or rows of one expert."""

    key: str
    expert: int | None = None
    start: int = 0
    stop: int = 0


@dataclass(frozen=True)
class Job:
    """Tensors that are made of the same pieces, and how.

    ``make`` turns one piece into a part of each output; the parts of all pieces in this order are the outputs' bytes.
    """

    outputs: tuple[Output, ...]
    pieces: tuple[Piece, ...]
    make: Callable[[torch.Tensor], Sequence[torch.Tensor]]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return sum(output.nbytes for output in self.outputs)


class Reader:
    """Reads pieces; keeps one file open, so that memory maps do not add up."""

    def __init__(self, stored: Stored) -> None:
        self.stored, self.file = stored, Path()
        self.stack = ExitStack()

    def __call__(self, piece: Piece) -> torch.Tensor:
        file = self.stored.tensors[piece.key].file
        if file != self.file:
            self.stack.close()
            self.opened = self.stack.enter_context(safe_open(file, framework="pt"))
            self.file = file
        if piece.expert is None:
            return self.opened.get_tensor(piece.key)
        return self.opened.get_slice(piece.key)[piece.expert, piece.start : piece.stop]


def write_checkpoint(
    source: Path,
    target: Path,
    jobs: list[Job],
    read: Reader,
    wish: dict[str, Any],
    max_shard_size: int | str,
    config: dict[str, Any],
    progress: Progress | None = None,
    *,
    card: str | None = None,
    parameters: int | None = None,
) -> list[Path]:
    """Writes the outputs of ``jobs`` to the folder ``target`` and returns its weight files.

    A run that was cut off goes on with the same arguments: finished shards stay. Configuration and tokenizer files are
    copied, code and pickles are not.

    Args:
        wish: what was asked for, in JSON's types; another wish does not go on with this one's files.
        config: values that ``config.json`` gets in place of the source's.
        card: a model card in place of the source's, where the weights are not the source's.
        parameters: of the model, for the index; the values written where left out.

    Raises:
        CheckpointError: the target holds something else, is being written by another run, or has no room.
    """
    shards = _shards(jobs, byte_count(max_shard_size))
    _check_room(target, shards)
    target.mkdir(parents=True, exist_ok=True)
    with only_writer(target):
        begin(target, state_of(read.stored, {**wish, "max_shard_size": max_shard_size}))
        copy_beside(source, target, config, card)
        _write_shards(target, shards, read, progress)
        if list(shards) != [SINGLE]:
            write_text(target / INDEX, _index(shards, parameters))
        (target / STATE).unlink()
    return [target / name for name in shards]


def _write_shards(target: Path, shards: dict[str, list[Job]], read: Reader, progress: Progress | None) -> None:
    done, total = 0, sum(job.nbytes for shard in shards.values() for job in shard)
    for name, shard in shards.items():
        if _is_finished(target / name, shard):
            done += sum(job.nbytes for job in shard)
        else:
            for written in _write_shard(target / name, shard, read):
                done += written
                if progress:
                    progress(done, total)


def _check_room(target: Path, shards: dict[str, list[Job]]) -> None:
    sizes = {name: sum(job.nbytes for job in shard) for name, shard in shards.items()}
    check_room(target, sum(size for name, size in sizes.items() if not _is_finished(target / name, shards[name])))


def check_room(target: Path, needed: int) -> None:
    """Before hours of work, whether the disk of ``target`` has room for the ``needed`` bytes.

    Raises:
        CheckpointError: it has not.
    """
    place = next(folder for folder in (target, *target.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise CheckpointError(
            f"needs {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free: make room, or choose another disk.",
            target,
        )


def source_pieces(stored: Stored, config: AXK1Config) -> dict[str, tuple[Piece, ...]]:
    """Where the bytes of every tensor come from that can be made of the stored ones, in either layout."""
    sources: dict[str, tuple[Piece, ...]] = {name: (Piece(name),) for name in stored.tensors}
    for spec in expected_tensors(config, "released", detect_prefix(stored.tensors)):
        parts = expert_slices(config, spec.name)
        if parts and spec.name in stored.tensors:
            sources[spec.name] = tuple(Piece(spec.name, expert, 0, spec.shape[1]) for expert in range(spec.shape[0]))
            sources.update({part.name: (Piece(spec.name, part.expert, part.start, part.stop),) for part in parts})
        elif parts:
            sources[spec.name] = tuple(Piece(part.name) for part in parts)
    return sources


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


def _write_shard(file: Path, jobs: list[Job], read: Reader) -> Iterator[int]:
    """Writes a safetensors file piece by piece, yielding bytes written; it gets its name when it is complete.

    safetensors' own writer takes whole tensors only, and one fused tensor of K1 is 11 GB.
    """
    with replacing(file) as stream:
        places = write_header(stream, [output for job in jobs for output in job.outputs])
        for job in jobs:
            for piece in job.pieces:
                for output, part in zip(job.outputs, job.make(read(piece)), strict=True):
                    stream.seek(places[output.name])
                    part = _converted(part, output).contiguous().flatten()
                    written = stream.write(part.view(torch.uint8).numpy().data)
                    places[output.name] += written
                    yield written


def _converted(part: torch.Tensor, output: Output) -> torch.Tensor:
    """``part`` in the type that it is written in; what is finite stays finite."""
    converted = part.to(DTYPES[output.dtype])
    if converted.dtype != part.dtype and converted.is_floating_point() and part.is_floating_point():
        small = torch.finfo(converted.dtype).max < torch.finfo(part.dtype).max
        if small and not converted.isfinite().all() and part.isfinite().all():
            name = str(converted.dtype).removeprefix("torch.")
            raise CheckpointError(f"tensor {output.name!r} overflows in {name}: choose bfloat16.", key=output.name)
    return converted


def _is_finished(file: Path, jobs: list[Job]) -> bool:
    if not file.is_file():
        return False
    try:
        tensors = read_headers([file]).tensors
    except CheckpointError:
        return False
    held = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    return held == {output.name: (output.dtype, output.shape) for job in jobs for output in job.outputs}


def begin(target: Path, state: dict[str, Any]) -> None:
    """Finds the unfinished work of the same ``state`` in the target folder, or begins it.

    Raises:
        CheckpointError: the folder holds something else.
    """
    if (target / STATE).is_file() and read_json(target / STATE) == state:
        remove_unfinished(target)
        return
    remove_unfinished(target)  # of a run that was killed while it wrote its first file
    if any(target.iterdir()):
        raise CheckpointError("is not empty and holds no unfinished conversion of this source. Choose another.", target)
    write_text(target / STATE, json.dumps(state, indent=2))


def state_of(stored: Stored, wish: dict[str, Any]) -> dict[str, Any]:
    """What must be unchanged for finished shards to be worth keeping."""
    stats = {str(file.resolve()): file.stat() for file in stored.files}
    return {"files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}, **wish}


def _index(shards: dict[str, list[Job]], parameters: int | None) -> str:
    outputs = {output: name for name, jobs in shards.items() for job in jobs for output in job.outputs}
    metadata = {
        "total_parameters": parameters or sum(torch.Size(output.shape).numel() for output in outputs),
        "total_size": sum(output.nbytes for output in outputs),
    }
    weight_map = {output.name: name for output, name in outputs.items()}
    return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
