"""Where a chat's lines come from: a terminal with line editing, or whatever standard input is."""

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History

KEPT = 1000
"""Lines of history."""
_LINE_BREAK = "\u2028"  # what a line break inside of one message is in the file


class Reader(Protocol):
    """Gives one line at a time; ``interactive`` tells whether somebody sits at a terminal."""

    interactive: bool

    def read(self, prompt: str, default: str = "") -> str:
        """The next line, or several where they were pasted; EOFError at the end, KeyboardInterrupt for Ctrl-C."""
        ...


class PipedReader:
    """Lines of a file or pipe, without prompts."""

    interactive = False

    def read(self, prompt: str, default: str = "") -> str:
        """The next line; EOFError at the end."""
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")


class TerminalReader:
    """Line editing by prompt_toolkit: history, completion with Tab, and what is pasted is one message.

    Args:
        commands: those that Tab completes.
        names: what Tab completes after ``/set``.
    """

    interactive = True

    def __init__(self, commands: Sequence[str], names: Sequence[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output import create_output
        from prompt_toolkit.shortcuts import CompleteStyle

        output = create_output(always_prefer_tty=True)
        if hasattr(output, "enable_cpr"):  # its question to the terminal, where the cursor is, gets lost on slow lines
            output.enable_cpr = False  # pyright: ignore[reportAttributeAccessIssue]
        self._session: PromptSession[str] = PromptSession(
            history=_history(),
            completer=_completer(commands, names),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            output=output,
        )

    def read(self, prompt: str, default: str = "") -> str:
        """What is typed or pasted before the next Enter."""
        return self._session.prompt([("ansicyan", prompt)], default=default)


def _completer(commands: Sequence[str], names: Sequence[str]) -> "Completer":
    """Commands, and what follows /save, /load and /set."""
    from prompt_toolkit.application import get_app
    from prompt_toolkit.completion import DynamicCompleter, NestedCompleter, PathCompleter, WordCompleter

    path, first = PathCompleter(expanduser=True), WordCompleter(list(commands), sentence=True)
    after = {"/save": path, "/load": path, "/set": WordCompleter(list(names))}
    nested = NestedCompleter({name: after.get(name) for name in commands})
    return DynamicCompleter(lambda: nested if " " in get_app().current_buffer.text else first)


def history_file() -> Path | None:
    """Where lines are kept: ``XDG_STATE_HOME``, else in the home folder; None for a user without one."""
    state = os.environ.get("XDG_STATE_HOME")
    try:
        return Path(state or Path.home() / ".local" / "state") / "axk1" / "chat_history"
    except RuntimeError:
        return None


def _history() -> "History":
    """The lines of this and of earlier conversations, a line each, for their user's eyes only. A history that cannot be
    read or written is one that ends with the program."""
    from prompt_toolkit.history import History

    file = history_file()

    class Lines(History):
        def load_history_strings(self) -> Iterable[str]:
            return reversed(read_history(file))

        def store_string(self, string: str) -> None:
            write_history(file, string)

    return Lines()


def read_history(file: Path | None) -> list[str]:
    """The last lines of the history, oldest first; none where there is no file that can be read."""
    with suppress(OSError):
        if file is not None and file.is_file():
            lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
            return [line.replace(_LINE_BREAK, "\n") for line in lines if line][-KEPT:]
    return []


def write_history(file: Path | None, text: str) -> None:
    """Adds an entry; where that is not possible, does nothing."""
    if file is None:
        return
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(descriptor, "a", encoding="utf-8", errors="replace") as stream:  # noqa: PTH123
            stream.write(text.replace("\n", _LINE_BREAK) + "\n")
