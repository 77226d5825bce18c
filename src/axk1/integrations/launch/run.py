"""Starts the processes of one machine: finds the engine's Python, passes signals on, returns the exit code."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from axk1.bench.engines import environment_python
from axk1.files import write_text
from axk1.integrations.launch.order import Command, Engine

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DIRECT = "instanttensor"
"""A package, and what vLLM 0.32 and 0.33 call the loader that uses it; it leaves out other GPUs' experts too."""
HEAD_SECONDS = 600.0
"""How long a machine waits for the first one."""
GRACE_SECONDS = 60.0
"""How long a helper process may take to end."""


def find_engine(engine: Engine) -> Path | None:
    """The Python that has ``engine``: the one AXK1_VLLM_PYTHON (or AXK1_SGLANG_PYTHON) names, this one, or that of
    ``.venv-ENGINE`` in the clone that axk1 runs from; None: there is none. None of the current folder is ever run.

    Raises:
        ValueError: the variable names a Python that does not exist or lacks the engine.
    """
    variable = f"AXK1_{engine.upper()}_PYTHON"
    named = os.environ.get(variable)
    if not named and importlib.util.find_spec(engine) is not None:
        return Path(sys.executable)
    place = environment_python(engine, variable)
    if place is not None and _has(place, engine):
        return place
    if named:
        raise ValueError(f"{variable} names {named}, which is no Python that has {engine}.")
    return None


def fast_loader(engine: Engine, python: Path | None) -> str | None:
    """vLLM's ``--load-format`` for direct reads into GPUs, where the package for it is installed beside the engine."""
    return DIRECT if engine == "vllm" and python is not None and _has(python, DIRECT) else None


def missing(engine: Engine) -> str:
    """What to do where an engine is not installed."""
    extra = ", or on a machine without GPUs by make engines there" if engine == "vllm" else ""
    return (
        f"{engine} is not installed here. In a clone of axk1, pip install '.[{engine}]' does it (in an environment of "
        f"its own, if need be: AXK1_{engine.upper()}_PYTHON names its Python){extra}. --dry-run prints the command "
        "without it."
    )


def run(commands: Sequence[Command], say: Callable[[str], Any] = print) -> int:
    """Runs the commands; the last one's exit code, or 128 + the signal that ended it.

    SIGINT, SIGTERM and SIGHUP go to the newest process, once; background ones end when the last command has ended.

    Raises:
        OSError: a command cannot be started.
        TimeoutError: the first machine does not answer.
    """
    running: list[subprocess.Popen[bytes]] = []
    with _forwarded(running) as stopped, TemporaryDirectory(prefix="axk1-") as private:  # for this user alone
        try:
            for command in commands:
                if command.wait_for and not _wait(command.wait_for, running, stopped, say):
                    return next((_code(process) for process in running if process.poll()), 128 + (stopped or [0])[-1])
                # a session of its own: Ctrl-C in the terminal would reach it twice otherwise
                environment = {**os.environ, **command.environment}
                arguments = with_files(command, Path(private))
                running.append(subprocess.Popen(arguments, env=environment, start_new_session=True))
            running[-1].wait()
        finally:
            _end(running[:-1] if running and running[-1].poll() is not None else running)
    return _code(running[-1])


def with_files(command: Command, folder: Path) -> list[str]:
    """The arguments of ``command``, its files written to ``folder`` and named by their paths."""
    for name, text in command.files.items():
        write_text(folder / name, text, mode=0o600)
    return [str(folder / word) if word in command.files else word for word in command.arguments]


def _has(python: Path, package: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    return subprocess.run([str(python), "-c", code], capture_output=True, check=False).returncode == 0


@contextmanager
def _forwarded(running: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Signals go to the newest process while it lives; those that came are listed."""
    stopped: list[int] = []

    def forward(number: int, _: Any) -> None:
        stopped.append(number)
        if running and running[-1].poll() is None:
            running[-1].send_signal(number)

    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, forward) for number in heard}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(
    address: tuple[str, int], running: list[subprocess.Popen[bytes]], stopped: list[int], say: Callable[[str], Any]
) -> bool:
    """Until ``address`` accepts connections; False: a signal came, or a process that should run has ended."""
    start, told = time.monotonic(), False
    while True:
        if stopped or any(process.poll() is not None for process in running):
            return False
        try:
            socket.create_connection(address, timeout=5).close()
            return True
        except OSError as error:
            if time.monotonic() - start > HEAD_SECONDS:
                raise TimeoutError(
                    f"{address[0]}:{address[1]} did not answer within {HEAD_SECONDS:.0f} seconds ({error}). Is the "
                    "first machine started (--node-rank 0), and is the port open?"
                ) from None
        if not told:
            say(f"Waiting for {address[0]}:{address[1]} ...")
            told = True
        time.sleep(1)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its own session: what it started is in it
            process.wait()


def _code(process: subprocess.Popen[bytes]) -> int:
    return process.returncode if process.returncode >= 0 else 128 - process.returncode
