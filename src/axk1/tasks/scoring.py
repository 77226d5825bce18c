"""Whether an answer states the value of its problem."""

from __future__ import annotations

import re

from axk1.tasks.text import TABLES
from axk1.tasks.types import Problem


def _normalised(text: str) -> str:
    return re.sub(r"[\s.!?。！？]+", " ", text).strip().lower()


def score(problem: Problem, answer: str) -> bool:
    """Whether `answer` gives `problem.value`: all its numbers in order, its one weekday, or the whole reply in chat."""
    if problem.task == "chat":
        return _normalised(answer) == _normalised(problem.value)
    if problem.task == "calendar":
        said = [day for day in TABLES[problem.language].weekdays if day.lower() in answer.lower()]
        return said == [problem.value]
    numbers = re.findall(r"-?\d+", answer)
    if "," in problem.value:
        return numbers == problem.value.split(", ")
    return numbers[-1:] == [problem.value]
