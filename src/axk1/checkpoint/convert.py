"""Rewrites a checkpoint in the other layout, with other shards or in another dtype, one piece of a tensor at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from accelerate.utils import convert_file_size_to_int
from safetensors import safe_open

from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.files import INDEX, PICKLES, SINGLE, Stored, load_config, open_checkpoint, read_headers, read_json
from axk1.checkpoint.names import (
    HEAD_KEYS,
    LAYOUTS,
    Layout,
    detect_prefix,
    expected_tensors,
    expert_slices,
)
from axk1.checkpoint.verify import check_tensors, with_mtp_layers
from axk1.checkpoint.write import write_text
from axk1.config import AXK1Config

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
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
class Output:
    """A tensor to write, and the pieces whose bytes in this order are its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return torch.Size(self.shape).numel() * DTYPES[self.dtype].itemsize


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


def convert_checkpoint(
    source: Path | str,
    target: Path | str,
    layout: Layout = "released",
    max_shard_size: int | str = "5GB",
    dtype: str | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Writes ``source`` to the folder ``target`` and returns its weight files.

    Memory stays at one piece (one expert's matrix, or the embedding). A run that was cut off goes on with the same
    arguments: finished shards stay. Without ``dtype`` every value keeps its bits. Configuration and tokenizer files are
    copied, code and pickles are not.

    Args:
        layout: ``released`` or ``per_expert``.
        max_shard_size: bytes, or a text such as ``"5GB"``; a larger tensor gets a shard of its own.
        dtype: ``bfloat16``, ``float16``, ``float32``; the router's bias stays fp32.

    Raises:
        CheckpointError: the source is faulty, or the target holds something else.
        ValueError: an unknown layout or dtype.
    """
    source, target = Path(source), Path(target)
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} must be one of {', '.join(LAYOUTS)}.")
    word = None if dtype is None else _dtype_word(dtype)
    stored, config = open_checkpoint(source), load_config(source)
    shards = _shards(_outputs(stored, config, layout, word), convert_file_size_to_int(max_shard_size))
    _begin(target, _state(stored, layout, dtype, max_shard_size))
    _copy_side_files(source, target, word and dtype)
    done, total = 0, sum(output.nbytes for shard in shards.values() for output in shard)
    reader = Reader(stored)
    for name, outputs in shards.items():
        if _is_finished(target / name, outputs):
            done += sum(output.nbytes for output in outputs)
        else:
            for written in _write_shard(target / name, outputs, reader):
                done += written
                if progress:
                    progress(done, total)
    if list(shards) != [SINGLE]:
        write_text(target / INDEX, _index(shards))
    (target / STATE).unlink()
    return [target / name for name in shards]


def _outputs(stored: Stored, config: AXK1Config, layout: Layout, dtype: str | None) -> list[Output]:
    found = check_tensors(stored, config)
    config = with_mtp_layers(config, found.mtp_layers)
    specs = {spec.name: spec.shape for spec in expected_tensors(config, layout, found.prefix)}
    for key in HEAD_KEYS:
        if key in stored.tensors:
            specs[key] = stored.tensors[key].shape
    sources = _sources(stored, config)
    outputs = []
    for name, shape in specs.items():
        pieces = sources.get(name)
        if pieces:
            held = stored.tensors[pieces[0].key].dtype
            wanted = None if name.endswith("e_score_correction_bias") else dtype
            outputs.append(Output(name, wanted or held, shape, pieces))
    return outputs


def _sources(stored: Stored, config: AXK1Config) -> dict[str, tuple[Piece, ...]]:
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


def _shards(outputs: list[Output], max_bytes: int) -> dict[str, list[Output]]:
    """Fills shards in order. In a shard wide dtypes come first: a tensor must start at a multiple of its item size."""
    shards: list[list[Output]] = [[]]
    size = 0
    for output in outputs:
        if shards[-1] and size + output.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(output)
        size += output.nbytes
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    ordered = [sorted(shard, key=lambda output: -DTYPES[output.dtype].itemsize) for shard in shards]
    return dict(zip(names, ordered, strict=True))


def _write_shard(file: Path, outputs: list[Output], read: Reader) -> Iterator[int]:
    """Writes a safetensors file piece by piece, yielding bytes written; it gets its name when it is complete.

    safetensors' own writer takes whole tensors only, and one fused tensor of K1 is 11 GB.
    """
    beside = file.with_name(f".{file.name}.tmp")
    with beside.open("wb") as stream:
        _write_header(stream, outputs)
        for output in outputs:
            for piece in output.pieces:
                tensor = read(piece).to(DTYPES[output.dtype]).contiguous().flatten()
                yield stream.write(tensor.view(torch.uint8).numpy().data)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(file)


def _write_header(stream: BinaryIO, outputs: list[Output]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for output in outputs:
        end = offset + output.nbytes
        header[output.name] = {"dtype": output.dtype, "shape": output.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    stream.write(len(text).to_bytes(8, "little") + text)


def _is_finished(file: Path, outputs: list[Output]) -> bool:
    if not file.is_file():
        return False
    try:
        tensors = read_headers([file]).tensors
    except CheckpointError:
        return False
    held = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    return held == {output.name: (output.dtype, output.shape) for output in outputs}


def _begin(target: Path, state: dict[str, Any]) -> None:
    """Makes the target folder, or finds the unfinished conversion of the same source in it."""
    target.mkdir(parents=True, exist_ok=True)
    if (target / STATE).is_file() and read_json(target / STATE) == state:
        return
    if any(target.iterdir()):
        raise CheckpointError("is not empty and holds no unfinished conversion of this source. Choose another.", target)
    write_text(target / STATE, json.dumps(state, indent=2))


def _state(stored: Stored, layout: Layout, dtype: str | None, max_shard_size: int | str) -> dict[str, Any]:
    """What must be unchanged for finished shards to be worth keeping."""
    stats = {str(file.resolve()): file.stat() for file in stored.files}
    files = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    return {"files": files, "layout": layout, "dtype": dtype, "max_shard_size": max_shard_size}


def _copy_side_files(source: Path, target: Path, dtype: str | None) -> None:
    for file in sorted(source.iterdir()):
        weights = file.name.endswith((".safetensors", ".safetensors.index.json", ".py", *PICKLES))
        if not file.is_file() or file.name.startswith(".") or weights:
            continue
        beside = target / f".{file.name}.tmp"
        shutil.copyfile(file, beside)
        beside.replace(target / file.name)
    config = read_json(target / "config.json")
    if dtype or "auto_map" in config:
        config.pop("auto_map", None)
        config.update({"dtype": dtype} if dtype else {})
        config = {key: value for key, value in config.items() if not (dtype and key == "torch_dtype")}
        write_text(target / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _index(shards: dict[str, list[Output]]) -> str:
    outputs = [output for shard in shards.values() for output in shard]
    metadata = {
        "total_parameters": sum(torch.Size(output.shape).numel() for output in outputs),
        "total_size": sum(output.nbytes for output in outputs),
    }
    weight_map = {output.name: name for name, shard in shards.items() for output in shard}
    return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"


def _dtype_word(dtype: str) -> str:
    words = {str(value).removeprefix("torch."): word for word, value in DTYPES.items()}
    if dtype not in words:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(words)}.")
    return words[dtype]
