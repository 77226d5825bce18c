"""How far a command is that takes minutes or hours for its files: a bar, or lines where there is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.filesize import decimal

Report = Callable[[int, int], None]
EVERY = 60.0
"""Seconds between lines."""


@contextmanager
def progress_of(what: str, counted: bool = False) -> Iterator[Report]:
    """What is told (bytes done, all bytes) shows the share, the rate and the time that is left, on standard error.

    Args:
        counted: things are counted instead of bytes, and there is no rate.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(what, lambda line: console.print(line, highlight=False, soft_wrap=True), counted=counted)
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amounts: list[ProgressColumn] = [MofNCompleteColumn()] if counted else [DownloadColumn(), TransferSpeedColumn()]
    with Progress(what, BarColumn(), *amounts, TimeRemainingColumn(), transient=True, console=console) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class Lines:
    """A line from time to time; none for what ends before the first."""

    def __init__(
        self,
        what: str,
        say: Callable[[str], object],
        now: Callable[[], float] = time.monotonic,
        counted: bool = False,
    ) -> None:
        self.what, self.say, self.counted, self.now = what, say, counted, now
        self.begun: tuple[float, int] | None = None  # the time and what was done at the first report: an earlier run's
        self.said = now()

    def __call__(self, done: int, total: int) -> None:
        now = self.now()
        if self.begun is None:
            self.begun = now, done
        if now - self.said < EVERY:
            return
        self.said = now
        seconds, size = now - self.begun[0], done - self.begun[1]
        rate = size / seconds if seconds else 0.0
        left = f", {_duration((total - done) / rate)} left" if rate else ""
        if self.counted:
            self.say(f"{self.what}: {done:,} of {total:,}{left}")
        else:
            self.say(f"{self.what}: {decimal(done)} of {decimal(total)}, {decimal(round(rate))}/s{left}")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
