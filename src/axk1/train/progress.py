"""What a training run says while it runs, and how Ctrl-C ends it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

Say = Callable[[str], None]
"""Called with one line."""
EVERY = 5.0
"""Seconds between two lines at least."""


class Paced:
    """Says at most one line in ``EVERY`` seconds; the first at once."""

    def __init__(self, say: Say) -> None:
        self.say, self.next = say, 0.0

    def __call__(self, text: Callable[[], str], at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now >= self.next:
            self.next = now + EVERY
            self.say(text())


class StepLines(TrainerCallback):
    """A line on the first step, then every few seconds: steps, loss, tokens per second, time left.

    Args:
        tokens: of one step.
    """

    def __init__(self, say: Say, stage: str, tokens: int) -> None:
        self.paced, self.stage, self.tokens = Paced(say), stage, tokens
        self.loss = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.first, self.start = state.global_step, time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.loss = f", loss {logs['loss']:.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        done, seconds = state.global_step - self.first, time.monotonic() - self.start
        left = (state.max_steps - state.global_step) * seconds / max(done, 1)

        def line() -> str:
            rate = f"{done * self.tokens / max(seconds, 1e-9):,.0f} tokens/s"
            return f"{self.stage}: step {state.global_step} of {state.max_steps}{self.loss}, {rate}, {_time(left)} left"

        self.paced(line, at_once=state.global_step == state.max_steps)


class StopAtStep(TrainerCallback):
    """Ends training after a step, with a checkpoint, once it was asked for."""

    def __init__(self, say: Say) -> None:
        self.say, self.asked, self.stopped = say, False, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._agreed(args.device) and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def _agreed(self, device: Any) -> bool:
        """Whether any of the processes was asked: they end after the same step."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.asked
        asked = torch.tensor(int(self.asked), device=device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        return bool(asked)

    @contextmanager
    def on_interrupt(self) -> Iterator[None]:
        """Within the block Ctrl-C and SIGTERM (of a scheduler) ask for it; the second time, they interrupt at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.say("Stopping after this step, with a checkpoint. Ctrl-C once more stops at once.")


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
