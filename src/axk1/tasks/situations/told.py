"""What all builders share: what they return, and the values that a pattern may name."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from axk1.tasks.situations import invented
from axk1.tasks.situations.grammar import Language, expand, fill
from axk1.tasks.situations.grammar import language as tables_of
from axk1.tasks.situations.numbers import written

_INVENTED = 0.1  # of names, and of things


class Told(NamedTuple):
    """One problem before it is typed.

    Attributes:
        numbers: what the split is decided on.
        name: of the situation.
        answer: the sentence that is shown; empty: the language's sentence for numbers.
    """

    question: str
    reasoning: str
    value: str
    numbers: Sequence[int]
    name: str
    answer: str = ""


def slots_of(spoken: Language, language: str, values: dict[str, int], rng: Random) -> dict[str, str]:
    """Everything that a pattern may name: numbers, in figures (`a`) or words (`A`), a person, a thing."""
    person, thing = rng.choice(spoken.people).split(" "), rng.choice(spoken.things).split(" ")
    if rng.random() < _INVENTED:
        person[0] = invented.name(language, rng).capitalize()
    if rng.random() < _INVENTED:
        forms = spoken.thing_slots.index("obj") + 1
        singular = invented.name(language, rng)
        thing[:forms] = [singular, f"{singular}s"][-forms:] if forms == 2 else [singular]
    found = dict(zip(spoken.people_slots, person, strict=False)) | dict(zip(spoken.thing_slots, thing, strict=True))
    slots = {name: text.replace("_", " ") for name, text in found.items()}
    slots["one_c"] = f"{spoken.small[0]} {slots.get('c_', '')}"
    if "he" in spoken.people_slots and language == "en":
        slots["his"] = person[2]
    for letter, number in values.items():
        slots[letter] = written(number, language, rng)
        spelled = number <= 12 and rng.random() < 0.4
        slots[letter.upper()] = spoken.small[number - 1] if spelled else slots[letter]
    return slots


def pattern(name: str, language: str, rng: Random, **values: str) -> str:
    spoken = tables_of(language)
    values = slots_of(spoken, language, {}, rng) | {"gap": spoken.gap} | values
    return fill(expand(rng.choice(spoken.other[name]), rng), values)
