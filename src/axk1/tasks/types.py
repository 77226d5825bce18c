"""The record of one problem, the text tables of one language, and the rule that splits training from held-out."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

LANGUAGES = ("en", "ko", "zh", "ja", "es")
TASKS = ("arithmetic", "word", "counting", "sorting", "calendar", "chat")

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Problem:
    """One question with its step-by-step reasoning, the sentence shown to the user and the value that is checked.

    `numbers` is what the split is decided on, `template` names every text slot used, and `multi_step` says that at
    least two dependent operations lead to `value`.
    """

    task: str
    language: str
    question: str
    reasoning: str
    answer: str
    value: str
    numbers: tuple[int, ...]
    template: str
    names: tuple[str, ...]
    multi_step: bool
    split: str


class Pool(NamedTuple):
    """Texts that may be used in training, and other texts that only held-out problems use."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]

    def pick(self, split: Split, rng: Random) -> tuple[str, str]:
        """Draw one text of `split`; returns (id, text), where the id of a held-out text starts with h."""
        texts = self.train if split == "train" else self.heldout
        index = rng.randrange(len(texts))
        return f"{split[0]}{index}", texts[index]


@dataclass(frozen=True)
class Intent:
    """One thing a user may say in plain conversation, with the only answer to it."""

    reasoning: str
    answer: str
    says: Pool


@dataclass(frozen=True)
class Tables:
    """All texts of one language. Templates are `str.format` strings; the slot names are the ones used in en.py."""

    language: str
    names: Pool
    items: tuple[Mapping[str, str], ...]
    number_answer: str
    list_answer: str
    weekday_answer: str
    weekdays: tuple[str, ...]
    arithmetic: Pool
    follow_up: Mapping[str, Pool]
    opening: Pool
    opening_packed: Pool
    then: tuple[str, ...]
    events: Mapping[str, Pool]
    closing: Pool
    closing_share: Pool
    labels: Mapping[str, str]
    sentence_gap: str
    count_words: tuple[tuple[str, ...], ...]
    count_item: Pool
    count_above: Pool
    count_below: Pool
    list_gap: str
    sort_up: Pool
    sort_down: Pool
    kth_small: Pool
    kth_large: Pool
    median: Pool
    ordinals: tuple[str, ...]
    after: Pool
    before: Pool
    after_twice: Pool
    forward: str
    back: str


def is_held_out(task: str, numbers: tuple[int, ...]) -> bool:
    """Whether these numbers belong to the held-out tenth of `task`; stable over runs, machines and Python versions."""
    return zlib.crc32(f"{task}{numbers}".encode()) % 10 == 0
