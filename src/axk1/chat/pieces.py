"""Texts with control tokens in them, encoded piece by piece: what was encoded before is looked up."""

import re
import threading
from array import array
from collections import OrderedDict

from transformers import PreTrainedTokenizerFast

from axk1.chat.prompt import any_of, text_ids

_SHORT = 64
"""Characters below which a piece is encoded as quickly as it is looked up."""


class Pieces:
    """Encodes as ``tokenizer.encode`` without special tokens does. A tokenizer cuts a text at its added tokens first,
    so that what is between two of them has the same ids wherever it is: a conversation that goes on is encoded from
    its last message. Of a tokenizer whose added tokens take something from their neighbours nothing is kept.

    Args:
        tokenizer: whose ids they are.
        most: characters of all kept pieces; those that were not asked for the longest make room.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, most: int = 1 << 22) -> None:
        self._tokenizer, self._most, self._used = tokenizer, most, 0
        self._longest = most // 2  # a longer one would cost all others their place
        self._added = {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
        self._cut = re.compile(f"({any_of(frozenset(self._added)).pattern})")
        self._kept: OrderedDict[tuple[str, str], array[int]] = OrderedDict()
        self._lock = threading.Lock()
        probe = "".join(f"a{name}b {name} c" for name in self._added)
        self._exact = self._joined(probe, "") == text_ids(tokenizer, probe)

    def encode(self, text: str, owner: str = "") -> list[int]:
        """The ids of ``text``.

        Args:
            owner: whose text it is: how long it takes tells nobody else that it was there before.

        Raises:
            ValueError: the tokenizer cannot read it.
        """
        return self._joined(text, owner) if self._exact else text_ids(self._tokenizer, text)

    def _joined(self, text: str, owner: str) -> list[int]:
        ids: list[int] = []
        for at, piece in enumerate(self._cut.split(text)):
            if at % 2:
                ids.append(self._added[piece])
            elif piece:
                kept = _SHORT <= len(piece) <= self._longest
                ids += self._found((owner, piece)) if kept else text_ids(self._tokenizer, piece)
        return ids

    def _found(self, key: tuple[str, str]) -> "array[int]":
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        found = array("I", text_ids(self._tokenizer, key[1]))
        with self._lock:
            if key not in self._kept:
                self._used += len(key[1])
            self._kept[key] = found
            while self._used > self._most:
                (_, oldest), _ = self._kept.popitem(last=False)
                self._used -= len(oldest)
        return found
