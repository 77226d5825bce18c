"""Problems that nobody generated: written one by one, in five languages, as people type them.

What the held-out problems of `axk1.tasks` cannot tell: whether a model answers a sentence that no grammar of ours made.
They are kept out of training (`train/examples.py` skips what resembles one).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from axk1.tasks.situations.grammar import language as tables_of
from axk1.tasks.text import INTENTS, TABLES
from axk1.tasks.types import Problem

WORDS = 8
"""In a row, of a probe: what no training question may share with one."""


@dataclass(frozen=True)
class Probe:
    """One problem of the probe set.

    Attributes:
        answer: a number, numbers in order ("3, 5, 9"), a time ("9:15"), words, or "unknown": to be declined.
        check: an expression in Python that gives the answer by another way; empty for "unknown".
    """

    language: str
    kind: str
    question: str
    answer: str
    check: str


@cache
def probes() -> tuple[Probe, ...]:
    """All problems of the probe set."""
    lines = (files("axk1.tasks") / "probe.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Probe(**json.loads(line)) for line in lines)


def normalised(text: str) -> str:
    """What is left of a text without width, case, spaces and punctuation; signs of arithmetic stay."""
    text = unicodedata.normalize("NFKC", text).lower().translate({ord("×"): "*", ord("÷"): "/", ord("−"): "-"})
    return re.sub(r"[^\w+*/-]", "", text)


@cache
def _kept_out() -> tuple[frozenset[str], frozenset[tuple[str, ...]]]:
    questions = [probe.question for probe in probes()]
    return frozenset(map(normalised, questions)), frozenset(run for text in questions for run in _runs(text))


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    """Rows of WORDS words that follow each other, or twice as many characters in scripts without spaces."""
    text = re.sub(r"[^\w\s]", " ", unicodedata.normalize("NFKC", text).lower())
    spaced = re.search(r"[a-z]{2}", text) is not None
    parts, length = (text.split(), WORDS) if spaced else (list(re.sub(r"\s", "", text)), 2 * WORDS)
    return (tuple(parts[at : at + length]) for at in range(len(parts) - length + 1))


def resembles(question: str) -> bool:
    """Whether a question is one of the probe set but for case, width and punctuation, or shares a long run with one."""
    questions, runs = _kept_out()
    return normalised(question) in questions or any(run in runs for run in _runs(question))


def as_problem(probe: Probe) -> Problem:
    """What `axk1.evaluation.held_out` asks and `axk1.tasks.score` judges."""
    tables, answer = TABLES[probe.language], probe.answer
    said = tables.number_answer.format(v=answer)
    if answer == "unknown":
        answer = said = INTENTS[probe.language]["unknown"].answer
    elif any(answer == word.lower().rstrip(".。") for word in tables_of(probe.language).yes_no):
        said = answer
    return Problem(
        task=probe.kind,
        language=probe.language,
        question=probe.question,
        reasoning="",
        answer=said,
        value=answer,
        numbers=(),
        template="probe",
        names=(),
        multi_step=len(re.findall(r"[-+*/]", probe.check)) > 1,
        split="heldout",
    )
