"""The trunk's states of packed rows, layer by layer: of a frozen model only one layer is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from axk1.checkpoint.compressed import check_not_quantized
from axk1.checkpoint.files import load_config
from axk1.checkpoint.source import local_source
from axk1.files import remove_unfinished, replacing
from axk1.layerwise.weights import EMBEDDING, NORM, Weights
from axk1.modeling.context import attention_context
from axk1.modeling.norm import AXK1RMSNorm
from axk1.modeling.rope import AXK1RotaryEmbedding
from axk1.train.packing import PackedRows
from axk1.train.progress import Paced, Say


def trunk_weights(folder: Path) -> Weights:
    """Of the checkpoint in ``folder``, which is to be trained.

    Raises:
        CheckpointError: a faulty or quantised checkpoint.
    """
    check_not_quantized(load_config(folder), folder, "trained")
    return Weights(local_source(folder))


class States(NamedTuple):
    """States ``[rows, tokens, hidden]`` in a plain file, read a few rows at a time."""

    path: Path
    shape: tuple[int, int, int]
    dtype: torch.dtype

    def read(self, start: int, stop: int) -> torch.Tensor:
        """``[stop - start, tokens, hidden]``."""
        row = self.shape[1] * self.shape[2] * self.dtype.itemsize
        held = np.fromfile(self.path, np.uint8, count=(stop - start) * row, offset=start * row)
        return torch.from_numpy(held).view(self.dtype).view(stop - start, *self.shape[1:])


@torch.no_grad()
def trunk_states(
    weights: Weights,
    rows: PackedRows,
    folder: Path,
    dtype: torch.dtype,
    say: Say = lambda line: None,
    batch_rows: int = 16,
) -> States:
    """The trunk's states after the final norm for packed ``rows``, in ``folder/states.bin``.

    Memory holds one layer and ``batch_rows`` rows; the disk two copies of the states. A run that was cut off goes on
    after the last finished layer.

    Raises:
        OSError: the disk is full or not writable.
    """
    config, shape = weights.config, (len(rows), rows.row_tokens, weights.config.hidden_size)
    final = States(folder / "states.bin", shape, dtype)
    if final.path.is_file():
        return final
    remove_unfinished(folder)
    paced, depth = Paced(say), config.num_hidden_layers
    reached = max((int(path.suffix[1:]) for path in folder.glob("states.[0-9]*")), default=None)
    current = States(folder / f"states.{reached or 0}", shape, dtype)
    if reached is None:
        current = _embedded(weights, rows, current, batch_rows)
    rotary = AXK1RotaryEmbedding(config)
    for index in range(int(current.path.suffix[1:]), depth):
        layer = _Layer(weights, index, dtype)
        following = final if index + 1 == depth else current._replace(path=folder / f"states.{index + 1}")
        with replacing(following.path) as stream:
            for start in range(0, shape[0], batch_rows):
                stop = min(start + batch_rows, shape[0])
                paced(
                    lambda index=index, stop=stop: f"trunk: layer {index + 1} of {depth}, row {stop:,} of {shape[0]:,}"
                )
                states = layer(current.read(start, stop), _positions(rows, start, stop), rotary)
                stream.write(states.contiguous().view(torch.uint8).numpy().data)
        current.path.unlink()
        current = following
    return final


class _Layer:
    """One decoder layer of the trunk; the last one with the final norm."""

    def __init__(self, weights: Weights, index: int, dtype: torch.dtype) -> None:
        self.config, self.layer = weights.config, weights.layer(index, dtype)
        self.norm = AXK1RMSNorm(self.config.hidden_size, self.config.rms_norm_eps)
        self.last = index + 1 == self.config.num_hidden_layers
        if self.last:
            weights.fill(self.norm, NORM, dtype)

    def __call__(self, states: torch.Tensor, position_ids: torch.Tensor, rotary: AXK1RotaryEmbedding) -> torch.Tensor:
        context = attention_context(self.config, rotary, states, None, position_ids, None, training=True)
        states = self.layer(states, **context)
        return self.norm(states) if self.last else states


def _embedded(weights: Weights, rows: PackedRows, states: States, batch_rows: int) -> States:
    table = weights.tensor(EMBEDDING, states.dtype)
    with replacing(states.path) as stream:
        for ids in _batches(rows, 0, batch_rows):
            stream.write(nn.functional.embedding(ids, table).view(torch.uint8).numpy().data)
    return states


def _batches(rows: PackedRows, part: int, batch_rows: int) -> Iterator[torch.Tensor]:
    for start in range(0, len(rows), batch_rows):
        yield torch.from_numpy(rows.read(start, start + batch_rows)[:, part].astype(np.int64))


def _positions(rows: PackedRows, start: int, stop: int) -> torch.Tensor:
    return torch.from_numpy(rows.read(start, stop)[:, 2].astype(np.int64))
