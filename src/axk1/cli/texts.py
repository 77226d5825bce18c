"""Texts of a file as packed rows of tokens, for commands that compute over them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from axk1.layerwise.states import Rows

RowTokens = Annotated[int, typer.Option("--row-tokens", min=2, help="Tokens that are computed together at most.")]


def read_rows(source: Path | str, file: Path, tokens: int, row_tokens: int) -> Rows:
    """The first ``tokens`` tokens of the texts or conversations in ``file``, by the tokenizer of the checkpoint
    ``source``; documents that do not fit a row of ``row_tokens`` are cut, conversations left out.

    Raises:
        ValueError: a file that holds none, or is none of both.
    """
    from axk1.checkpoint.files import load_config
    from axk1.checkpoint.source import open_source
    from axk1.layerwise.states import Rows
    from axk1.load import load_tokenizer
    from axk1.train.packing import packed_whole
    from axk1.train.sources import source_examples

    if not file.is_file():
        raise ValueError(f"{file} is no file: give JSONL, plain text or Parquet.")
    with open_source(source) as opened:
        tokenizer, config = load_tokenizer(opened.folder), load_config(opened.folder)
    length = min(row_tokens, config.max_position_embeddings)
    examples = source_examples(str(file), tokenizer, length)
    pad: Any = tokenizer.pad_token_id
    return Rows.of(packed_whole(_first(examples, tokens), length, pad))


def _first(examples: Iterator[Any], tokens: int) -> Iterator[Any]:
    taken = 0

    def room(example: Any) -> bool:
        nonlocal taken
        before, taken = taken, taken + len(example.input_ids)
        return before < tokens

    return takewhile(room, examples)
