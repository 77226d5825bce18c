"""How people type: greetings, missing marks, half and full width, lower case."""

from __future__ import annotations

import re
import unicodedata
from random import Random

from axk1.tasks.language import join_particles
from axk1.tasks.situations.grammar import language as tables_of
from axk1.tasks.situations.numbers import full_width

_WIDE = {"？": "?", "。": ".", "，": ",", "：": ":", "！": "!"}


def as_typed(question: str, language: str, rng: Random, accents: bool = True) -> str:
    """The question with the habits of a keyboard: greetings, missing marks, half or full width, lower case.

    Args:
        accents: stay, where letters are counted; elsewhere Spanish may lose them.
    """
    spoken = tables_of(language)
    question = re.sub(" +", " ", join_particles(question)).strip()
    if rng.random() < 0.06:
        question = rng.choice(spoken.before) + question
    if rng.random() < 0.04:
        question += rng.choice(spoken.after)
    if rng.random() < 0.12:
        question = question.rstrip("?.!。？！")
    if language in ("en", "es"):
        return _latin(question, language == "es" and not accents, rng)
    if rng.random() < 0.06:
        return full_width(question)
    return "".join(_WIDE.get(c, c) for c in question) if rng.random() < 0.12 else question


def _latin(question: str, may_lose_accents: bool, rng: Random) -> str:
    if rng.random() < 0.12:
        question = question[0].lower() + question[1:] if rng.random() < 0.5 else question.lower()
    if may_lose_accents and rng.random() < 0.1:
        question = question.replace("¿", "")
        plain = unicodedata.normalize("NFD", question)
        question = unicodedata.normalize("NFC", re.sub("(?<=[aeiouAEIOU])\u0301", "", plain))
    return question[0].upper() + question[1:] if rng.random() < 0.7 else question
