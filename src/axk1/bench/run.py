"""The measurement: all engines loaded, each stopped except in its turn, and turns taken round by round.

Interleaving is what makes a ratio fair: a machine that slows down for a minute slows every engine in that round.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from axk1.bench import meter
from axk1.bench.cases import Case, Clock, Settings
from axk1.bench.client import Worker, WorkerError
from axk1.bench.engines import Engine, start, weights_for
from axk1.bench.models import Model
from axk1.bench.prompts import Prompts, prompts_for
from axk1.bench.summary import rotated
from axk1.bench.turns import NO_TIME, Entry, Turns, patience
from axk1.plan.machine import Limits

Progress = Callable[[str, int, int], None]
"""Called with (what is done now, steps done, all steps)."""
Finished = Callable[[str], None]
"""Called with a line on each measurement, when it is finished."""
QUESTIONS = {"prompts": 8, "tokens": 64}


@dataclass
class Measured:
    """Everything that a run found out."""

    model: Model
    settings: Settings
    cases: list[Case]
    entries: list[Entry]
    limits: Limits
    stopped: str = ""
    """Why it is not complete; empty: it is."""


def run(
    model: Model,
    engines: Sequence[Engine],
    settings: Settings,
    progress: Progress,
    finished: Finished = lambda line: None,
    clock: Clock | None = None,
) -> Measured:
    """Loads every engine, then measures every case in rounds.

    An engine that fails is left out from there on, with its message in the result. Ctrl-C ends the run: what was
    measured until then is returned.

    Args:
        clock: how much of ``settings.budget`` is left; all of it by default.

    Raises:
        ValueError: no engine could be loaded, nothing is to be measured, or drafts of a model without MTP module.
        KeyboardInterrupt: nothing was measured yet.
    """
    cases, prompts = _cases(model, settings)
    turns = sum(case.kind in engine.kinds for case in cases for engine in engines) * (settings.rounds + 1)
    steps = _Steps(progress, 2 + len(engines) + turns)
    clock = clock or Clock(settings.budget)
    entries = [Entry(engine) for engine in engines]
    logs = Path(tempfile.mkdtemp(prefix="axk1-bench-"))
    found: list[Measured] = []
    try:
        with ExitStack() as stack:
            gauge = stack.enter_context(closing(meter.start_meter(settings.threads, settings.device, logs)))
            steps("memory bandwidth and matrix multiplication")
            limits = meter.measure_limits(gauge, settings.threads, settings.device, settings.meter_seconds)
            finished(f"machine: {max(limits.bandwidth.values()) / 1e9:.1f} GB/s")
            found.append(Measured(model, settings, cases, entries, limits))
            pairs = _load_all(entries, model, settings, cases, clock, logs, stack, steps, finished)
            for number, case in enumerate(cases):
                part = clock.part(len(cases) - number)
                taking_part = [pair for pair in pairs if case.kind in pair[0].engine.kinds]
                bandwidth = partial(meter.measure_bandwidth, gauge)
                _measure(case, taking_part, settings, steps, prompts, bandwidth, finished, clock, part)
            for entry, worker in pairs:
                _finish(entry, worker, settings)
            if settings.budget is None:
                steps("memory bandwidth and matrix multiplication")
                again = meter.measure_limits(gauge, settings.threads, settings.device, settings.meter_seconds)
                found[0].limits = limits.better(again)
    except KeyboardInterrupt:
        if not any(entry.values for entry in entries):
            raise
        found[0].stopped = "stopped by Ctrl-C; what was measured until then is here"
    if not any(entry.error for entry in entries):
        shutil.rmtree(logs, ignore_errors=True)
    return found[0]


def _cases(model: Model, settings: Settings) -> tuple[list[Case], Prompts]:
    if settings.drafts and not model.config.num_nextn_predict_layers:
        raise ValueError(f"{model.name} has no MTP module, so drafts cannot be measured; bench-440m-mtp has one.")
    prompts = prompts_for(model, settings.replies) if settings.drafts else Prompts([], [])
    cases = settings.cases(model.config.max_position_embeddings)
    if prompts.ids:
        cases.append(Case("reply", sum(map(len, prompts.ids)) // len(prompts.ids)))
    if not cases:
        raise ValueError(f"Nothing to measure: the model's context is {model.config.max_position_embeddings} tokens.")
    return cases, prompts


class _Steps:
    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, text: str, count: int = 1) -> None:
        self.progress(text, min(self.done, self.total), self.total)
        self.done += count


def _load_all(
    entries: Sequence[Entry],
    model: Model,
    settings: Settings,
    cases: Sequence[Case],
    clock: Clock,
    logs: Path,
    stack: ExitStack,
    steps: _Steps,
    finished: Finished,
) -> list[tuple[Entry, Worker]]:
    """The engines that could be loaded, one after the other; the others have their error.

    Raises:
        ValueError: none could.
    """
    pairs: list[tuple[Entry, Worker]] = []
    for entry in entries:
        steps(f"loading {entry.engine.name}")
        try:
            entry.weights = weights_for(entry.engine, model)
            worker = stack.enter_context(closing(start(entry.engine, settings.threads, logs)))
            _load(entry, worker, model, settings, cases, patience(settings, clock, first=not pairs))
        except (ValueError, OSError) as error:  # WorkerError is one; so is a copy that cannot be made
            entry.error = str(error)
            finished(f"{entry.engine.name}: left out: {entry.error}")
        else:
            pairs.append((entry, worker))
            finished(f"{entry.engine.name}: loaded in {entry.load_seconds:.1f} s")
    if not pairs:
        raise ValueError(entries[0].error)
    return pairs


def _load(
    entry: Entry, worker: Worker, model: Model, settings: Settings, cases: Sequence[Case], seconds: float
) -> None:
    reachable = [case.context for case in cases if case.context <= settings.prefilled_to]
    longest = max([*reachable, settings.batch_context, QUESTIONS["tokens"]]) + settings.tokens + 2
    reply = worker.request(
        "load",
        seconds,
        path=str(entry.weights),
        dtype=settings.dtype,
        device=settings.device if entry.engine.cuda else "cpu",
        threads=settings.threads,
        max_context=min(longest, model.config.max_position_embeddings),
        max_batch=max([1, *settings.batches]),
        vocabulary=model.config.vocab_size,
        **({"expert_cache": settings.expert_cache} if entry.engine.base == "axk1" else {}),
        **entry.engine.load_options,
    )
    entry.answers = worker.request("answers", seconds, **QUESTIONS)["ids"]
    entry.version, entry.load_seconds, entry.fills = reply["version"], reply["seconds"], reply["fills"]
    entry.peak_rss = worker.peak_rss


def _measure(
    case: Case,
    pairs: list[tuple[Entry, Worker]],
    settings: Settings,
    steps: _Steps,
    prompts: Prompts,
    bandwidth: Callable[[], float],
    finished: Finished,
    clock: Clock,
    part: Clock,
) -> None:
    """All rounds of one case: first each engine by itself, to warm up and to see how long it takes.

    Args:
        clock: the run's; no turn begins that would not end in it.
        part: the case's; the first round is taken also when it is over.
    """
    turns: list[Turns] = []
    for entry, worker in pairs:
        steps(f"{case.title}: {entry.engine.name}")
        if not entry.fills and case.context > settings.prefilled_to:
            entry.notes[case] = f"not measured beyond {settings.prefilled_to:,} tokens, which it has to compute"
        elif entry.over or not clock.left:
            entry.notes[case] = NO_TIME
        elif not entry.error:
            turn = Turns(case, entry, worker, settings, prompts, clock)
            if turn.warm_up():
                turns.append(turn)
    for number in range(settings.rounds):
        for turn in rotated(turns, number):
            steps(f"{case.title}: {turn.entry.engine.name}, round {number + 1}")
            if turn.expected > (clock if number == 0 else part).left:
                turn.entry.notes.setdefault(case, NO_TIME)
            elif speed := turn.take(number + 1, bandwidth):
                finished(f"{case.title}: {turn.entry.engine.name}, round {number + 1}: {speed:,.1f} tokens/s")
            elif turn.entry.error:
                finished(f"{turn.entry.engine.name}: left out: {turn.entry.error}")


def _finish(entry: Entry, worker: Worker, settings: Settings) -> None:
    if not entry.error and not entry.over:
        try:
            reply = worker.request("memory", settings.patience)
            entry.device_peak = reply.get("device_peak")
            entry.cache_bytes_per_token = reply.get("cache_bytes_per_token")
            if experts := reply.get("experts"):
                entry.experts = experts
        except WorkerError as error:
            entry.error = str(error)
    entry.peak_rss = worker.peak_rss
