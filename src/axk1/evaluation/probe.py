"""Problems that nobody generated: written one by one, in five languages, as people type them.

What the held-out problems of `axk1.tasks` cannot tell: whether a model answers a sentence that no grammar of ours made.
They are kept out of training (`train/examples.py` skips them, a test looks for what resembles them).
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from axk1.tasks.situations.grammar import language as tables_of
from axk1.tasks.text import INTENTS


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
    lines = (files("axk1.evaluation") / "probe.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Probe(**json.loads(line)) for line in lines)


def normalised(text: str) -> str:
    """What is left of a text without width, case, spaces and punctuation; signs of arithmetic stay."""
    text = unicodedata.normalize("NFKC", text).lower().translate({ord("×"): "*", ord("÷"): "/", ord("−"): "-"})
    return re.sub(r"[^\w+*/-]", "", text)


@cache
def _questions() -> frozenset[str]:
    return frozenset(normalised(probe.question) for probe in probes())


def is_probe(question: str) -> bool:
    """Whether a question is one of the probe set, but for case, width, spaces and punctuation."""
    return normalised(question) in _questions()


def right(probe: Probe, reply: str) -> bool:
    """Whether a reply gives the answer: its last number, all its numbers, its time, or its words alone."""
    if probe.answer == "unknown":
        return normalised(reply) == normalised(INTENTS[probe.language]["unknown"].answer)
    reply = re.sub(r"(?<=\d)[,.](?=\d{3}(?!\d))", "", unicodedata.normalize("NFKC", reply))
    if re.fullmatch(r"\d+:\d\d", probe.answer):
        return re.findall(r"\d+:\d\d", reply)[-1:] == [probe.answer]
    if "," in probe.answer:
        return re.findall(r"\d+", reply) == probe.answer.split(", ")
    if probe.answer.lstrip("-").isdigit():
        return re.findall(r"-?\d+", reply)[-1:] == [probe.answer]
    return _says(probe, normalised(reply))


def _says(probe: Probe, reply: str) -> bool:
    """Words: yes and no alone, a day or a name as what the reply ends with."""
    if probe.answer in (word.lower().rstrip(".。") for word in tables_of(probe.language).yes_no):
        return reply == normalised(probe.answer)
    return re.search(rf"{re.escape(normalised(probe.answer))}(입니다|です)?$", reply) is not None
