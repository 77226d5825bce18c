"""What a packed row holds, as text: its documents, and which parts of them are learned."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from axk1.modeling.objectives import IGNORE


class Document(NamedTuple):
    """One document of a row.

    Attributes:
        start: its first place in the row.
        tokens: how many it has.
        learned: how many of these are targets of the next token's loss: labelled, and not its first.
        parts: runs of text, each with whether it is labelled.
    """

    start: int
    tokens: int
    learned: int
    parts: list[tuple[bool, str]]


def documents(row: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> Iterator[Document]:
    """The documents of a packed row ``[3, tokens]``: ids, labels, positions, which restart at 0 in each."""
    ids, labels, positions = row
    starts = [place for place, position in enumerate(positions) if place == 0 or position == 0]
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        known = labels[start:stop] != IGNORE
        runs = groupby(range(start, stop), key=lambda place, start=start, known=known: bool(known[place - start]))
        parts = [(learned, _text(tokenizer, ids[list(places)])) for learned, places in runs]
        yield Document(start, stop - start, int(known[1:].sum()), parts)


def _text(tokenizer: PreTrainedTokenizerFast, ids: np.ndarray) -> Any:
    return tokenizer.decode(ids.tolist(), skip_special_tokens=False)
