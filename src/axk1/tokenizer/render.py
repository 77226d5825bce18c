"""Chat templates, rendered in a process of their own, whose time, memory and output are bounded.

A template is a program that came with a checkpoint. Jinja's sandbox keeps it from Python's internals, but not from two
loops in each other or a text of a terabyte, which no thread could stop. The process starts with the first template (a
tenth of a second), serves all that follow (a fraction of a millisecond each), and is started anew after one that it
did not survive.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import markupsafe

from axk1.tokenizer.template_worker import CHARACTERS, MEMORY, SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

_PROGRAM = Path(__file__).with_name("template_worker.py")
_START = "import runpy, sys; sys.path += sys.argv[3:]; runpy.run_path(sys.argv[1], run_name='__main__')"


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    *,
    tools: Sequence[dict[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    enable_thinking: bool = False,
) -> str:
    """``messages`` as text, as the tokenizer's ``apply_chat_template`` renders them.

    Args:
        messages, tools: JSON values.

    Raises:
        ValueError: the template refuses the messages, is faulty, or goes beyond a limit.
    """
    values: dict[str, Any] = {"messages": messages, "tools": tools, "documents": None}
    values |= {"add_generation_prompt": add_generation_prompt, "enable_thinking": enable_thinking}
    template = tokenizer.get_chat_template(None, tools)  # pyright: ignore[reportArgumentType]
    return _process.render(template, {**tokenizer.special_tokens_map, **values})


class _Process:
    """The process: one question and one answer after the other, a line of JSON each."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None

    def render(self, template: str, values: dict[str, Any]) -> str:
        """The text, or ValueError."""
        question = json.dumps({"template": template, "values": values}).encode() + b"\n"
        with self._lock:
            line = self._ask(question)
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(f"The chat template refuses these messages: {answer['error']}")
        return answer["text"]

    def _ask(self, question: bytes) -> bytes:
        if self._running is None or self._running.poll() is not None:
            self._running = _start(self.seconds)
        running = self._running
        assert running.stdin is not None and running.stdout is not None
        try:
            running.stdin.write(question)
            running.stdin.flush()
            line = running.stdout.readline()
        except BrokenPipeError:
            line = b""
        except BaseException:  # Ctrl-C: the answer to this question must not become the next one's
            self.stop()
            raise
        if not line.endswith(b"\n"):
            self.stop()
            raise ValueError(f"The chat template cannot be rendered: {self._why(running.returncode)}")
        return line

    def _why(self, code: int) -> str:
        if code == -getattr(signal, "SIGPROF", 0):
            return f"it takes more than {self.seconds:g} seconds."
        return f"its process ended ({code}); it may use {MEMORY >> 20} MB and write {CHARACTERS:,} characters."

    def stop(self) -> None:
        """Ends the process, if one runs."""
        running, self._running = self._running, None
        if running is not None:
            running.kill()
            running.communicate()


def _start(seconds: float) -> subprocess.Popen[bytes]:
    """A session of its own, so that Ctrl-C in a terminal ends no rendering; no module of the current folder, and Jinja
    from where this process has it."""
    libraries = sorted({str(Path(str(module.__file__)).parents[1]) for module in (jinja2, markupsafe)})
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _START, str(_PROGRAM), str(seconds), *libraries],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


_process = _Process()


def _after_fork() -> None:
    """A forked process starts one of its own: two that write into one pipe would get each other's answers."""
    global _process
    _process = _Process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: _process.stop())
