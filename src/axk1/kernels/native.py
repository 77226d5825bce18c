"""The kernels' C interface (``cpu/axk1.h``) in Python: weights by name, steps, and the memory that both need."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from axk1.kernels.build import library

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""Formats of states, caches and plain weights."""
INT8, INT4, INT3, LOSSLESS = 2, 3, 4, 5


class Matrix(ctypes.Structure):
    """``axk1_matrix``."""

    _fields_ = [
        ("data", c_void_p),
        ("format", c_int64),
        ("rows", c_int64),
        ("columns", c_int64),
        ("side", c_void_p),
        ("side_bytes", c_int64),
    ]


SIZES = (
    *("layers", "hidden", "vocabulary", "heads", "nope", "rope", "value", "query_rank", "latent", "interleave"),
    *("dense_width", "expert_width", "shared_width", "experts", "groups", "kept_groups", "group_best", "chosen"),
    *("sigmoid", "normalise", "grouped", "exact"),
)
NUMBERS = ("softmax_scale", "eps", "routed_scaling", "angle_factor")


class Shape(ctypes.Structure):
    """``axk1_shape``."""

    _fields_ = [*((name, c_int64) for name in SIZES), *((name, c_double) for name in NUMBERS)]


EXTENTS = 8
FILE_PAGE = 4096
"""Bytes: what offsets, lengths and places of pieces of files are multiples of."""


class Extent(ctypes.Structure):
    """``axk1_extent``."""

    _fields_ = [(name, c_int64) for name in ("file", "offset", "bytes", "needed", "place")]


class StoredMatrix(ctypes.Structure):
    """``axk1_stored``."""

    _fields_ = [
        (name, c_int64)
        for name in ("format", "rows", "columns", "data", "scales", "scale_count", "scale_bytes", "side")
    ]


class Place(ctypes.Structure):
    """``axk1_place``."""

    _fields_ = [
        ("extents", c_int64),
        ("extent", Extent * EXTENTS),
        ("gate", StoredMatrix),
        ("up", StoredMatrix),
        ("down", StoredMatrix),
    ]


class StreamCounters(ctypes.Structure):
    """``axk1_counters``."""

    _fields_ = [
        (name, c_int64) for name in ("lists", "asked", "hits", "reads", "bytes", "stalls", "stalled", "reading")
    ]


class StepFields(ctypes.Structure):
    """``axk1_step``."""

    _fields_ = [
        ("sequences", c_int64),
        ("prompts", c_int64),
        ("threads", c_int64),
        ("starts", c_void_p),
        ("cached", c_void_p),
        ("positions", c_void_p),
        ("pages", c_void_p),
        ("most_pages", c_int64),
        ("layers", c_void_p),
        ("cache_format", c_int64),
        ("frequencies", c_void_p),
        ("keep", c_void_p),
        ("keep_stride", c_int64),
        ("ids", c_void_p),
        ("hidden", c_void_p),
        ("hidden_format", c_int64),
        ("wanted", c_void_p),
        ("scored", c_void_p),
        ("states", c_void_p),
        ("states_format", c_int64),
        ("logits", c_void_p),
        ("best", c_void_p),
    ]


@cache
def _functions() -> ctypes.CDLL | None:
    """The library, its functions typed; calls release the GIL."""
    found = library()
    if found is None:
        return None
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "axk1_instructions": (c_char_p, []),
        "axk1_error": (c_char_p, []),
        "axk1_new": (c_void_p, [POINTER(Shape)]),
        "axk1_delete": (None, [c_void_p]),
        "axk1_set": (c_int, [c_void_p, c_int64, c_char_p, POINTER(Matrix)]),
        "axk1_set_head_ids": (c_int, [c_void_p, c_void_p, c_int64]),
        "axk1_set_store": (c_int, [c_void_p, c_int64, c_void_p, c_int64]),
        "axk1_stream_new": (c_void_p, [c_int64, c_int64, c_int64, c_double]),
        "axk1_stream_delete": (None, [c_void_p]),
        "axk1_stream_file": (c_int, [c_void_p, c_char_p]),
        "axk1_stream_add": (c_int, [c_void_p, c_int64, c_int64, POINTER(Place)]),
        "axk1_stream_count": (None, [c_void_p, POINTER(StreamCounters)]),
        "axk1_stream_trace": (c_int64, [c_void_p, c_int64, POINTER(c_int64), c_int64]),
        "axk1_finish": (c_int, [c_void_p]),
        "axk1_run": (c_int, [c_void_p, POINTER(StepFields)]),
        "axk1_speculate": (c_int, [c_void_p, c_void_p, POINTER(StepFields), POINTER(StepFields), c_int64]),
        "axk1_linear": (c_int, [POINTER(Matrix), c_int64, c_void_p, c_int64, c_int64, c_void_p, c_int64]),
        "axk1_round": (
            c_int,
            [c_void_p, *[c_int64] * 4, c_void_p, c_int64, c_float, c_float, c_void_p, c_void_p, c_void_p],
        ),
        "axk1_lossless_side": (c_int64, [c_void_p, c_int64, c_int64, c_int64]),
        "axk1_pack_lossless": (c_int, [c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_int64]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def available() -> bool:
    """Whether there are kernels, after building them if need be."""
    return _functions() is not None


def instructions() -> str | None:
    """The instruction set of the kernels in use; None where there are none."""
    found = _functions()
    return found.axk1_instructions().decode() if found else None


def _loaded() -> ctypes.CDLL:
    found = _functions()
    assert found is not None, "ask available() first"
    return found


def _check(failed: int) -> None:
    if failed:
        raise ValueError(_loaded().axk1_error().decode(errors="replace"))


def numbers(values: Sequence[int]) -> Any:
    """int64 numbers as the kernels read them."""
    return (c_int64 * len(values))(*values)


def matrix(weight: Tensor, side: Tensor | None = None) -> Matrix:
    """A weight ``[..., columns]`` as rows: float32 or bfloat16; int8 with one scale per row; int4 in int32 and int3 in
    uint8, as ``axk1.quantized`` packs them, with one per group; or uint8 with what ``pack_lossless`` returned beside
    it.

    Raises:
        ValueError: another dtype, or memory that is not contiguous or not the CPU's.
    """
    for tensor in (weight, side):
        if tensor is not None and not (tensor.is_contiguous() and tensor.is_cpu):
            raise ValueError("The kernels read contiguous weights in the CPU's memory.")
    columns = weight.shape[-1]
    rows = weight.numel() // columns if columns else 0
    if side is None and weight.dtype in DTYPES:
        return Matrix(weight.data_ptr(), DTYPES[weight.dtype], rows, columns, None, 0)
    floats = side is not None and side.dtype == torch.float32
    formats = {torch.int8: (INT8, columns), torch.int32: (INT4, 8 * columns), torch.uint8: (INT3, columns // 3 * 8)}
    if side is not None and side.dtype == torch.uint8 and weight.dtype == torch.uint8:
        kind, wide = LOSSLESS, columns // 3 * 2
    elif side is not None and floats and weight.dtype in formats:
        kind, wide = formats[weight.dtype]
    else:
        raise ValueError(f"The kernels read float32, bfloat16, and scaled int8, int4 and int3, not {weight.dtype}.")
    return Matrix(weight.data_ptr(), kind, rows, wide, side.data_ptr(), side.nbytes)


class Layers:
    """Decoder layers whose weights the kernels know. They stay where they are, and are kept alive here.

    Args:
        sizes: by the names of ``SIZES`` and ``NUMBERS``.

    Raises:
        ValueError: sizes that cannot be.
    """

    def __init__(self, **sizes: float) -> None:
        self._held: list[Any] = []
        self.given: list[tuple[int, str, Tensor, Tensor | None]] = []
        """Layer, name, weight and what belongs beside it, as set: they are kept alive here."""
        self.sizes = sizes
        self.handle: int | None = _loaded().axk1_new(byref(Shape(**sizes)))
        if not self.handle:
            raise ValueError(_loaded().axk1_error().decode(errors="replace"))

    def __del__(self) -> None:
        handle = getattr(self, "handle", None)
        if handle:
            _loaded().axk1_delete(handle)

    def set(self, layer: int, name: str, weight: Tensor, side: Tensor | None = None) -> None:
        """Gives a weight by its name in checkpoints; ``layer`` -1 for those outside of the layers.

        Raises:
            ValueError: an unknown name, a shape that does not fit the sizes, a format that is not read.
        """
        # detached: a parameter whose data is replaced later leaves the memory that is read here alone
        weight, side = weight.detach(), None if side is None else side.detach()
        self.given.append((layer, name, weight, side))
        _check(_loaded().axk1_set(self.handle, layer, name.encode(), byref(matrix(weight, side))))

    def set_head_ids(self, ids: Tensor) -> None:
        """``[N]`` int64, the tokens of ``lm_head``'s rows where it has not the whole vocabulary."""
        _check(_loaded().axk1_set_head_ids(self.handle, ids.contiguous().data_ptr(), len(ids)))

    def set_store(self, layer: int, stream: Stream, stream_layer: int) -> None:
        """Takes the layer's routed experts from ``stream_layer`` of a stream, as steps ask for them.

        Raises:
            ValueError: the stream has others, or experts of another shape.
        """
        self._held.append(stream)
        _check(_loaded().axk1_set_store(self.handle, layer, stream.handle, stream_layer))

    def finish(self) -> None:
        """All weights have been given.

        Raises:
            ValueError: one is missing.
        """
        _check(_loaded().axk1_finish(self.handle))

    def run(self, step: StepFields) -> None:
        """One step.

        Raises:
            ValueError: something of it does not fit these layers.
        """
        _check(_loaded().axk1_run(self.handle, byref(step)))

    def speculate(self, module: Layers, waiting: StepFields, step: StepFields, count: int) -> None:
        """``count`` greedy drafts by an MTP ``module`` after ``waiting``, and the step over them."""
        _check(_loaded().axk1_speculate(self.handle, module.handle, byref(waiting), byref(step), count))


class Stream:
    """Experts in files, read as steps ask for them, into a cache of fixed size (``cpu/stream.h``).

    Args:
        slots: experts that the cache holds.
        slot_bytes: of each, a multiple of ``FILE_PAGE``.
        readers: threads that read.
        decay: what a use counts one step of its layer later. The expert with the least gives way.

    Raises:
        ValueError: sizes that cannot be, or no memory for them.
    """

    def __init__(self, slots: int, slot_bytes: int, readers: int, decay: float) -> None:
        self.handle: int | None = _loaded().axk1_stream_new(slots, slot_bytes, readers, decay)
        if not self.handle:
            raise ValueError(_loaded().axk1_error().decode(errors="replace"))

    def __del__(self) -> None:
        handle = getattr(self, "handle", None)
        if handle:
            _loaded().axk1_stream_delete(handle)

    def add_file(self, path: str) -> None:
        """The next file; they count from 0.

        Raises:
            ValueError: it cannot be read.
        """
        _check(_loaded().axk1_stream_file(self.handle, os.fsencode(path)))

    def add(self, layer: int, expert: int, place: Place) -> None:
        """Says where an expert is.

        Raises:
            ValueError: outside of its file, or of its place in the cache.
        """
        _check(_loaded().axk1_stream_add(self.handle, layer, expert, byref(place)))

    def counters(self) -> StreamCounters:
        """What it has done so far."""
        found = StreamCounters()
        _loaded().axk1_stream_count(self.handle, byref(found))
        return found

    def trace(self, on: bool = True) -> list[int]:
        """What steps asked for since this was last called with ``on``: layer, number of experts and these, for each
        layer of each step; ``on``: whether to go on taking it down."""
        count = _loaded().axk1_stream_trace(self.handle, on, numbers([0]), 0)
        found = numbers([0] * count)
        _loaded().axk1_stream_trace(self.handle, on, found, count)
        return list(found)


def linear(x: Tensor, weight: Tensor, side: Tensor | None = None, exact: bool = False) -> Tensor:
    """``[..., I]`` times the transposed ``[O, I]``, to x's dtype; ``exact``: in float32 arithmetic.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    given = matrix(weight, side)
    if weight.dim() != 2 or x.dtype not in DTYPES or not x.numel() or x.shape[-1] != given.columns:
        raise ValueError(f"Inputs {x.dtype} {list(x.shape)} do not fit a weight of shape {list(weight.shape)}.")
    x = x.contiguous()
    out = x.new_empty(*x.shape[:-1], given.rows)
    rows = x.numel() // given.columns
    arguments = (int(exact), x.data_ptr(), DTYPES[x.dtype], rows, out.data_ptr(), torch.get_num_threads())
    _check(_loaded().axk1_linear(byref(given), *arguments))
    return out


def pack_lossless(weight: Tensor) -> tuple[Tensor, Tensor]:
    """bfloat16 ``[..., O, I]``, I a multiple of 64, in twelve bits per value (``axk1.kernels.lossless.Packed``)."""
    weight = weight.contiguous()
    columns = weight.shape[-1]
    rows, threads = weight.numel() // columns, torch.get_num_threads()
    size = _loaded().axk1_lossless_side(weight.data_ptr(), rows, columns, threads)
    packed = torch.empty(*weight.shape[:-1], columns // 2 * 3, dtype=torch.uint8)
    side = torch.empty(size, dtype=torch.uint8)
    arguments = (weight.data_ptr(), rows, columns, packed.data_ptr(), side.data_ptr(), size, threads)
    _check(_loaded().axk1_pack_lossless(*arguments))
    return packed, side


def round_packed(
    weight: Tensor, bits: int, group: int, clips: Sequence[float], largest: float
) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """A contiguous ``[O, I]`` weight in float32 or bfloat16 to int4 or int3, in this thread.

    Returns:
        Words ``[O, I / 8]`` int32 or bytes ``[O, 3 I / 8]`` uint8, scales ``[O, I / group]`` float32, and the sums of
        the squared errors and weights.

    Raises:
        ValueError: a weight that is not finite, or another ``group`` than 32, 64 or 128.
    """
    outputs, inputs = weight.shape
    packed = torch.empty(outputs, inputs * bits // 8, dtype=torch.uint8)
    scales = torch.empty(outputs, inputs // group)
    shares, squares = (ctypes.c_float * len(clips))(*clips), (c_double * 2)()
    tiny = torch.finfo(torch.bfloat16).tiny
    places = (packed.data_ptr(), scales.data_ptr(), squares)
    arguments = (DTYPES[weight.dtype], bits, scales.numel(), group, shares, len(clips), largest, tiny, *places)
    _check(_loaded().axk1_round(weight.data_ptr(), *arguments))
    return packed.view(torch.int32) if bits == 4 else packed, scales, (squares[0], squares[1])
