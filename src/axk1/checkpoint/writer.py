"""Writes shards: one thread reads, as many as there are cores make, and this one writes, in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import torch

from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.journal import Finished, Journal, relative_errors, settled
from axk1.checkpoint.shards import DTYPES, Output, write_header
from axk1.checkpoint.source import Pending, forget
from axk1.files import replacing

if TYPE_CHECKING:
    from axk1.checkpoint.streaming import Job, Made, Piece, Progress, Reader

FLUSHED = 128 << 20
"""Bytes after which what was written goes to the disk and leaves the page cache, while as many more are written."""
AT_ONCE = 4
"""Shards that lie on the disk at once where finished ones are taken away: one waits for the sum of a file of the
source that the next one is made of too, the sum of one is taken, and one is being written."""


class Writer:
    """Writes what is missing of a checkpoint's shards. Arguments as of ``write_checkpoint``."""

    def __init__(
        self,
        target: Path,
        read: Reader,
        journal: Journal,
        workers: int,
        progress: Progress | None,
        finished: Callable[[Path], object] | None,
    ) -> None:
        self.target, self.read, self.journal, self.finished = target, read, journal, finished
        self.workers, self.progress, self.done, self.total = workers, progress, 0, 0

    def write(self, shards: dict[str, list[Job]]) -> None:
        """All of them, in order."""
        sizes = {name: sum(self.read.nbytes(p) for job in jobs for p in job.pieces) for name, jobs in shards.items()}
        self.total = sum(sizes.values())
        names = [name for name in shards if name not in self.journal.shards]
        self.done = sum(size for name, size in sizes.items() if name in self.journal.shards)
        self._give_all(shards.keys() - names)
        last: _Written | None = None
        with ThreadPoolExecutor(1, "axk1-sum") as summing:  # of a shard while the next one is written
            try:
                for i, name in enumerate(names):
                    squares = self._write_one(self.target / name, shards[name])
                    following = shards[names[i + 1]] if i + 1 < len(names) else []
                    needed = {file for job in following for piece in job.pieces for file in self.read.files(piece)}
                    pending = settled(self.read.sources, needed)
                    proven, last = self._note(last), None
                    self._give_all(proven)
                    shard = summing.submit(Finished.of, self.target / name, relative_errors(squares))
                    last = _Written(name, shard, pending)
            finally:  # the shard before the one that failed is finished, too
                proven = self._note(last)
            self._give_all(proven)

    def _note(self, written: _Written | None) -> list[str]:
        """Notes a shard as soon as its sum is there; which shards are proven by that."""
        return self.journal.written(written.name, written.shard.result(), written.pending) if written else []

    def _give_all(self, names: Iterable[str]) -> None:
        for name in names:
            if self.finished is not None and not self.journal.shards[name].given:
                self.finished(self.target / name)
                self.journal.note(name, replace(self.journal.shards[name], given=True))

    def _write_one(self, file: Path, jobs: list[Job]) -> dict[str, list[tuple[float, float]]]:
        """A safetensors file, piece by piece; it gets its name when it is complete.

        safetensors' own writer takes whole tensors only, and one fused tensor of K1 is 11 GB.
        """
        squares: dict[str, list[tuple[float, float]]] = {}
        with replacing(file) as stream, closing(_Flush(stream)) as flush:
            places = write_header(stream, [output for job in jobs for output in job.outputs])
            for job, piece, made in make_all(self.read, jobs, self.workers):
                for output, part in zip(job.outputs, made.parts, strict=True):
                    part = converted(part, output).contiguous().flatten().view(torch.uint8).numpy().data
                    stream.seek(places[output.name])
                    places[output.name] += stream.write(part)
                    flush.written(len(part))
                if made.squares:
                    squares.setdefault(job.outputs[0].name.removesuffix("_packed"), []).append(made.squares)
                self._advance(self.read.nbytes(piece) if piece else 0)
        return squares

    def _advance(self, size: int) -> None:
        self.done += size
        if self.progress and size:
            self.progress(self.done, self.total)


def make_all(read: Reader, jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Piece | None, Made]]:
    """What becomes of each piece of ``jobs``: jobs in the order in which the source has their first pieces.

    Args:
        workers: threads that make, while one reads; 0: this thread does both.
    """
    first = {id(job): read.place(job.pieces[0]) if job.pieces else (-1, 0) for job in jobs}
    steps = ((job, p) for job in sorted(jobs, key=lambda job: first[id(job)]) for p in job.pieces or (None,))
    waiting: deque[tuple[Job, Piece | None, Future[Made]]] = deque()
    with _at_once(workers) as at_once:
        for job, piece in steps:
            waiting.append((job, piece, at_once(lambda p=piece: torch.empty(0) if p is None else read(p), job.make)))
            if len(waiting) == pieces_at_once(workers):
                yield _waited(*waiting.popleft())
        while waiting:
            yield _waited(*waiting.popleft())


def _waited(job: Job, piece: Piece | None, made: Future[Made]) -> tuple[Job, Piece | None, Made]:
    return job, piece, made.result()


def pieces_at_once(workers: int) -> int:
    """Pieces that are in memory at once."""
    return 2 * workers + 1


class _Written(NamedTuple):
    """A shard that is written; its sum is being taken."""

    name: str
    shard: Future[Finished]
    pending: list[Pending]


class _Flush:
    """Sends what was written to the disk from time to time, so that it takes no memory, while more is written."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.size = stream, 0
        self.thread = ThreadPoolExecutor(1, "axk1-flush")
        self.last: Future[None] | None = None

    def written(self, size: int) -> None:
        """Of so many bytes more.

        Raises:
            OSError: the disk took no more of those before.
        """
        self.size += size
        if self.size < FLUSHED:
            return
        self.size = 0
        self.stream.flush()
        if self.last is not None:
            self.last.result()
        self.last = self.thread.submit(self._send)

    def close(self) -> None:
        """Waits; what is left is synced with the file.

        Raises:
            OSError: as of ``written``.
        """
        self.thread.shutdown()
        if self.last is not None:
            self.last.result()

    def _send(self) -> None:
        os.fsync(self.stream.fileno())
        forget(self.stream.fileno())


@contextmanager
def _at_once(workers: int) -> Iterator[Callable[..., Future]]:
    """A function that reads in one thread, in order, and makes in others; where ``workers`` is 0, both in this one."""
    if not workers:
        yield _here
        return
    threads = torch.get_num_threads()
    reading = ThreadPoolExecutor(1, "axk1-read")
    making = ThreadPoolExecutor(workers, "axk1-make", initializer=lambda: torch.set_num_threads(1))

    def at_once(read: Callable[[], torch.Tensor], make: Callable[[torch.Tensor], Made]) -> Future[Made]:
        piece = reading.submit(read)
        return making.submit(lambda: make(piece.result()))

    try:
        yield at_once
    finally:
        reading.shutdown(cancel_futures=True)
        making.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _here(read: Callable[[], torch.Tensor], make: Callable[[torch.Tensor], Made]) -> Future[Made]:
    done: Future[Made] = Future()
    done.set_result(make(read()))
    return done


def converted(part: torch.Tensor, output: Output) -> torch.Tensor:
    """``part`` in the type that it is written in; what is finite stays finite.

    Raises:
        CheckpointError: a finite value that the type cannot hold.
    """
    done = part.to(DTYPES[output.dtype])
    if done.dtype != part.dtype and done.is_floating_point() and part.is_floating_point():
        small = torch.finfo(done.dtype).max < torch.finfo(part.dtype).max
        if small and not done.isfinite().all() and part.isfinite().all():
            name = str(done.dtype).removeprefix("torch.")
            raise CheckpointError(f"tensor {output.name!r} overflows in {name}: choose bfloat16.", key=output.name)
    return done
