"""Packs examples of any length into rows of one length, position ids restarting at 0 in each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from axk1.files import replacing
from axk1.train.examples import Example

_OPEN_ROWS = 64  # rows filled side by side: first fit among them wastes about one percent


class PackedRows(Dataset):
    """Rows on disk (memory-mapped): ``input_ids``, ``labels`` (-100 where nothing is learned), ``position_ids``.

    One int32 array ``[rows, 3, row_tokens]`` in ``path``.
    """

    def __init__(self, path: Path) -> None:
        self.rows = np.load(path, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        input_ids, labels, position_ids = torch.from_numpy(self.rows[index].astype(np.int64))
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
    array, done = np.empty((rows, 3, row_tokens), dtype=np.int32), 0
    for done, row in enumerate(islice(_packed(examples, row_tokens, pad_id), rows), 1):
        array[done - 1] = row
        progress(done)
    if done < rows:
        raise ValueError(f"The examples ended after {done} full rows of the {rows} that were asked for.")
    save_rows(path, array)


def packed_whole(examples: Iterable[Example], row_tokens: int, pad_id: int) -> np.ndarray:
    """``[rows, 3, row_tokens]`` with all of ``examples``; the last rows have room left.

    Raises:
        ValueError: an example is longer than a row.
    """
    rows = list(_packed(examples, row_tokens, pad_id, last=True))
    return np.stack(rows) if rows else np.empty((0, 3, row_tokens), dtype=np.int32)


def save_rows(path: Path, array: np.ndarray) -> None:
    """Writes rows for :class:`PackedRows`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.save(file, array, allow_pickle=False)


def _packed(examples: Iterable[Example], row_tokens: int, pad_id: int, last: bool = False) -> Iterator[np.ndarray]:
    """Rows ``[3, row_tokens]`` as they get full; with ``last`` also those that are not when the examples end."""
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
        return np.stack([input_ids, np.where(learned, input_ids, -100).astype(np.int32), positions])
