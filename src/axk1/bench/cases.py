"""What is measured, how often, and how long it may take."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal

PATIENCE = 3_600.0
"""Seconds that one answer may take: a slow peer's prefill of a long context is no failure."""


@dataclass(frozen=True)
class Case:
    """One thing to measure, in tokens per second."""

    kind: Literal["decode", "prefill", "reply"]
    context: int
    """Tokens already cached, or of the prompt; of all prompts, the mean length."""
    batch: int = 1

    @property
    def title(self) -> str:
        """For tables."""
        what = {"decode": "decode at", "prefill": "prefill of", "reply": "replies after prompts of"}[self.kind]
        return f"{what} {self.context:,}{f', batch {self.batch}' if self.batch > 1 else ''}"


@dataclass(frozen=True)
class Settings:
    """What is measured and how often; see `axk1 bench --help`."""

    contexts: tuple[int, ...] = (264, 2_048)
    prefills: tuple[int, ...] = (2_048,)
    batches: tuple[int, ...] = (8,)
    batch_context: int = 264
    rounds: int = 5
    tokens: int = 32
    seconds: float = 5.0
    """A measurement stops at ``tokens`` steps, or at as many as fit into this time."""
    threads: int = 1
    expert_cache: str | None = None
    """axk1 reads routed experts from disk, into a cache of this size."""
    device: str = "cpu"
    dtype: str = "bfloat16"
    prefilled_to: int = 8_192
    """Longest context of engines whose cache has to be computed, because it cannot be filled."""
    drafts: int = 0
    """Tokens that the MTP module proposes a step, -1: as many as pay; 0: whole replies are not measured."""
    replies: int = 16
    reply_tokens: int = 64
    budget: float | None = None
    """Seconds for everything. What does not fit is left out, and that is said."""
    patience: float = PATIENCE
    """Seconds that one answer of an engine may take, its loading included."""
    meter_seconds: float = 4.0
    """For each look at the machine's limits."""

    def cases(self, longest: int) -> list[Case]:
        """All cases that fit into a model's context of ``longest`` tokens."""
        cases = [Case("decode", context) for context in self.contexts]
        cases += [Case("prefill", tokens) for tokens in self.prefills]
        cases += [Case("decode", self.batch_context, batch) for batch in self.batches if batch > 1]
        # `tokens` are decoded after a context and one that is not counted; the longest context leaves them room
        room = self.tokens + 2
        fitted = [
            Case(case.kind, min(case.context, longest - room) if case.kind == "decode" else case.context, case.batch)
            for case in cases
            if case.context <= longest
        ]
        return list(dict.fromkeys(fitted))


QUICK = Settings(
    contexts=(264,),
    prefills=(512,),
    rounds=3,
    tokens=16,
    seconds=1.5,
    budget=150.0,
    patience=40.0,
    meter_seconds=1.5,
)
"""Ends in less than three minutes with all peers, on two slow cores too."""
FULL = Settings()


class Clock:
    """The time that is left of a budget.

    Args:
        budget: seconds from now; None: without end.
    """

    def __init__(self, budget: float | None = None) -> None:
        self.end = math.inf if budget is None else time.monotonic() + budget

    @property
    def left(self) -> float:
        """Seconds until the end, 0 when it has passed."""
        return max(0.0, self.end - time.monotonic())

    def part(self, parts: int) -> Clock:
        """A clock for one of ``parts`` equal parts of what is left."""
        return Clock(None if self.end == math.inf else self.left / parts)
