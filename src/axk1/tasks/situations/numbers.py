"""The sizes of numbers that people ask about, and how they write them."""

from __future__ import annotations

from random import Random

_DIGITS, _DIGIT_SHARES = (1, 2, 3, 4), (14, 46, 26, 14)
_PERCENT = (5, 10, 10, 15, 20, 20, 25, 25, 30, 40, 50, 50, 60, 75, 80, 90)
_SMALL_CASH = {"ko": (100, 500, 1000), "ja": (10, 50, 100), "en": (1, 1, 5), "zh": (1, 1, 5), "es": (1, 1, 5)}
_FULL_WIDTH = {ord(half): chr(ord(half) + 0xFEE0) for half in "0123456789+-*/=()?!,.:"}


def draw(kind: str, language: str, rng: Random) -> int:
    """A number of one kind: (s)mall, up to (t)wo digits, a(n)y, (m)oney, a (y)ear, a (p)er cent."""
    if kind == "s":
        return rng.randint(2, 9) if rng.random() < 0.85 else rng.randint(10, 12)
    if kind == "t":
        return rng.randint(2, 99)
    if kind == "m":
        return rng.choice(_SMALL_CASH[language]) * rng.randint(2, 99)
    if kind == "y":
        return rng.randint(1900, 2035)
    if kind == "p":
        return rng.choice(_PERCENT)
    digits = rng.choices(_DIGITS, _DIGIT_SHARES)[0]
    drawn = rng.randint(10 ** (digits - 1), 10**digits - 1)
    if digits > 1 and rng.random() < 0.15:
        drawn -= drawn % 10 ** (digits - 1)  # round: 400, 3000
    return max(drawn, 2)


def written(number: int, language: str, rng: Random) -> str:
    """A number in figures, at times with its thousands set apart, but not where it may be a year."""
    if number < 1000 or 1900 <= number <= 2035 or rng.random() > (0.2 if language == "es" else 0.35):
        return str(number)
    return f"{number:,}".replace(",", "." if language == "es" else ",")


def full_width(text: str) -> str:
    """The text with the wide figures and signs of East Asian keyboards."""
    return text.translate(_FULL_WIDTH)
