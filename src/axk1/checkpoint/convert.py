"""Rewrites a checkpoint in the other layout, with other shards or in another dtype, one piece of a tensor at a time."""

from __future__ import annotations

from pathlib import Path

from axk1.checkpoint.compressed import check_not_quantized
from axk1.checkpoint.files import Stored, load_config
from axk1.checkpoint.names import HEAD_KEYS, LAYOUTS, Layout, expected_tensors
from axk1.checkpoint.shards import DTYPES, Output
from axk1.checkpoint.source import open_source
from axk1.checkpoint.streaming import STATE, Job, Made, Progress, Reader, source_pieces, write_checkpoint
from axk1.checkpoint.verify import FLOATS, check_tensors, with_mtp_layers
from axk1.config import AXK1Config

__all__ = ["STATE", "Progress", "Reader", "convert_checkpoint"]


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
        CheckpointError: the source is faulty or quantised, or the target holds something else.
        ValueError: an unknown layout or dtype.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} must be one of {', '.join(LAYOUTS)}.")
    word = None if dtype is None else _dtype_word(dtype)
    wish = {"layout": layout, "dtype": dtype}
    values = {} if dtype is None else {"dtype": dtype}
    with open_source(source) as opened:
        config = load_config(opened.folder)
        check_not_quantized(config, opened.folder, "converted")
        jobs = _jobs(opened.stored, config, layout, word)
        return write_checkpoint(opened, Path(target), jobs, wish, max_shard_size, values, progress)


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


def _dtype_word(dtype: str) -> str:
    words = {str(DTYPES[word]).removeprefix("torch."): word for word in FLOATS}
    if dtype not in words:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(words)}.")
    return words[dtype]
