"""Writes a checkpoint as GGUF, some rows of a matrix at a time; goes on after an interruption."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf  # pyright: ignore[reportMissingImports]
import numpy as np
from gguf import GGMLQuantizationType as Kind  # pyright: ignore[reportMissingImports]

from axk1.checkpoint.compressed import check_method
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.files import load_config
from axk1.checkpoint.journal import STATE, Finished, Journal, settled
from axk1.checkpoint.names import TensorSpec, expected_tensors
from axk1.checkpoint.source import Source, open_source
from axk1.checkpoint.streaming import Progress, begin, begun_with, byte_count, check_room
from axk1.checkpoint.verify import check_tensors, with_mtp_layers
from axk1.config import AXK1Config
from axk1.files import only_writer, replacing
from axk1.integrations.llamacpp import check_gguf
from axk1.integrations.llamacpp.architecture import ARCHITECTURE, add_architecture, check_architecture
from axk1.integrations.llamacpp.library import Library
from axk1.integrations.llamacpp.tensors import Matrices, Tensor, blocks, held_tensors, tensors_of
from axk1.integrations.llamacpp.vocabulary import add_vocabulary
from axk1.quantized.gguf import FILE_TYPES, PLAIN

Quantize = Callable[[np.ndarray, Kind], np.ndarray]
_ZEROS = bytes(gguf.GGUF_DEFAULT_ALIGNMENT)


@dataclass(frozen=True)
class Shard:
    """One file: its name and its tensors with their types."""

    name: str
    tensors: tuple[tuple[Tensor, Kind], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor_bytes(tensor, kind) for tensor, kind in self.tensors)


def tensor_bytes(tensor: Tensor, kind: Kind) -> int:
    """Bytes of ``tensor`` in the type ``kind``."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return tensor.size // block * size


def export_gguf(
    source: Path | str,
    target: Path | str,
    file_type: str,
    split_size: int | str = "20GB",
    progress: Progress | None = None,
) -> list[Path]:
    """Writes ``source``, in either layout or quantised by ``axk1 quantize``, as GGUF; returns the files in order.

    Memory stays at some rows of a matrix. A run that was cut off goes on with the same arguments: finished files stay.

    Args:
        source: a folder, a name on the hub or an HTTP address.
        target: folder for ``model-TYPE.gguf``, or for ``model-TYPE-00001-of-000NN.gguf`` and so on.
        file_type: one of ``FILE_TYPES``; those beside ``PLAIN`` need llama.cpp as `make llamacpp` builds it, whose
            quantiser gives types to tensors and makes their bytes.
        split_size: bytes of a file, or a text such as ``"20GB"``; a larger tensor gets a file of its own.

    Raises:
        CheckpointError: the source is faulty or not finite, llama.cpp cannot run it, or the target holds something
            else or has no room.
        ValueError: an unknown argument, or gguf or llama.cpp is missing or of a version that was not tested.
    """
    if file_type not in FILE_TYPES:
        raise ValueError(f"file_type={file_type!r} must be one of {', '.join(FILE_TYPES)}.")
    check_gguf()
    largest = byte_count(split_size)
    with open_source(source) as opened:
        model = _open(opened)
        library = None if file_type in PLAIN else Library()
        tensors = list(tensors_of(model.config, model.held))
        shards = _shards(choose_types(model.config, tensors, file_type, library), file_type, largest)
        return _write(model, Path(target), shards, file_type, library, split_size, progress)


@dataclass(frozen=True)
class Model:
    """A checkpoint that is to be written."""

    source: Source
    config: AXK1Config
    """Its MTP layers are those that are written."""
    matrices: Matrices
    held: dict[str, TensorSpec]


def _open(source: Source) -> Model:
    folder, config = source.folder, load_config(source.folder)
    check_method(config, folder)
    check_architecture(config, folder)
    found = check_tensors(source.stored, config)
    if not found.prefix or "lm_head.weight" not in source.stored.tensors:
        raise CheckpointError("holds no language model with a head, which llama.cpp needs.", source.given)
    matrices = Matrices(source, with_mtp_layers(config, found.mtp_layers))
    config = with_mtp_layers(config, min(found.mtp_layers, 1))  # llama.cpp runs one
    return Model(source, config, matrices, held_tensors(config, matrices))


def _write(
    model: Model,
    target: Path,
    shards: list[Shard],
    file_type: str,
    library: Library | None,
    split_size: int | str,
    progress: Progress | None,
) -> list[Path]:
    begun = begun_with([model.source], {"gguf": file_type, "split_size": split_size})
    journal = Journal.found(target, begun)
    check_room(target, sum(shard.nbytes for shard in shards if not journal or shard.name not in journal.shards))
    target.mkdir(parents=True, exist_ok=True)
    with only_writer(target):
        journal = begin(target, begun)
        quantize = library.quantize if library else gguf.quants.quantize
        _write_shards(model, journal, shards, file_type, quantize, progress)
        (target / STATE).unlink()
    return [target / shard.name for shard in shards]


def exported_bytes(config: AXK1Config, file_type: str) -> int:
    """Bytes of all tensors that `export_gguf` writes of a model of this configuration without router biases."""
    specs = expected_tensors(config, "per_expert")
    tensors = tensors_of(config, {spec.name: spec for spec in specs if not spec.optional})
    library = None if file_type in PLAIN else Library()
    return sum(tensor_bytes(*entry) for entry in choose_types(config, list(tensors), file_type, library))


def choose_types(
    config: AXK1Config, tensors: list[Tensor], file_type: str, library: Library | None
) -> list[tuple[Tensor, Kind]]:
    """Each tensor with its type: one for all matrices, or what llama.cpp's own quantiser gives."""
    chosen: dict[str, Kind] = {}
    if library is not None:
        with tempfile.TemporaryDirectory() as folder:
            skeleton = _skeleton(config, tensors, Path(folder) / "skeleton.gguf")
            chosen = library.types(skeleton, gguf.LlamaFileType[FILE_TYPES[file_type]])
    return [(tensor, _type(tensor, chosen, file_type)) for tensor in tensors]


def _type(tensor: Tensor, chosen: dict[str, Kind], file_type: str) -> Kind:
    if tensor.full:
        return Kind.F32
    kind = chosen[tensor.name] if chosen else Kind[file_type.upper()]
    return Kind.F16 if tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] else kind


def _skeleton(config: AXK1Config, tensors: list[Tensor], file: Path) -> Path:
    """A file in bf16 with all names and shapes whose values are a hole: it takes no room on the disk."""
    entries = [(tensor, Kind.F32 if tensor.full else Kind.BF16) for tensor in tensors]
    with file.open("wb") as stream:
        writer = _writer(stream, entries)
        add_architecture(writer, config)
        _write_head(writer)
        stream.truncate(stream.tell() + sum(_padded(tensor_bytes(*entry)) for entry in entries))
    return file


def _shards(tensors: list[tuple[Tensor, Kind]], file_type: str, largest: int) -> list[Shard]:
    groups: list[list[tuple[Tensor, Kind]]] = [[]]
    size = 0
    for entry in tensors:
        if groups[-1] and size + tensor_bytes(*entry) > largest:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += tensor_bytes(*entry)
    stem, count = f"model-{file_type}", len(groups)
    names = (
        [gguf.SHARD_NAME_FORMAT.format(stem, i, count) for i in range(1, count + 1)] if count > 1 else [f"{stem}.gguf"]
    )
    return [Shard(name, tuple(group)) for name, group in zip(names, groups, strict=True)]


def _write_shards(
    model: Model, journal: Journal, shards: list[Shard], file_type: str, quantize: Quantize, progress: Progress | None
) -> None:
    left = [(i, shard) for i, shard in enumerate(shards) if shard.name not in journal.shards]
    total = sum(shard.nbytes for shard in shards)
    done = total - sum(shard.nbytes for _, shard in left)
    for at, (index, shard) in enumerate(left):
        with replacing(journal.folder / shard.name) as stream:
            writer = _writer(stream, shard.tensors)
            if index == 0:
                _add_fields(writer, model, file_type)
            _add_split(writer, index, len(shards), sum(len(each.tensors) for each in shards))
            _write_head(writer)
            for written in _write_values(stream, model, shard, quantize):
                done += written
                if progress:
                    progress(done, total)
        following = left[at + 1][1].tensors if at + 1 < len(left) else ()
        needed = {file for tensor, _ in following for name in tensor.sources for file in model.matrices.files(name)}
        pending = settled([model.source], needed)
        journal.written(shard.name, Finished.of(journal.folder / shard.name), pending)


def _writer(stream: BinaryIO, tensors: Any) -> Any:
    """gguf's writer into a stream that is open already."""
    writer: Any = gguf.GGUFWriter(None, ARCHITECTURE)
    for tensor, kind in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor_bytes(tensor, kind), raw_dtype=kind
        )
    writer.fout, writer.state = [stream], gguf.gguf_writer.WriterState.EMPTY
    return writer


def _write_head(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_padding(writer.fout[0], writer.fout[0].tell())


def _add_fields(writer: Any, model: Model, file_type: str) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(model.source.name.rpartition("/")[2])
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[file_type]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_architecture(writer, model.config)
    add_vocabulary(writer, model.source.folder, model.config)


def _add_split(writer: Any, index: int, count: int, tensors: int) -> None:
    if count > 1:
        if index:
            writer.kv_data[0].pop(gguf.Keys.General.ARCHITECTURE)  # later files hold nothing but their number
        writer.add_uint16(gguf.Keys.Split.LLM_KV_SPLIT_NO, index)
        writer.add_uint16(gguf.Keys.Split.LLM_KV_SPLIT_COUNT, count)
        writer.add_int32(gguf.Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, tensors)


def _write_values(stream: BinaryIO, model: Model, shard: Shard, quantize: Quantize) -> Iterator[int]:
    shapes = {name: spec.shape for name, spec in model.held.items()}
    for tensor, kind in shard.tensors:
        for block in blocks(tensor, model.matrices, shapes):
            if not block.isfinite().all():
                raise CheckpointError(f"a tensor of {tensor.name!r} is not finite.", model.source.given)
            data = quantize(block.numpy(), kind)
            if kind is Kind.F16 and not np.isfinite(data.view(np.float16)).all():
                raise CheckpointError(f"{tensor.name!r} overflows in f16: choose bf16.", model.source.given)
            yield stream.write(np.ascontiguousarray(data).data)
        size = tensor_bytes(tensor, kind)
        stream.write(_ZEROS[: _padded(size) - size])


def _padded(size: int) -> int:
    alignment = gguf.GGUF_DEFAULT_ALIGNMENT
    return math.ceil(size / alignment) * alignment
