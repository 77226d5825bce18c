"""Where the bytes of every routed expert are in a checkpoint's files: whole pages, in as few pieces as can be."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from axk1.checkpoint.compressed import ITEM_BYTES
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.files import Stored
from axk1.checkpoint.names import detect_layout, detect_prefix
from axk1.checkpoint.shards import read_places
from axk1.config import AXK1Config
from axk1.kernels.native import DTYPES, EXTENTS, FILE_PAGE, INT3, INT4, INT8, Extent, Place, StoredMatrix
from axk1.quantized.plan import FUSED, PACKED, Plan, Scheme

GAP = 16 * FILE_PAGE
"""Bytes between two pieces that are read along with them: faster than two reads."""
LINE = 64
"""Bytes: float32 scales begin at a multiple."""
WORDS = {"BF16": torch.bfloat16, "F32": torch.float32}
FORMATS = {"int8": INT8, "int4": INT4, "int3": INT3}


class Piece(NamedTuple):
    """Bytes of a file."""

    file: int
    begin: int
    end: int


class Matrix(NamedTuple):
    """A matrix of an expert, in a file."""

    format: int
    rows: int
    columns: int
    values: Piece
    scales: Piece | None
    scale_bytes: int


class Layout(NamedTuple):
    """All experts of a model."""

    files: list[Path]
    experts: dict[tuple[int, int], Place]
    """By layer and number."""
    slot_bytes: int
    """What the largest takes in memory: the pages that are read, and its scales as float32."""
    read_bytes: int
    """What is read of it."""
    pieces: int
    """In how many reads at most."""


def expert_layout(table: ExpertTable, config: AXK1Config) -> Layout:
    """Where the routed experts of all decoder layers are, MTP modules left out.

    Raises:
        CheckpointError: experts in a format that no compiled step reads.
    """
    experts, slot, read, pieces = {}, 0, 0, 0
    for layer in range(config.num_hidden_layers):
        for expert in range(config.n_routed_experts if config.is_moe_layer(layer) else 0):
            place, size = _place(table.matrices(layer, expert))
            experts[layer, expert] = place
            slot, pieces = max(slot, size), max(pieces, place.extents)
            read = max(read, sum(place.extent[i].bytes for i in range(place.extents)))
    return Layout(table.files, experts, slot, read, pieces)


class ExpertTable:
    """Finds the matrices of experts among a checkpoint's tensors.

    Args:
        stored: the checkpoint's headers, which have been checked against its configuration.
        plan: the formats of a quantised one.
        dtype: of the model; experts in full have to be stored in it.
    """

    def __init__(self, stored: Stored, plan: Plan | None, dtype: torch.dtype) -> None:
        self._stored, self._plan, self.dtype, self.files = stored, plan, dtype, stored.files
        self._fused = detect_layout(stored.tensors, stored.files[0]) == "released" and plan is None
        self._prefix = detect_prefix(stored.tensors)
        self._pieces = {
            name: Piece(number, place.start, place.stop)
            for number, file in enumerate(stored.files)
            for name, place in read_places(file).items()
        }

    def matrices(self, layer: int, expert: int) -> list[Matrix]:
        """Gate, up and down."""
        base = f"{self._prefix}layers.{layer}.mlp.experts"
        if self._fused:
            gate_up, down = (self._slice(f"{base}.{name}", expert) for name in FUSED)
            half = gate_up.rows // 2
            middle = (gate_up.values.begin + gate_up.values.end) // 2
            gate = gate_up._replace(rows=half, values=gate_up.values._replace(end=middle))
            return [gate, gate._replace(values=gate_up.values._replace(begin=middle)), down]
        gate_up, down = self.schemes(layer) or (None, None)
        parts = {"gate_proj": gate_up, "up_proj": gate_up, "down_proj": down}
        return [self._matrix(f"{base}.{expert}.{part}", scheme) for part, scheme in parts.items()]

    def schemes(self, layer: int) -> tuple[Scheme, Scheme] | None:
        """Of gate and up, and of down, in a quantised checkpoint."""
        return self._plan.expert_schemes(f"{self._prefix}layers.{layer}.mlp.experts") if self._plan else None

    def _matrix(self, base: str, scheme: Scheme | None) -> Matrix:
        if scheme is None:
            name = f"{base}.weight"
            rows, columns = self._stored.tensors[name].shape
            return Matrix(self._floats(name), rows, columns, self._pieces[name], None, 0)
        if scheme.kind not in FORMATS:
            tensor = self._stored.tensors[f"{base}.weight"]
            raise CheckpointError(
                f"holds experts in {scheme.kind}; streamed are int3, int4, int8, bfloat16 and float32. Quantise the "
                "original with --scheme int4, or load it without --expert-cache.",
                tensor.file,
            )
        name = f"{base}.weight_packed" if scheme.packed else f"{base}.weight"
        rows, items = self._stored.tensors[name].shape
        columns = int(items * PACKED[self._stored.tensors[name].dtype]) if scheme.packed else items
        scale = f"{base}.weight_scale"
        wide = ITEM_BYTES[self._stored.tensors[scale].dtype]
        return Matrix(FORMATS[scheme.kind], rows, columns, self._pieces[name], self._pieces[scale], wide)

    def _slice(self, name: str, expert: int) -> Matrix:
        """One expert of a fused tensor."""
        count, rows, columns = self._stored.tensors[name].shape
        whole = self._pieces[name]
        size = (whole.end - whole.begin) // count
        piece = whole._replace(begin=whole.begin + expert * size, end=whole.begin + (expert + 1) * size)
        return Matrix(self._floats(name), rows, columns, piece, None, 0)

    def _floats(self, name: str) -> int:
        tensor = self._stored.tensors[name]
        if WORDS.get(tensor.dtype) is not self.dtype:
            raise CheckpointError(
                f"holds experts as {tensor.dtype}, and the model computes in {self.dtype}: they are streamed as they "
                "are stored, in bfloat16 or float32. Give --dtype auto, or load it without --expert-cache.",
                tensor.file,
                name,
            )
        return DTYPES[self.dtype]


def _place(matrices: list[Matrix]) -> tuple[Place, int]:
    """An expert as the kernels are told of it, and the bytes that it takes in memory."""
    pieces = [piece for matrix in matrices for piece in (matrix.values, matrix.scales) if piece is not None]
    extents = _extents(pieces)
    end = sum(extent.bytes for extent in extents)
    place = Place(extents=len(extents))
    place.extent[: len(extents)] = extents
    for name, matrix in zip(("gate", "up", "down"), matrices, strict=True):
        stored = StoredMatrix(format=matrix.format, rows=matrix.rows, columns=matrix.columns)
        stored.data = _within(extents, matrix.values)
        if matrix.scales is not None:
            stored.scales = _within(extents, matrix.scales)
            stored.scale_count = (matrix.scales.end - matrix.scales.begin) // matrix.scale_bytes
            stored.scale_bytes, stored.side = matrix.scale_bytes, end
            end = _up(end + 4 * stored.scale_count, LINE)
        setattr(place, name, stored)
    return place, _up(end, FILE_PAGE)


def _extents(pieces: Iterable[Piece]) -> list[Extent]:
    """The whole pages that pieces lie in, neighbours together, one after the other in memory."""
    spans: list[Piece] = []
    for piece in sorted(pieces):
        last = spans[-1] if spans else None
        if last and last.file == piece.file and piece.begin - last.end <= GAP:
            spans[-1] = last._replace(end=max(last.end, piece.end))
        else:
            spans.append(piece._replace(begin=piece.begin // FILE_PAGE * FILE_PAGE))
    assert len(spans) <= EXTENTS
    extents, place = [], 0
    for span in spans:
        needed = span.end - span.begin
        extents.append(Extent(span.file, span.begin, _up(needed, FILE_PAGE), needed, place))
        place += extents[-1].bytes
    return extents


def _within(extents: list[Extent], piece: Piece) -> int:
    """Where ``piece`` is in memory, in bytes from the expert's first."""
    for extent in extents:
        if extent.file == piece.file and extent.offset <= piece.begin and piece.end <= extent.offset + extent.needed:
            return extent.place + piece.begin - extent.offset
    raise AssertionError(piece)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
