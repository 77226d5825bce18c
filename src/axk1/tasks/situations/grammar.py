"""Sentences from patterns: `[big|large]` is one of several, possibly none, `{a}` a value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random
from typing import NamedTuple

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


class Language(NamedTuple):
    """What one language says. Patterns stand in `frames` by the name of their frame, and in the other tables.

    Attributes:
        people: names, in en and es with their pronouns.
        things: what is counted, each with the words that go with it, separated by a space and named in `thing_slots`.
        small: the numerals from 1 on, as they stand before a thing.
        signs: how operators are said between two numbers.
    """

    people: tuple[str, ...]
    people_slots: tuple[str, ...]
    things: tuple[str, ...]
    thing_slots: tuple[str, ...]
    small: tuple[str, ...]
    signs: Mapping[str, tuple[str, ...]]
    frames: Mapping[str, tuple[str, ...]]
    ask: tuple[str, ...]
    events: Mapping[str, tuple[str, ...]]
    other: Mapping[str, tuple[str, ...]]
    units: tuple[tuple[str, str, int], ...]
    aside: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    yes_no: tuple[str, str]
    gap: str = " "


def expand(pattern: str, rng: Random) -> str:
    """The pattern with one of the possibilities of each pair of brackets, the inner ones first."""
    while "[" in pattern:
        pattern = _CHOICE.sub(lambda found: rng.choice(found[1].split("|")), pattern)
    return pattern


def fill(pattern: str, values: Mapping[str, str]) -> str:
    """The expanded pattern with its values; a value that is missing is a KeyError."""
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], pattern)
