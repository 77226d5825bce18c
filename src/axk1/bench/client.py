"""A worker's process, seen from the benchmark."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


class WorkerError(ValueError):
    """An engine's process failed; the message is one line and names its log."""


class Worker:
    """One engine in a process of its own, which stands still except while it answers.

    A stopped process takes no processor time, so that threads which an engine lets spin do not slow the one that is
    measured after it.

    Args:
        name: for messages.
        command: what to start; it speaks the protocol of ``workers/protocol.py``.
        environment: its whole environment.
        log: where its standard error goes.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name, self.log, self.peak_rss = name, log, 0
        self._unread = b""
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(environment),
                start_new_session=True,  # Ctrl-C reaches the benchmark, which ends its workers
            )

    def request(self, operation: str, timeout: float = 600.0, **arguments: Any) -> dict[str, Any]:
        """Lets the worker go on, asks it, and stops it again.

        Raises:
            WorkerError: it refused, ended, or did not answer in ``timeout`` seconds.
        """
        self._signal(signal.SIGCONT)
        line = json.dumps({"op": operation, **arguments}) + "\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except (OSError, ValueError):  # the pipe is broken, or closed by us
            raise WorkerError(f"{self.name} ended before it was asked; see {self.log}.") from None
        answer = self._read_line(operation, timeout)
        try:
            reply = json.loads(answer)
        except ValueError:
            raise WorkerError(f"{self.name} answered '{operation}' with no JSON; see {self.log}.") from None
        self._signal(signal.SIGSTOP)
        if not reply.pop("ok"):
            raise WorkerError(f"{self.name} failed at '{operation}': {reply['error'].rstrip('.')} (see {self.log}).")
        self.peak_rss = max(self.peak_rss, reply["peak_rss"])
        return reply

    def close(self) -> None:
        """Ends the process and what it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _read_line(self, operation: str, timeout: float) -> bytes:
        assert self._process.stdout is not None
        descriptor, deadline = self._process.stdout.fileno(), time.monotonic() + timeout
        while b"\n" not in self._unread:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self._signal(signal.SIGKILL)  # what goes on computing would slow the others
                raise WorkerError(f"{self.name} did not answer '{operation}' in {timeout:.0f} s; see {self.log}.")
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                raise WorkerError(f"{self.name} ended during '{operation}'{self._last_words()}; see {self.log}.")
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f" ({last[:200]})" if last else ""

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
