"""Which files make up a checkpoint, and what their headers say. No tensor is read here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.guard import check_generation, check_kernels
from axk1.checkpoint.reading import check_ordinary, check_texts, read_json
from axk1.config import AXK1Config

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MODEL_TYPES = ("axk1", "AXK1")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class StoredTensor(NamedTuple):
    """What a header says about one tensor. ``dtype`` is the format's own word, such as ``BF16``."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass
class Stored:
    """The tensors of a checkpoint by name, from headers only."""

    files: list[Path]
    tensors: dict[str, StoredTensor]


def load_config(folder: Path) -> AXK1Config:
    """Reads ``config.json`` in ``folder``; code that it names (``auto_map``) is never run.

    Raises:
        CheckpointError: no such file, not JSON, another ``model_type``, or values that contradict each other.
    """
    file = folder / "config.json"
    if folder.is_dir():
        check_texts(folder)
    values = read_json(file)
    if values.get("model_type") not in MODEL_TYPES:
        raise CheckpointError(
            f"model_type is {values.get('model_type')!r}, not 'axk1': this is another architecture's checkpoint.", file
        )
    check_kernels(values, file)
    check_generation(folder)
    try:
        return AXK1Config.from_dict(values)
    except Exception as error:  # transformers' own fields raise errors of every type
        raise CheckpointError(f"the configuration is not usable: {error}", file) from error


def open_checkpoint(folder: Path | str, subfolder: str = "", variant: str | None = None) -> Stored:
    """Finds the weight files of a local checkpoint and reads their headers.

    A single ``model.safetensors`` goes before an index, as in transformers. ``variant`` reads ``model.{variant}.*``.

    Raises:
        CheckpointError: no safetensors file, a pickle instead, an unsafe or wrong index, a truncated file.
    """
    folder = Path(folder) / subfolder
    single, index = folder / _with_variant(SINGLE, variant), folder / _with_variant(INDEX, variant)
    if single.exists() or single.is_symlink():
        return read_headers([inside(folder, single.name, folder)])
    if index.exists():
        return _open_sharded(folder, index)
    if not folder.is_dir():
        raise CheckpointError("is no folder. Give the folder of a checkpoint.", folder)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise CheckpointError(
            f"holds {pickles[0]} but no {single.name}. Pickle files can run code and are never read: get or make a "
            "safetensors version of this checkpoint.",
            folder,
        )
    raise CheckpointError(f"holds neither {single.name} nor {index.name}. Give the folder of a checkpoint.", folder)


def read_headers(files: Iterable[Path]) -> Stored:
    """Headers of safetensors files: names, dtypes, shapes; the file's size is checked against its header.

    Raises:
        CheckpointError: a file that is missing, not safetensors, truncated or damaged, or a tensor stored twice.
    """
    stored = Stored(list(files), {})
    for file in stored.files:
        for key, tensor in _read_header(file).items():
            if key in stored.tensors:
                other = stored.tensors[key].file.name
                raise CheckpointError(f"tensor {key!r} is stored twice, here and in {other}. Remove one.", file, key)
            stored.tensors[key] = tensor
    return stored


def inside(folder: Path, name: Any, source: Path) -> Path:
    """``folder / name``, which must be a plain name: what a file says never leads out of its folder.

    The folder is the user's own. Where it holds a link under that name (of the hub's cache, of Kubernetes, of DVC, to
    another disk), the user put it there, and it is followed.

    Raises:
        CheckpointError: ``source`` (the file that gave the name) points out of the folder, or to no ordinary file.
    """
    if not isinstance(name, str) or not name or Path(name).name != name or name == ".." or set(name) & {"\\", "\0"}:
        raise CheckpointError(f"names the file {name!r}, which is not a plain name in its own folder.", source)
    check_ordinary(folder / name)
    return folder / name


def _open_sharded(folder: Path, index: Path) -> Stored:
    values = read_json(index)
    weight_map = values.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("has no 'weight_map'. Download it again.", index)
    if not isinstance(values.get("metadata"), dict):
        raise CheckpointError("has no 'metadata', without which transformers does not load. Add an empty one.", index)
    files = {str(name): inside(folder, name, index) for name in weight_map.values()}
    for name, file in files.items():
        if not file.is_file():
            raise CheckpointError(f"names {name!r}, which is missing. Download that file.", index)
        if not name.endswith(".safetensors"):
            raise CheckpointError(f"names {name!r}, which is no safetensors file. Only safetensors are read.", index)
    stored = read_headers(files.values())
    match_index(stored, {key: files[name] for key, name in weight_map.items()}, index)
    return stored


def match_index(stored: Stored, promised: Mapping[str, Path], index: Path) -> None:
    """Compares what files hold with what their ``index`` promises, file by tensor.

    Raises:
        CheckpointError: one of them lacks a tensor, or holds one that is not listed.
    """
    for key, file in promised.items():
        if key not in stored.tensors or stored.tensors[key].file != file:
            raise CheckpointError(f"lacks tensor {key!r}, which {index.name} promises. Download it again.", file, key)
    for key, tensor in stored.tensors.items():
        if key not in promised:
            raise CheckpointError(f"holds tensor {key!r}, which {index.name} does not list.", tensor.file, key)


def _read_header(file: Path) -> dict[str, StoredTensor]:
    if file.suffix != ".safetensors":
        raise CheckpointError("is no safetensors file. Pickle files can run code and are never read.", file)
    try:
        with safe_open(file, framework="np") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 - not a dict
            return {key: StoredTensor(file, s.get_dtype(), tuple(s.get_shape())) for key, s in slices.items()}
    except FileNotFoundError:
        raise CheckpointError("is missing.", file) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"is truncated or damaged ({error}). Download it again.", file) from error


def _with_variant(name: str, variant: str | None) -> str:
    return name if variant is None else name.replace("model.", f"model.{variant}.", 1)
