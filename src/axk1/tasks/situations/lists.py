"""Letters of a word, the order of numbers, which of two is more."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from random import Random

from axk1.tasks.situations.grammar import language as tables_of
from axk1.tasks.situations.invented import word_to_count
from axk1.tasks.situations.numbers import draw, written
from axk1.tasks.situations.sums import situation
from axk1.tasks.situations.told import Told, pattern
from axk1.tasks.sorting import insertion_trace
from axk1.tasks.text import TABLES

_QUOTES = ('"{w}"', "'{w}'", "{w}", "{w}", "“{w}”", "‘{w}’", "「{w}」")


def letters(language: str, rng: Random) -> Told | None:
    word = word_to_count(language, rng).replace("_", "").lower()
    asked = rng.choice(word) if rng.random() < 0.93 else rng.choice("aeiorst")
    quoted = rng.choice(_QUOTES)
    numbers = (zlib.crc32(word.encode()), ord(asked))
    if rng.random() < 0.35:
        walk = " ".join(f"{letter}{place}" for place, letter in enumerate(word, 1))
        question = pattern("length", language, rng, w=quoted.format(w=word))
        return Told(question, walk + ".", str(len(word)), (numbers[0],), "length")
    count, steps = 0, []
    for letter in word:
        count += letter == asked
        steps.append(f"{letter}{count}")
    mark = rng.choice(("{w}", "{w}", '"{w}"', "'{w}'")) if "'" not in quoted else "{w}"
    question = pattern("letter", language, rng, w=quoted.format(w=word), x=mark.format(w=asked))
    return Told(question, f"{asked}: {' '.join(steps)}.", str(count), numbers, "letter")


def _listed(numbers: Sequence[int], language: str, rng: Random) -> str:
    if rng.random() < 0.2 and len(numbers) > 2:
        return " ".join(map(str, numbers))
    gaps = {"zh": ("、", "，", ", ", "、"), "ja": ("、", "、", ", ")}.get(language, (", ", ", ", ","))
    text = rng.choice(gaps).join(map(str, numbers))
    last = {"en": " and ", "es": " y "}.get(language)
    return last.join(text.rsplit(", ", 1)) if last and rng.random() < 0.35 else text


def _several(rng: Random, count: int, language: str) -> list[int]:
    kind = rng.choice("ttn")
    found = {draw(kind, language, rng) for _ in range(count)}
    return rng.sample(sorted(found), len(found))


def order(language: str, rng: Random) -> Told | None:
    kind = rng.choice(("up", "up", "down", "least", "most"))
    numbers = _several(rng, rng.randint(3, 6), language)
    if len(numbers) < 3 or sum(len(str(n)) for n in numbers) > 15:
        return None
    question = pattern(kind, language, rng, l=_listed(numbers, language, rng))
    if kind in ("up", "down"):
        trace, done = insertion_trace(numbers, kind == "down")
        value = ", ".join(map(str, done))
        return Told(question, trace, value, numbers, kind, TABLES[language].list_answer.format(v=value))
    best, steps = numbers[0], [str(numbers[0])]
    for n in numbers[1:]:
        sign = ">" if n > best else "<"
        best = max(best, n) if kind == "most" else min(best, n)
        steps.append(f"{n}{sign}{steps[-1].split(' ')[-1]} {best}")
    return Told(question, f"{'>' if kind == 'most' else '<'}: {', '.join(steps)}.", str(best), numbers, kind)


def comparison(language: str, rng: Random) -> Told | None:
    kind = rng.choice(("larger", "smaller", "is_more", "is_less", "who_more", "who_less", "frame", "frame"))
    if kind == "frame":
        return situation("comparison")(language, rng)
    a, b = draw("n", language, rng), draw("n", language, rng)
    if rng.random() < 0.5:  # digits that change places
        b = int("".join(rng.sample(str(a), len(str(a)))))
    if a == b or b < 1:
        return None
    spoken, trace = tables_of(language), f"{a}{'>' if a > b else '<'}{b}."
    p, q = (rng.choice(spoken.people).split(" ")[0].replace("_", " ") for _ in range(2))
    shown = {"a": written(a, language, rng), "b": written(b, language, rng)}
    question = pattern(kind, language, rng, p=p, q=q, **shown)
    if kind in ("larger", "smaller"):
        value = str(max(a, b) if kind == "larger" else min(a, b))
        return Told(question, f"{trace} {value}.", value, (a, b), kind)
    if kind in ("is_more", "is_less"):
        value = spoken.yes_no[int((a > b) != (kind == "is_more"))]
        return Told(question, trace, value, (a, b), kind, value)
    if p == q:
        return None
    value = p if (a > b) == (kind == "who_more") else q
    return Told(question, f"{p} {a}, {q} {b}. {trace} {value}.", value, (a, b), kind)
