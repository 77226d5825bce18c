"""Problems of the first edition's templates, with reasoning in columns."""

from __future__ import annotations

import dataclasses
import re

from axk1.tasks.situations.columns import operation, solve
from axk1.tasks.text import TABLES
from axk1.tasks.types import Problem

_STEP = re.compile(r"(\d+)([-+*/])(\d+)(?::[^,.]*=\d+,[^,.]*=|=)(\d+)")
_LONG = re.compile(r"(\d+)([-+*/])(\d+):[^,.]*=\d+,[^,.]*=(\d+)")
_ASKED = re.compile(r"[\d(][\d+\-*×() ]*[\d)]")


def retold(problem: Problem) -> Problem:
    """The same question, answer and split; only the reasoning differs."""
    if problem.task == "word":
        return dataclasses.replace(problem, reasoning=solve(_expression(problem))[0])
    if problem.task == "arithmetic":
        asked = max(_ASKED.findall(problem.question), key=len, default="").replace("×", "*").replace(" ", "")
        if re.search(r"[-+*]", asked):
            return dataclasses.replace(problem, reasoning=solve(asked)[0])
        return dataclasses.replace(problem, reasoning=_columns(problem.reasoning))
    if problem.task == "calendar":
        return dataclasses.replace(problem, reasoning=_LONG.sub(_in_columns, problem.reasoning))
    return problem


def _columns(reasoning: str) -> str:
    return _STEP.sub(_in_columns, reasoning)


def _in_columns(step: re.Match[str]) -> str:
    return operation(int(step[1]), step[2], int(step[3])).rstrip(".")


def _expression(problem: Problem) -> str:
    """The operations of a story as one expression."""
    labels, expression = TABLES[problem.language].labels, ""
    for sentence in problem.reasoning.rstrip(".").split(". "):
        steps = _STEP.findall(sentence)
        if sentence.startswith(labels["start"] + " "):
            expression = "*".join(steps[0][0:3:2]) if steps else sentence.split(" ")[-1]
        elif sentence.startswith(labels["double"] + " "):
            expression = f"{_closed(expression)}*2"
        elif sentence.startswith(labels["share"] + " "):
            expression = f"{_closed(expression)}/{steps[0][2]}"
        elif len(steps) == 2:
            expression += f"+{steps[0][0]}*{steps[0][2]}"
        else:
            expression += steps[0][1] + steps[0][2]
    return expression


def _closed(expression: str) -> str:
    return f"({expression})" if re.search(r"[-+]", expression) else expression
