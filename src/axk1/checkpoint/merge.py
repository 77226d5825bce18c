"""A weighted sum of checkpoints of one shape, one piece of a tensor at a time.

A.X K1's report merges an instruct and a reasoning model of one base this way (Think-Fusion, 0.2 and 0.8).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from axk1.checkpoint.beside import merged_card
from axk1.checkpoint.compressed import check_not_quantized
from axk1.checkpoint.convert import dtype_word
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.files import Stored, load_config
from axk1.checkpoint.names import HEAD_KEYS, LAYOUTS, ROUTER_BIAS, Layout, expected_tensors, expert_slices
from axk1.checkpoint.shards import Output
from axk1.checkpoint.source import Source, open_source
from axk1.checkpoint.streaming import Job, Made, Piece, Progress, Reader, rows_of, source_pieces, write_checkpoint
from axk1.checkpoint.verify import Found, check_tensors, with_mtp_layers
from axk1.config import AXK1Config

_FREE = (
    *("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache"),
    *("initializer_range", "attention_dropout", "output_router_logits", "return_dict", "output_attentions"),
    *("mtp_loss_weight", "router_aux_loss_coef", "router_bias_update_rate"),
)
"""Fields that do not say what the weights compute."""


class Term(NamedTuple):
    """One of the checkpoints, and its factor."""

    source: Source
    weight: float
    config: AXK1Config
    found: Found
    pieces: dict[str, tuple[Piece, ...]]
    """By the names of the per-expert layout, without a prefix."""

    @property
    def stored(self) -> Stored:
        """Its headers."""
        return self.source.stored

    def piece(self, wanted: Piece) -> Piece | None:
        """Where this source has ``wanted``, a piece by those names; None where it does not hold the tensor."""
        held = self.pieces.get(wanted.key)
        return None if held is None else rows_of(held, wanted.start, wanted.stop)


class WeightedReader(Reader):
    """Reads pieces by the names of tensors in the per-expert layout: sums over all sources, in fp32.

    A tensor that a source does not hold is what its absence means: zeros for a router's bias, else ones.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        super().__init__(terms[0].source)
        self.terms = [(term, Reader(term.source)) for term in terms]

    @property
    def sources(self) -> list[Source]:
        """All that are summed."""
        return [term.source for term, _ in self.terms]

    def __call__(self, piece: Piece) -> torch.Tensor:
        total, absent = torch.zeros(()), 0.0 if piece.key.endswith(ROUTER_BIAS) else 1.0
        for term, read in self.terms:
            held = term.piece(piece)
            total = total + term.weight * (absent if held is None else read(held).float())
        return total

    def nbytes(self, piece: Piece) -> int:
        """Bytes that are read for ``piece``, of all sources."""
        return sum(read.nbytes(held) for read, held in self._held(piece))

    def place(self, piece: Piece) -> tuple[int, int]:
        """Where the first source that holds ``piece`` has it."""
        return next(read.place(held) for read, held in self._held(piece))

    def files(self, piece: Piece) -> set[Path]:
        """The files of all sources that ``piece`` is read from."""
        return {file for read, held in self._held(piece) for file in read.files(held)}

    def _held(self, piece: Piece) -> Iterator[tuple[Reader, Piece]]:
        return ((read, held) for term, read in self.terms if (held := term.piece(piece)) is not None)


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

    Each source is a folder, a name on the hub or an HTTP address, in either layout. Memory stays at some pieces of each
    (an expert's matrix, or rows); a run that was cut off goes on with the same arguments. Configuration and tokenizer
    are the first one's.

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
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} must be one of {', '.join(LAYOUTS)}.")
    with ExitStack() as stack:
        opened = [stack.enter_context(open_source(folder)) for folder in folders]
        terms = [_term(source, weight) for source, weight in zip(opened, weights, strict=True)]
        for other in terms[1:]:
            _check_alike(terms[0], other)
        layout = layout or terms[0].found.layout
        wish: dict[str, Any] = {"layout": layout, "dtype": dtype, "weights": list(map(float, weights))}
        return write_checkpoint(
            WeightedReader(terms),
            Path(target),
            _jobs(terms, layout, word),
            wish,
            max_shard_size,
            {} if dtype is None else {"dtype": dtype},
            progress,
            card=merged_card([(term.source.name, term.weight) for term in terms], opened[0].folder),
        )


def _check_weights(folders: Sequence[Path | str], weights: Sequence[float]) -> None:
    if len(folders) < 2 or len(folders) != len(weights):
        raise ValueError(
            f"There are {len(folders)} checkpoints and {len(weights)} weights: give two or more, one each."
        )
    if not all(map(math.isfinite, weights)) or abs(sum(weights) - 1) > 1e-6:
        words = ", ".join(f"{weight:g}" for weight in weights)
        raise ValueError(f"The weights {words} sum to {sum(weights):g}: they must sum to 1.")


def _term(source: Source, weight: float) -> Term:
    config = load_config(source.folder)
    check_not_quantized(config, source.folder, "merged")
    found = check_tensors(source.stored, config)
    config = with_mtp_layers(config, found.mtp_layers)
    pieces = source_pieces(source.stored, config)
    bare = {name.removeprefix(found.prefix): held for name, held in pieces.items()}
    return Term(source, weight, config, found, bare)


def _check_alike(first: Term, other: Term) -> None:
    """Raises CheckpointError where the two are not models of one shape over one vocabulary."""
    one, two = first.config.to_dict(), other.config.to_dict()
    differing = [key for key in one if key not in _FREE and one[key] != two.get(key)]
    if differing:
        key = differing[0]
        raise CheckpointError(
            f"{key} is {two.get(key)!r}, and {one[key]!r} in {first.source.given}: only models of one shape can be "
            "merged.",
            other.source.given,
        )
    files = [term.source.folder / "tokenizer.json" for term in (first, other)]
    if all(file.is_file() for file in files) and files[0].read_bytes() != files[1].read_bytes():
        raise CheckpointError(
            f"its tokenizer.json is not that of {first.source.given}: a token must mean the same in all.",
            other.source.given,
        )
    heads = [[key for key in HEAD_KEYS if key in term.stored.tensors] for term in (first, other)]
    if first.found.prefix != other.found.prefix or heads[0] != heads[1]:
        raise CheckpointError(f"has another head than {first.source.given}.", other.source.given)


def _jobs(terms: Sequence[Term], layout: Layout, dtype: str | None) -> list[Job]:
    first, jobs = terms[0], []
    for spec in expected_tensors(first.config, layout, first.found.prefix, head=False):
        bare = spec.name.removeprefix(first.found.prefix)
        parts = tuple(Piece(part.name) for part in expert_slices(first.config, bare)) or _rows(bare, first)
        if any(part.key in term.pieces for term in terms for part in parts):
            held = first.pieces.get(parts[0].key)
            word = "F32" if bare.endswith(ROUTER_BIAS) or held is None else first.stored.tensors[held[0].key].dtype
            keeps = bare.endswith(ROUTER_BIAS)
            jobs.append(_sum(Output(spec.name, word if keeps else dtype or word, spec.shape), parts))
    for key in HEAD_KEYS:
        if key in first.stored.tensors:
            held = first.stored.tensors[key]
            jobs.append(_sum(Output(key, dtype or held.dtype, held.shape), _rows(key, first)))
    return jobs


def _rows(bare: str, first: Term) -> tuple[Piece, ...]:
    """A tensor in the pieces in which the first source is read, by the names without a prefix."""
    held = first.pieces.get(bare, (Piece(bare),))
    return (Piece(bare),) if len(held) == 1 else tuple(piece._replace(key=bare) for piece in held)


def _sum(output: Output, parts: tuple[Piece, ...]) -> Job:
    return Job((output,), parts, lambda piece: Made((piece,)))
