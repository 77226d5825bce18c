"""Standard streams that are not what they seem (closed, full, not UTF-8), and what an error looks like on them."""

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from axk1.terminal import printable


def prepare() -> None:
    """Opens streams that the caller has closed, and makes letters that a stream cannot hold replacement characters.

    A closed input is an empty one; what is written to a closed output is refused, to a closed standard error lost.
    """
    for number, (name, mode, flags) in enumerate(
        (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY))
    ):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, flags)  # the lowest number that is free, which is this one
            if opened != number:
                os.dup2(opened, number)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def give_up_output() -> None:
    """Lets nothing more be written to a standard output that has failed, or Python would try again at its end."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def coloured(stream: Any) -> bool:
    """Whether colours are wanted there: a terminal that knows them, and no ``NO_COLOR``."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextmanager
def status(text: str) -> Iterator[None]:
    """Shows on standard error, if that is a terminal, what goes on, and takes it away at the end."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    with console.status(printable(text)) as shown:
        shown.update(spinner="dots")  # drawn now; its thread would have to wait for the imports
        yield


def json_text(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON; with escapes where standard output cannot hold its letters."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def check_writable(option: str, path: Path | None) -> None:
    """Refuses, before the work, a file that could not be written after it.

    Raises:
        ValueError: naming the option, the path and what is wrong with it.
    """
    if path is None:
        return
    folder = path.parent
    if path.is_dir():
        raise ValueError(f"{option} is {path}, which is a folder; name a file.")
    if not folder.is_dir():
        raise ValueError(f"{option} is {path}, but there is no folder {folder}; make it first.")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ValueError(f"{option} is {path}, which may not be written; choose another place.")
