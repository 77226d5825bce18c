"""Safetensors files in which every routed expert is one contiguous read (``docs/quantization.md``, "The file").

The header is padded to a whole page of 4 KiB. Then come the experts in order, each with its three matrices and their
three scales, then everything else. Where an expert has a whole number of pages, as int4 and int3 experts of K1's width
have, each begins on a page. It is an ordinary safetensors file: offsets are contiguous, without holes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import torch

from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.names import expert_part

PAGE = 4096
"""Bytes of a page: what direct reads of a disk begin at."""
HEADER_BYTES = 100_000_000
"""Of a safetensors header at most; the library reads no longer one."""
DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
    "U32": torch.uint32,
    "F8_E4M3": torch.float8_e4m3fn,
}
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
T = TypeVar("T")


@dataclass(frozen=True)
class Output:
    """A tensor to write."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return torch.Size(self.shape).numel() * DTYPES[self.dtype].itemsize


class Place(NamedTuple):
    """A tensor in a file: the bytes from ``start`` up to ``stop``, both counted from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def write_header(stream: BinaryIO, outputs: Iterable[Output]) -> dict[str, int]:
    """Writes the header of a file with ``outputs``; returns where in the file each of them has to begin."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for output in arranged(list(outputs)):
        end = offset + output.nbytes
        header[output.name] = {"dtype": output.dtype, "shape": output.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    stream.write(len(text).to_bytes(8, "little") + text)
    del header["__metadata__"]
    return {name: 8 + len(text) + values["data_offsets"][0] for name, values in header.items()}


def arranged(outputs: Sequence[Output]) -> list[Output]:
    """The order in a file: experts first. A tensor has to start at a multiple of its item size; where an odd width
    would break that, wide types come first instead."""
    experts = sorted((each for each in outputs if _rank(each) is not None), key=_rank)
    order = [*experts, *sorted((each for each in outputs if _rank(each) is None), key=lambda each: -_itemsize(each))]
    offset = 0
    for output in order:
        if offset % _itemsize(output):
            return sorted(order, key=lambda each: -_itemsize(each))
        offset += output.nbytes
    return order


def read_places(file: Path) -> dict[str, Place]:
    """Where the tensors of a safetensors file lie, in the order of the file.

    Raises:
        CheckpointError: the header is not one.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return parse_header(stream.read(min(length, HEADER_BYTES)), 8 + length, file)


def parse_header(text: bytes, begin: int, file: Path | str) -> dict[str, Place]:
    """The tensors that a header ``text`` names, in the order of the file; their bytes follow from ``begin`` on.

    Raises:
        CheckpointError: it is no header, or tensors overlap or leave holes.
    """
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        places = {
            name: Place(
                each["dtype"],
                tuple(map(int, each["shape"])),
                *(begin + int(offset) for offset in each["data_offsets"]),
            )
            for name, each in header.items()
        }
        ordered = dict(sorted(places.items(), key=lambda item: item[1].start))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"has a damaged header ({error}). Download it again.", Path(file)) from error
    _check_places(ordered, begin, Path(file))
    return ordered


def split_shards(items: Sequence[T], size: Mapping[int, int], name: Sequence[str], largest: int) -> list[list[T]]:
    """``items`` in order, in shards of ``largest`` bytes at most; a larger item gets a shard of its own.

    No expert is split that a shard could hold, and no layer either: a shard with several has them whole.

    Args:
        size, name: of each item, by its index: bytes, and the name of a tensor of it.
    """
    shards: list[list[int]] = [[]]
    held = 0
    for group in _whole(range(len(items)), size, name, largest):
        needed = sum(size[i] for i in group)
        if shards[-1] and held + needed > largest:
            shards.append([])
            held = 0
        shards[-1] += group
        held += needed
    return [[items[i] for i in shard] for shard in shards]


def _whole(items: Iterable[int], size: Mapping[int, int], name: Sequence[str], largest: int) -> Iterator[list[int]]:
    """What stays together: layers, else experts, else single items."""
    for _, layer in groupby(items, key=lambda i: _layer(name[i])):
        layer = list(layer)
        if sum(size[i] for i in layer) <= largest:
            yield layer
            continue
        for part, group in groupby(layer, key=lambda i: _expert(name[i])):
            group = list(group)
            if part is None or sum(size[i] for i in group) > largest:
                yield from ([i] for i in group)
            else:
                yield group


def _layer(name: str) -> str:
    before, found, after = name.partition("layers.")
    return before + found + after.partition(".")[0] if found else name


def _expert(name: str) -> tuple[str, int] | None:
    part = expert_part(name)
    return (part.base, part.expert) if part else None


def _rank(output: Output) -> Any:
    """The place among the experts: all of one together, its matrices before their scales; None for what is none."""
    part = expert_part(output.name)
    if part is None or part.suffix == "_shape":
        return None
    layer = part.base.partition("layers.")[2].partition(".")[0]
    return (int(layer or 0), part.base, part.expert, part.suffix == "_scale", _PROJECTIONS.index(part.projection))


def _itemsize(output: Output) -> int:
    return DTYPES[output.dtype].itemsize


def _check_places(places: dict[str, Place], begin: int, file: Path) -> None:
    at = begin
    for name, place in places.items():
        if place.start != at or place.stop < at:
            raise CheckpointError(f"has a header whose tensor {name!r} does not follow the one before it.", file, name)
        at = place.stop
