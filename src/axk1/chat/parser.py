"""Splits what the model writes into reasoning and answer, as it streams in.

A Think prompt ends in ``<think>`` and its reply reads ``{reasoning}</think>{answer}``; a Non-Think prompt ends in
``</think>`` and its reply is the answer. The first ``</think>`` closes the reasoning; every later tag is the answer's
own text. A reply that repeats the prompt's ``<think>`` has it swallowed. Nothing is stripped.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal, NamedTuple

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a reply, in order of appearance; ``text`` is never empty."""

    kind: Literal["reasoning", "answer"]
    text: str


class Parsed(NamedTuple):
    """A whole reply. ``closed`` is False when the text ended inside the reasoning (then ``answer`` is empty)."""

    reasoning: str
    answer: str
    closed: bool


class _State(Enum):
    START = auto()  # Think, before anything is known: a repeated <think> may follow
    REASONING = auto()
    ANSWER = auto()


def partial_suffix(text: str, tag: str) -> int:
    """Length of the longest proper prefix of ``tag`` that ``text`` ends with: what may yet become the tag."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)


class ReasoningParser:
    """Incremental parser: ``feed`` chunks of any size, then ``finish``; the deltas do not depend on the chunking.

    Only text that may be the start of a tag is held back; it is given out as soon as it cannot be.

    Args:
        think: the mode the prompt was rendered in.
    """

    def __init__(self, think: bool):
        self._state = _State.START if think else _State.ANSWER
        self._held = ""

    @property
    def closed(self) -> bool:
        """Whether the reasoning is over (always, in Non-Think)."""
        return self._state is _State.ANSWER

    def feed(self, text: str) -> list[Delta]:
        """The deltas that became certain with ``text``."""
        text, self._held = self._held + text, ""
        if self._state is _State.START:
            if len(text) < len(THINK_OPEN) and THINK_OPEN.startswith(text):
                self._held = text
                return []
            text = text.removeprefix(THINK_OPEN)
            self._state = _State.REASONING
        reasoning = ""
        if self._state is _State.REASONING:
            reasoning, tag, text = text.partition(THINK_CLOSE)
            if tag:
                self._state = _State.ANSWER
            else:
                certain = len(reasoning) - partial_suffix(reasoning, THINK_CLOSE)
                reasoning, self._held = reasoning[:certain], reasoning[certain:]
        return _deltas(reasoning, text)

    def finish(self) -> list[Delta]:
        """The text still held back; call once, after the last chunk."""
        held, self._held = self._held, ""
        return _deltas(held, "")


def _deltas(reasoning: str, answer: str) -> list[Delta]:
    both = (Delta("reasoning", reasoning), Delta("answer", answer))
    return [delta for delta in both if delta.text]


def parse(text: str, think: bool) -> Parsed:
    """Parses a whole reply.

    >>> parse("17 + 25 = 42</think>42", think=True)
    Parsed(reasoning='17 + 25 = 42', answer='42', closed=True)
    """
    parser = ReasoningParser(think)
    deltas = parser.feed(text) + parser.finish()
    reasoning, answer = ("".join(d.text for d in deltas if d.kind == kind) for kind in ("reasoning", "answer"))
    return Parsed(reasoning, answer, parser.closed)
