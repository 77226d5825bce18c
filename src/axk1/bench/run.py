"""The measurement: all engines loaded, each stopped except in its turn, and turns taken round by round.

Interleaving is what makes a ratio fair: a machine that slows down for a minute slows every engine in that round.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from axk1.bench import meter
from axk1.bench.client import Worker, WorkerError
from axk1.bench.engines import Engine, start, weights_for
from axk1.bench.models import Model
from axk1.bench.prompts import Prompts, prompts_for
from axk1.bench.summary import rotated
from axk1.plan.machine import Limits

Progress = Callable[[str, int, int], None]
"""Called with (what is done now, steps done, all steps)."""
QUESTIONS = {"prompts": 8, "tokens": 64}
PATIENCE = 3_600.0
"""Seconds that one answer may take: a slow peer's prefill of a long context is no failure."""


@dataclass(frozen=True)
class Case:
    """One thing to measure, in tokens a second."""

    kind: Literal["decode", "prefill", "reply"]
    context: int
    """Tokens already cached, or of the prompt; of all prompts, the mean length."""
    batch: int = 1

    @property
    def title(self) -> str:
        """For tables."""
        what = {"decode": "decode at", "prefill": "prefill of", "reply": "replies behind prompts of"}[self.kind]
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
    device: str = "cpu"
    dtype: str = "bfloat16"
    prefilled_to: int = 8_192
    """Longest context of engines whose cache has to be computed, because it cannot be filled."""
    drafts: int = 0
    """Tokens that the MTP module proposes a step, -1: as many as pay; 0: whole replies are not measured."""
    replies: int = 16
    reply_tokens: int = 64

    def cases(self, longest: int) -> list[Case]:
        """All cases that fit into a model's context of ``longest`` tokens."""
        cases = [Case("decode", context) for context in self.contexts]
        cases += [Case("prefill", tokens) for tokens in self.prefills]
        cases += [Case("decode", self.batch_context, batch) for batch in self.batches if batch > 1]
        # `tokens` are decoded behind a context, after one that is not counted; the longest context leaves them room
        room = self.tokens + 2
        fitted = [
            Case(case.kind, min(case.context, longest - room) if case.kind == "decode" else case.context, case.batch)
            for case in cases
            if case.context <= longest
        ]
        return list(dict.fromkeys(fitted))


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
    fills: bool = False
    answers: list[int] = field(default_factory=list)
    """Most probable token behind each of the common prompts."""
    values: dict[Case, list[float]] = field(default_factory=dict)
    beside: dict[Case, list[float]] = field(default_factory=dict)
    """Bytes a second that could be read just before each of the values, where those are bound by that."""
    notes: dict[Case, str] = field(default_factory=dict)
    replies: list[list[int]] = field(default_factory=list)
    acceptance: float | None = None
    """Of the drafts, the share that the trunk agreed with."""


@dataclass
class Measured:
    """Everything that a run found out."""

    model: Model
    settings: Settings
    cases: list[Case]
    entries: list[Entry]
    limits: Limits


def run(model: Model, engines: Sequence[Engine], settings: Settings, progress: Progress) -> Measured:
    """Loads every engine, then measures every case in rounds.

    An engine that fails is left out from there on, with its message in the result.

    Raises:
        ValueError: no engine could be loaded, nothing is to be measured, or drafts of a model without MTP module.
    """
    if settings.drafts and not model.config.num_nextn_predict_layers:
        raise ValueError(f"{model.name} has no MTP module, so drafts cannot be measured; bench-440m-mtp has one.")
    prompts = prompts_for(model, settings.replies) if settings.drafts else Prompts([], [])
    cases = settings.cases(model.config.max_position_embeddings)
    if prompts.ids:
        cases.append(Case("reply", sum(map(len, prompts.ids)) // len(prompts.ids)))
    if not cases:
        raise ValueError(f"Nothing to measure: the model's context is {model.config.max_position_embeddings} tokens.")
    turns = sum(case.kind in engine.kinds for case in cases for engine in engines) * (settings.rounds + 1)
    steps = _Steps(progress, 2 + len(engines) + turns)
    entries = [Entry(engine) for engine in engines]
    with ExitStack() as stack:
        logs = Path(tempfile.mkdtemp(prefix="axk1-bench-"))
        gauge = stack.enter_context(closing(meter.start_meter(settings.threads, settings.device, logs)))
        steps("memory bandwidth and matrix multiplication")
        limits = meter.measure_limits(gauge, settings.threads, settings.device)
        pairs: list[tuple[Entry, Worker]] = []
        for entry in entries:
            entry.weights = weights_for(entry.engine, model)
            steps(f"loading {entry.engine.name}")
            worker = stack.enter_context(closing(start(entry.engine, settings.threads, logs)))
            if _load(entry, worker, model, settings, cases):
                pairs.append((entry, worker))
        if not pairs:
            raise ValueError(entries[0].error)
        for case in cases:
            taking_part = [pair for pair in pairs if case.kind in pair[0].engine.kinds]
            _measure(case, taking_part, settings, steps, prompts, partial(meter.measure_bandwidth, gauge))
        for entry, worker in pairs:
            _finish(entry, worker)
        steps("memory bandwidth and matrix multiplication")
        limits = limits.better(meter.measure_limits(gauge, settings.threads, settings.device))
    if not any(entry.error for entry in entries):
        shutil.rmtree(logs)
    return Measured(model, settings, cases, entries, limits)


class _Steps:
    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, text: str, count: int = 1) -> None:
        self.progress(text, min(self.done, self.total), self.total)
        self.done += count


def _load(entry: Entry, worker: Worker, model: Model, settings: Settings, cases: Sequence[Case]) -> bool:
    reachable = [case.context for case in cases if case.context <= settings.prefilled_to]
    longest = max([*reachable, settings.batch_context, QUESTIONS["tokens"]]) + settings.tokens + 2
    try:
        reply = worker.request(
            "load",
            PATIENCE,
            path=str(entry.weights),
            dtype=settings.dtype,
            device=settings.device if entry.engine.cuda else "cpu",
            threads=settings.threads,
            max_context=min(longest, model.config.max_position_embeddings),
            max_batch=max([1, *settings.batches]),
            vocabulary=model.config.vocab_size,
            **entry.engine.load_options,
        )
        entry.answers = worker.request("answers", PATIENCE, **QUESTIONS)["ids"]
    except WorkerError as error:
        entry.error = str(error)
        return False
    entry.version, entry.load_seconds, entry.fills = reply["version"], reply["seconds"], reply["fills"]
    return True


def _measure(
    case: Case,
    pairs: list[tuple[Entry, Worker]],
    settings: Settings,
    steps: _Steps,
    prompts: Prompts,
    bandwidth: Callable[[], float],
) -> None:
    """All rounds of one case: first each engine by itself, to warm up and to see how long it takes."""
    turns: list[_Turns] = []
    for entry, worker in pairs:
        steps(f"{case.title}: {entry.engine.name}")
        if not entry.fills and case.context > settings.prefilled_to:
            entry.notes[case] = f"not measured beyond {settings.prefilled_to:,} tokens, which it has to compute"
        elif not entry.error:
            turn = _Turns(case, entry, worker, settings, prompts)
            if turn.warm_up():
                turns.append(turn)
    for number in range(settings.rounds):
        for turn in rotated(turns, number):
            steps(f"{case.title}: {turn.entry.engine.name}, round {number + 1}")
            turn.take(number + 1, bandwidth)


class _Turns:
    """One engine's measurements of one case."""

    def __init__(self, case: Case, entry: Entry, worker: Worker, settings: Settings, prompts: Prompts) -> None:
        self.case, self.entry, self.worker, self.settings, self.prompts = case, entry, worker, settings, prompts
        self.tokens = min(2, settings.tokens)

    def warm_up(self) -> bool:
        """Measures without counting, to fill caches and to see how many tokens fit into a turn; False if it failed."""
        seconds = self._ask(0)
        if seconds is not None:
            fitting = int(self.settings.seconds * self.tokens / seconds)
            self.tokens = max(self.tokens, min(self.settings.tokens, fitting))
        return seconds is not None

    def take(self, number: int, bandwidth: Callable[[], float]) -> None:
        """Measures once, unless the engine failed before."""
        if self.entry.error:
            return
        beside = bandwidth() if self.case.kind == "decode" else None
        seconds = self._ask(number)
        if seconds is None:
            return
        if beside is not None:
            self.entry.beside.setdefault(self.case, []).append(beside)
        made = {"decode": self.tokens, "prefill": self.case.context}.get(self.case.kind, 0) * self.case.batch
        made = made or sum(len(reply) - 1 for reply in self.entry.replies)  # first tokens belong to the prompts
        self.entry.values.setdefault(self.case, []).append(made / seconds)

    def _ask(self, number: int) -> float | None:
        """Seconds of one measurement; None when the engine failed, which ends its part."""
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
            reply = self.worker.request(case.kind, PATIENCE, **arguments)
        except WorkerError as error:
            entry.error = str(error)
            return None
        entry.replies = reply.get("replies", entry.replies)
        entry.acceptance = reply.get("acceptance", entry.acceptance)
        return reply["seconds"]


def _finish(entry: Entry, worker: Worker) -> None:
    if not entry.error:
        reply = worker.request("memory", PATIENCE)
        entry.device_peak = reply.get("device_peak")
        entry.cache_bytes_per_token = reply.get("cache_bytes_per_token")
    entry.peak_rss = worker.peak_rss
