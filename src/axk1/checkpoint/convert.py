"""Rewrites a checkpoint in the other layout, with other shards or in another dtype, one piece of a tensor at a time."""

from __future__ import annotations

from pathlib import Path

from axk1.checkpoint.compressed import check_not_quantized
from axk1.checkpoint.files import Stored, load_config
from axk1.checkpoint.names import HEAD_KEYS, LAYOUTS, Layout, expected_tensors, layer_index
from axk1.checkpoint.shards import DTYPES, Output
from axk1.checkpoint.source import open_source
from axk1.checkpoint.streaming import STATE, Job, Made, Progress, Reader, source_pieces, write_checkpoint
from axk1.checkpoint.verify import FLOATS, check_tensors, with_mtp_layers
from axk1.config import AXK1Config

__all__ = ["STATE", "Progress", "Reader", "attach_module", "convert_checkpoint"]


def convert_checkpoint(
    source: Path | str,
    target: Path | str,
    layout: Layout = "released",
    max_shard_size: int | str = "5GB",
    dtype: str | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Writes ``source`` to the folder ``target`` and returns its weight files.

    The source is a folder, a name on the hub or an HTTP address. Memory stays at some pieces (an expert's matrix, or
    rows). A run that was cut off goes on with the same arguments: finished shards stay. Without ``dtype`` every value
    keeps its bits. Configuration and tokenizer files are copied, code and pickles are not.

    Args:
        layout: ``released`` or ``per_expert``.
        max_shard_size: bytes, or a text such as ``"5GB"``; a larger tensor gets a shard of its own.
        dtype: ``bfloat16``, ``float16``, ``float32``; the router's bias stays fp32.

    Raises:
        CheckpointError: the source is faulty or quantised, or the target holds something else.
        ValueError: an unknown layout or dtype.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} must be one of {', '.join(LAYOUTS)}.")
    word = None if dtype is None else dtype_word(dtype)
    wish = {"layout": layout, "dtype": dtype}
    values = {} if dtype is None else {"dtype": dtype}
    with open_source(source) as opened:
        config = load_config(opened.folder)
        check_not_quantized(config, opened.folder, "converted")
        jobs = _jobs(opened.stored, config, layout, word)
        return write_checkpoint(Reader(opened), Path(target), jobs, wish, max_shard_size, values, progress)


def attach_module(
    source: Path | str,
    module: Path,
    target: Path | str,
    max_shard_size: int | str = "5GB",
    progress: Progress | None = None,
) -> list[Path]:
    """Writes ``source`` with the MTP module in the file ``module``, in place of any it has; returns the weight files.

    Memory and interruptions as in :func:`convert_checkpoint`; every value keeps its bits, and the layout stays.

    Args:
        module: safetensors with the keys of decoder layer ``num_hidden_layers``, in the layout of ``source``.

    Raises:
        CheckpointError: the files do not fit together, or the target holds something else.
    """
    values = {"num_nextn_predict_layers": 1}
    with open_source(source) as opened:
        config = load_config(opened.folder)
        check_not_quantized(config, opened.folder, "given a module")
        layout, depth = check_tensors(opened.stored, config).layout, config.num_hidden_layers
        joined = opened.with_file(module, kept=lambda name: (layer_index(name) or 0) < depth)
        jobs = _jobs(joined.stored, with_mtp_layers(config, 1), layout, None)
        return write_checkpoint(Reader(joined), Path(target), jobs, {"module": 1}, max_shard_size, values, progress)


def _jobs(stored: Stored, config: AXK1Config, layout: Layout, dtype: str | None) -> list[Job]:
    found = check_tensors(stored, config)
    config = with_mtp_layers(config, found.mtp_layers)
    specs = {spec.name: spec.shape for spec in expected_tensors(config, layout, found.prefix)}
    for key in HEAD_KEYS:
        if key in stored.tensors:
            specs[key] = stored.tensors[key].shape
    sources = source_pieces(stored, config)
    jobs = []
    for name, shape in specs.items():
        pieces = sources.get(name)
        if pieces:
            held = stored.tensors[pieces[0].key].dtype
            wanted = None if name.endswith("e_score_correction_bias") else dtype
            jobs.append(Job((Output(name, wanted or held, shape),), pieces, lambda piece: Made((piece,))))
    return jobs


def dtype_word(dtype: str) -> str:
    """The files' word for a dtype of torch.

    Raises:
        ValueError: an unknown one.
    """
    words = {str(DTYPES[word]).removeprefix("torch."): word for word in FLOATS}
    if dtype not in words:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(words)}.")
    return words[dtype]
