"""Whether an answer states the value of its problem."""

from __future__ import annotations

import re
import unicodedata

from axk1.tasks.text import TABLES
from axk1.tasks.types import Problem

_THOUSANDS = re.compile(r"(?<=\d)[,.](?=\d{3}(?!\d))")


def _normalised(text: str) -> str:
    return re.sub(r"[\s.!?¡¿。！？]+", " ", text).strip().lower()


def score(problem: Problem, answer: str) -> bool:
    """Whether `answer` gives `problem.value`.

    That is its last number or time, all numbers of a list in order, its one weekday, its words at the end (yes and no:
    alone), or in chat the whole reply.
    """
    value = problem.value
    if problem.task == "chat":
        return _normalised(answer) == _normalised(value)
    weekdays = TABLES[problem.language].weekdays
    if value in weekdays:
        return [day for day in weekdays if day.lower() in answer.lower()] == [value]
    answer = _THOUSANDS.sub("", unicodedata.normalize("NFKC", answer))
    if re.fullmatch(r"\d+:\d\d", value):
        return re.findall(r"\d+:\d\d", answer)[-1:] == [value]
    if "," in value:
        return re.findall(r"-?\d+", answer) == value.split(", ")
    if re.fullmatch(r"-?\d+", value):
        return re.findall(r"-?\d+", answer)[-1:] == [value]
    return _says(_normalised(answer), _normalised(value), alone=problem.answer == value)


def _says(answer: str, value: str, alone: bool) -> bool:
    """Words that are all of the answer, or its end, where Korean and Japanese have a verb after them."""
    return answer == value if alone else re.search(rf"(?<![a-z]){re.escape(value)}(입니다|です)?$", answer) is not None
