"""Words that do not exist, for names and things: a model that met only the tables' words trips over an unknown one."""

from __future__ import annotations

from random import Random

from axk1.tasks.situations.grammar import language as tables_of

_SYLLABLES = (
    ("b", "c", "d", "f", "g", "h", "j", "l", "m", "n", "p", "r", "s", "t", "v", "br", "st", "tr", "pl", "sh", "ch"),
    ("a", "e", "i", "o", "u", "ee", "oo", "ai"),
)


def latin(rng: Random) -> str:
    """A word of one to four syllables."""
    return "".join(rng.choice(_SYLLABLES[place % 2]) for place in range(rng.randint(2, 7)))


def name(language: str, rng: Random) -> str:
    """What could be the name of a thing or a person, in the script of the language."""
    if language in ("en", "es"):
        return latin(rng)
    letters = "".join(entry.split(" ")[0] for entry in rng.sample(tables_of(language).things, 4))
    return "".join(rng.choice(letters) for _ in range(rng.randint(2, 3)))


def word_to_count(language: str, rng: Random) -> str:
    """A word of the tables, or one that does not exist, so that its spelling has to be known from its pieces."""
    if language in ("en", "es") or rng.random() < 0.3:
        source = language if language == "es" else "en"
        if rng.random() < 0.5:
            return rng.choice(rng.choice(tables_of(source).things).split(" ")[:2])
        return latin(rng)
    letters = "".join(thing.split(" ")[0] for thing in rng.sample(tables_of(language).things, 3))
    word = "".join(rng.choice(letters) for _ in range(rng.randint(2, 5)))
    return word + (rng.choice(word) if rng.random() < 0.5 else "")
