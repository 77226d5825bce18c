"""Sentences from patterns: `[big|large]` is one of several, possibly none, `{a}` a value.

Choices of one pattern that begin with the same figure, as `[1:cat|box] ... [1:dog|bag]`, take the same place.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any, NamedTuple

_CHOICE = re.compile(r"\[(?:(\d):)?([^\[\]]*)\]")


class Language(NamedTuple):
    """What one language says, in `languages/*.toml`.

    Attributes:
        people: names, in en and es with their pronouns.
        things: what is counted, each with the words that go with it, separated by a space and named in `thing_slots`.
        small: the numerals from 1 on, as they stand before a thing.
        signs: how operators are said between two numbers.
        frames: patterns of each situation (`frames.py`).
        ask: how an expression is asked for.
        events: what happens in stories.
        other: patterns of the tasks that are no arithmetic.
        units: a larger unit, a smaller one, and how many of these it has.
        aside: sentences that change nothing.
        before, after: what is said around a question.
        gap: between sentences.
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
    gap: str


@cache
def language(name: str) -> Language:
    """The tables of one of the five languages."""
    text = (files("axk1.tasks.situations") / "languages" / f"{name}.toml").read_text(encoding="utf-8")
    return Language(**{key: _frozen(value) for key, value in tomllib.loads(text).items()})


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _frozen(entry) for key, entry in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def expand(pattern: str, rng: Random) -> str:
    """The pattern with one of the possibilities of each pair of brackets, the inner ones first."""
    places: dict[str, int] = {}

    def choose(found: re.Match[str]) -> str:
        options = found[2].split("|")
        if found[1] is None:
            return rng.choice(options)
        return options[places.setdefault(found[1], rng.randrange(len(options)))]

    while "[" in pattern:
        pattern = _CHOICE.sub(choose, pattern)
    return pattern


def fill(pattern: str, values: Mapping[str, str]) -> str:
    """The expanded pattern with its values; a value that is missing is a KeyError."""
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], pattern)
