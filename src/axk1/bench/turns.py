"""One engine's part of a run: what is known of it, and its turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axk1.bench.cases import Case, Clock, Settings
from axk1.bench.client import Worker, WorkerError
from axk1.bench.engines import Engine
from axk1.bench.prompts import Prompts

NO_TIME = "not measured: the time of a quick run was over; --full takes as long as it needs"


@dataclass
class Entry:
    """What is known of one engine after a run."""

    engine: Engine
    weights: Path = Path()
    version: str = ""
    load_seconds: float = 0.0
    peak_rss: int = 0
    device_peak: int | None = None
    cache_bytes_per_token: float | None = None
    error: str = ""
    over: bool = False
    """The run's time ended in the middle of a measurement, and its process with it."""
    fills: bool = False
    answers: list[int] = field(default_factory=list)
    """Most probable token after each of the common prompts."""
    values: dict[Case, list[float]] = field(default_factory=dict)
    beside: dict[Case, list[float]] = field(default_factory=dict)
    """Bytes per second that could be read just before each of the values, where those are bound by that."""
    notes: dict[Case, str] = field(default_factory=dict)
    replies: list[list[int]] = field(default_factory=list)
    acceptance: float | None = None
    """Of the drafts, the share that the trunk agreed with."""
    experts: dict[str, Any] | None = None
    """What the cache of experts read from disk did, where there is one."""


class Turns:
    """One engine's measurements of one case."""

    def __init__(
        self, case: Case, entry: Entry, worker: Worker, settings: Settings, prompts: Prompts, clock: Clock
    ) -> None:
        self.case, self.entry, self.worker, self.settings, self.prompts = case, entry, worker, settings, prompts
        self.clock, self.tokens = clock, min(2, settings.tokens)
        self.expected = 0.0
        """Seconds that a turn is going to take."""

    def warm_up(self) -> bool:
        """Measures without counting, to fill caches and to see how many tokens fit into a turn; False if it failed."""
        seconds = self._ask(0)
        if seconds is not None:
            fitting = int(self.settings.seconds * self.tokens / seconds)
            tokens = max(self.tokens, min(self.settings.tokens, fitting))
            decoding = self.case.kind == "decode"
            self.expected = seconds * tokens / self.tokens if decoding else seconds
            self.tokens = tokens
        return seconds is not None

    def take(self, number: int, bandwidth: Callable[[], float]) -> float | None:
        """Measures once and returns tokens per second; None when the engine failed, now or before, or its time is
        over."""
        if self.entry.error or self.entry.over:
            return None
        beside = bandwidth() if self.case.kind == "decode" else None
        seconds = self._ask(number)
        if seconds is None:
            return None
        if beside is not None:
            self.entry.beside.setdefault(self.case, []).append(beside)
        made = {"decode": self.tokens, "prefill": self.case.context}.get(self.case.kind, 0) * self.case.batch
        made = made or sum(len(reply) - 1 for reply in self.entry.replies)  # first tokens belong to the prompts
        self.entry.values.setdefault(self.case, []).append(made / seconds)
        return made / seconds

    def _ask(self, number: int) -> float | None:
        """Seconds of one measurement; None when the engine failed or the time is over, which ends its part."""
        case, entry = self.case, self.entry
        arguments: dict[str, Any] = {
            "decode": {"context": case.context, "tokens": self.tokens, "batch": case.batch},
            # another prompt each time, so that nothing is reused
            "prefill": {"tokens": case.context, "batch": case.batch, "seed": 10 + number},
            "reply": {
                "prompts": self.prompts.ids,
                "stop_ids": self.prompts.stop_ids,
                "tokens": self.settings.reply_tokens,
                "drafts": self.settings.drafts if entry.engine.variant == "mtp" else 0,
            },
        }[case.kind]
        try:
            reply = self.worker.request(case.kind, patience(self.settings, self.clock), **arguments)
        except WorkerError as error:
            entry.over = not self.clock.left
            if entry.over:
                entry.notes[case] = NO_TIME
            else:
                entry.error = str(error)
            return None
        entry.replies = reply.get("replies", entry.replies)
        entry.acceptance = reply.get("acceptance", entry.acceptance)
        entry.peak_rss = self.worker.peak_rss
        return reply["seconds"]


def patience(settings: Settings, clock: Clock, first: bool = False) -> float:
    """Seconds that an engine's next answer may take.

    Args:
        first: it is loading, and nothing is measured without it: its kernels may have to be built before.
    """
    if settings.budget is None:
        return settings.patience
    left = max(clock.left, 1.0)
    return left if first else min(settings.patience, left)
