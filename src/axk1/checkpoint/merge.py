"""A weighted sum of checkpoints of one shape, one piece of a tensor at a time.

A.X K1's report merges an instruct and a reasoning model of one base this way (Think-Fusion, 0.2 and 0.8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from axk1.checkpoint.beside import merged_card
from axk1.checkpoint.compressed import check_not_quantized
from axk1.checkpoint.convert import dtype_word
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.files import Stored, load_config, open_checkpoint
from axk1.checkpoint.names import HEAD_KEYS, LAYOUTS, ROUTER_BIAS, Layout, expected_tensors, expert_slices
from axk1.checkpoint.streaming import Job, Output, Piece, Progress, Reader, source_pieces, write_checkpoint
from axk1.checkpoint.verify import Found, check_tensors, with_mtp_layers
from axk1.config import AXK1Config

_FREE = (
    *("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache"),
    *("initializer_range", "attention_dropout", "output_router_logits", "return_dict", "output_attentions"),
    *("mtp_loss_weight", "router_aux_loss_coef", "router_bias_update_rate"),
)
"""Fields that do not say what the weights compute."""


class Source(NamedTuple):
    """One of the checkpoints, and its factor."""

    folder: Path
    weight: float
    stored: Stored
    config: AXK1Config
    found: Found
    pieces: dict[str, tuple[Piece, ...]]


class WeightedReader(Reader):
    """Reads pieces by the names of tensors in the per-expert layout: sums over all sources, in fp32.

    A tensor that a source does not hold is what its absence means: zeros for a router's bias, else ones.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        super().__init__(Stored([file for source in sources for file in source.stored.files], {}))
        self.sources = [(source, Reader(source.stored)) for source in sources]

    def __call__(self, piece: Piece) -> torch.Tensor:
        total, absent = torch.zeros(()), 0.0 if piece.key.endswith(ROUTER_BIAS) else 1.0
        for source, read in self.sources:
            held = source.pieces.get(piece.key)
            total = total + source.weight * (absent if held is None else read(held[0]).float())
        return total


def merge_checkpoints(
    folders: Sequence[Path | str],
    weights: Sequence[float],
    target: Path | str,
    layout: Layout | None = None,
    max_shard_size: int | str = "5GB",
    dtype: str | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Writes the sum of checkpoints, each times its weight, to the folder ``target`` and returns its weight files.

    Each source may be in either layout. Memory stays at a piece of each (one expert's matrix, or the embedding); a run
    that was cut off goes on with the same arguments. Configuration and tokenizer are the first one's.

    Args:
        weights: as many as ``folders``; their sum is 1, since norms and routers are summed like everything else.
        layout: ``released`` or ``per_expert``; the first one's if None.
        dtype: of the result; each tensor's in the first one if None. Sums are in fp32.

    Raises:
        CheckpointError: a faulty or quantised source, sources of several shapes or tokenizers, or a target that holds
            something else.
        ValueError: weights that do not fit, an unknown layout or dtype.
    """
    _check_weights(folders, weights)
    word = None if dtype is None else dtype_word(dtype)
    sources = [_source(Path(folder), weight) for folder, weight in zip(folders, weights, strict=True)]
    for other in sources[1:]:
        _check_alike(sources[0], other)
    layout = layout or sources[0].found.layout
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} must be one of {', '.join(LAYOUTS)}.")
    wish: dict[str, Any] = {"layout": layout, "dtype": dtype, "weights": list(map(float, weights))}
    return write_checkpoint(
        sources[0].folder,
        Path(target),
        _jobs(sources, layout, word),
        WeightedReader(sources),
        wish,
        max_shard_size,
        {} if dtype is None else {"dtype": dtype},
        progress,
        card=merged_card([(source.folder, source.weight) for source in sources]),
    )


def _check_weights(folders: Sequence[Path | str], weights: Sequence[float]) -> None:
    if len(folders) < 2 or len(folders) != len(weights):
        raise ValueError(
            f"There are {len(folders)} checkpoints and {len(weights)} weights: give two or more, one each."
        )
    if not all(map(math.isfinite, weights)) or abs(sum(weights) - 1) > 1e-6:
        words = ", ".join(f"{weight:g}" for weight in weights)
        raise ValueError(f"The weights {words} sum to {sum(weights):g}: they must sum to 1.")


def _source(folder: Path, weight: float) -> Source:
    stored, config = open_checkpoint(folder), load_config(folder)
    check_not_quantized(config, folder, "merged")
    found = check_tensors(stored, config)
    config = with_mtp_layers(config, found.mtp_layers)
    pieces = source_pieces(stored, config)
    bare = {name.removeprefix(found.prefix): held for name, held in pieces.items()}
    return Source(folder, weight, stored, config, found, bare)


def _check_alike(first: Source, other: Source) -> None:
    """Raises CheckpointError where the two are not models of one shape over one vocabulary."""
    one, two = first.config.to_dict(), other.config.to_dict()
    differing = [key for key in one if key not in _FREE and one[key] != two.get(key)]
    if differing:
        key = differing[0]
        raise CheckpointError(
            f"{key} is {two.get(key)!r}, and {one[key]!r} in {first.folder}: only models of one shape can be merged.",
            other.folder,
        )
    files = [source.folder / "tokenizer.json" for source in (first, other)]
    if all(file.is_file() for file in files) and files[0].read_bytes() != files[1].read_bytes():
        raise CheckpointError(
            f"its tokenizer.json is not that of {first.folder}: a token must mean the same in all.", files[1]
        )
    heads = [[key for key in HEAD_KEYS if key in source.stored.tensors] for source in (first, other)]
    if first.found.prefix != other.found.prefix or heads[0] != heads[1]:
        raise CheckpointError(f"has another head than {first.folder}.", other.folder)


def _jobs(sources: Sequence[Source], layout: Layout, dtype: str | None) -> list[Job]:
    first, jobs = sources[0], []
    for spec in expected_tensors(first.config, layout, first.found.prefix, head=False):
        bare = spec.name.removeprefix(first.found.prefix)
        parts = tuple(Piece(part.name) for part in expert_slices(first.config, bare)) or (Piece(bare),)
        if any(part.key in source.pieces for source in sources for part in parts):
            held = first.pieces.get(parts[0].key)
            word = "F32" if bare.endswith(ROUTER_BIAS) or held is None else first.stored.tensors[held[0].key].dtype
            keeps = bare.endswith(ROUTER_BIAS)
            jobs.append(Job((Output(spec.name, word if keeps else dtype or word, spec.shape),), parts, lambda p: (p,)))
    for key in HEAD_KEYS:
        if key in first.stored.tensors:
            held = first.stored.tensors[key]
            jobs.append(Job((Output(key, dtype or held.dtype, held.shape),), (Piece(key),), lambda piece: (piece,)))
    return jobs
