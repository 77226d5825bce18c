"""Packs examples of any length into rows of one length, position ids restarting at 0 in each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch.utils.data import Dataset

from axk1.files import replacing
from axk1.modeling.objectives import IGNORE
from axk1.train.examples import Example

TOKEN_BYTES = 4
"""Of a token of packed rows on disk."""
_BEGINS, _LEARNED = np.int32(1 << 24), np.int32(1 << 25)  # bits above every token id
_OPEN_ROWS = 64  # rows filled side by side: first fit among them wastes about one percent


class PackedRows(Dataset):
    """Rows on disk (memory-mapped): ``input_ids``, ``labels`` (-100 where nothing is learned), ``position_ids``.

    ``path`` holds one int32 array ``[rows, row_tokens]``, four bytes a token: its id, and two bits for whether it is
    learned and whether a document begins with it. (Runs begun earlier have ``[rows, 3, row_tokens]``.)
    """

    def __init__(self, path: Path) -> None:
        self._stored = np.load(path, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def row_tokens(self) -> int:
        """Length of a row."""
        return self._stored.shape[-1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` as int32 ``[rows, 3, row_tokens]``: ids, labels, positions."""
        stored = self._stored[start:stop]
        return np.array(stored) if stored.ndim == 3 else _decoded(stored)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"There is no row {index} among {len(self)}.")
        place = index % len(self)
        input_ids, labels, position_ids = torch.from_numpy(self.read(place, place + 1)[0].astype(np.int64))
        return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}


def pack(
    examples: Iterable[Example],
    rows: int,
    row_tokens: int,
    pad_id: int,
    path: Path,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Writes ``rows`` full rows to ``path``, whole or not at all. Padding is a document of its own.

    Args:
        progress: is told how many rows are full, after each.

    Raises:
        ValueError: an example is longer than a row, or the examples end before the rows are full.
    """
    done = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        _write_header(file, rows, row_tokens)
        for done, row in enumerate(islice(packed_rows(examples, row_tokens, pad_id), rows), 1):
            file.write(_encoded(row[None]).tobytes())
            progress(done)
        if done < rows:
            raise ValueError(f"The examples ended after {done} full rows of the {rows} that were asked for.")


def packed_rows(examples: Iterable[Example], row_tokens: int, pad_id: int, last: bool = False) -> Iterator[np.ndarray]:
    """Rows ``[3, row_tokens]`` as they get full; with ``last`` also those that are not when the examples end.

    Raises:
        ValueError: an example is longer than a row.
    """
    open_rows = [_Row() for _ in range(_OPEN_ROWS)]
    for example in examples:
        if len(example.input_ids) > row_tokens:
            raise ValueError(f"An example has {len(example.input_ids)} tokens, a row holds row_tokens={row_tokens}.")
        row = next((r for r in open_rows if r.length + len(example.input_ids) <= row_tokens), None)
        if row is None:
            row = max(open_rows, key=lambda r: r.length)
            yield row.finish(row_tokens, pad_id)
        row.add(example)
    yield from (row.finish(row_tokens, pad_id) for row in open_rows if last and row.length)


def packed_whole(examples: Iterable[Example], row_tokens: int, pad_id: int) -> np.ndarray:
    """``[rows, 3, row_tokens]`` with all of ``examples``; the last rows have room left.

    Raises:
        ValueError: an example is longer than a row.
    """
    rows = list(packed_rows(examples, row_tokens, pad_id, last=True))
    return np.stack(rows) if rows else np.empty((0, 3, row_tokens), dtype=np.int32)


def save_rows(path: Path, array: np.ndarray) -> None:
    """Writes rows ``[rows, 3, row_tokens]`` for :class:`PackedRows`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        _write_header(file, len(array), array.shape[-1])
        file.write(_encoded(array).tobytes())


def _write_header(file: BinaryIO, rows: int, row_tokens: int) -> None:
    """numpy's, for the int32 values that follow."""
    shape = {"descr": "<i4", "fortran_order": False, "shape": (rows, row_tokens)}
    np.lib.format.write_array_header_1_0(file, shape)


def _encoded(rows: np.ndarray) -> np.ndarray:
    """``[rows, row_tokens]`` of ``[rows, 3, row_tokens]``; ids are below 2**24 (``vocab_size``)."""
    ids, labels, positions = rows.astype(np.int32).swapaxes(0, 1)
    return (ids | (labels != IGNORE) * _LEARNED | (positions == 0) * _BEGINS).astype("<i4")


def _decoded(stored: np.ndarray) -> np.ndarray:
    """``[rows, 3, row_tokens]`` of ``[rows, row_tokens]``."""
    ids = stored & (_BEGINS - 1)
    places = np.arange(stored.shape[1], dtype=np.int32)
    starts = np.maximum.accumulate(np.where(stored & _BEGINS, places, 0), axis=1)
    labels = np.where(stored & _LEARNED, ids, IGNORE)
    return np.stack([ids, labels, places - starts], axis=1).astype(np.int32)


class _Row:
    """A row being filled."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.length, self.examples = 0, []

    def add(self, example: Example) -> None:
        self.examples.append(example)
        self.length += len(example.input_ids)

    def finish(self, row_tokens: int, pad_id: int) -> np.ndarray:
        """``[3, row_tokens]``; leaves the row empty."""
        padding = row_tokens - self.length
        parts = [*self.examples, Example([pad_id] * padding, [False] * padding)]
        input_ids = np.concatenate([np.asarray(p.input_ids, dtype=np.int32) for p in parts])
        learned = np.concatenate([np.asarray(p.learned, dtype=bool) for p in parts])
        positions = np.concatenate([np.arange(len(p.input_ids), dtype=np.int32) for p in parts])
        self._clear()
        return np.stack([input_ids, np.where(learned, input_ids, IGNORE).astype(np.int32), positions])
