"""How a reply looks in a terminal: reasoning dimmed and wrapped at words, the answer as Markdown, both as they come."""

import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from axk1.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.markdown import Markdown

    from axk1.chat import Delta

PAUSE = 0.08
"""Seconds between two drawings of the paragraph that is being written."""
_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)
_PIECES = re.compile(r"\n|[^\S\n]+|[^\s]+")


def show(console: "Console", deltas: "Iterable[Delta]", markdown: bool) -> None:
    """Shows a reply as it is written."""
    previous, view = None, None
    for delta in deltas:
        if delta.kind != previous:
            _end(view)
            if previous or delta.kind == "reasoning":
                label = "[reasoning]" if delta.kind == "reasoning" else "[answer]"
                console.print(("\n" if previous else "") + label, style="dim")
            as_markdown = markdown and delta.kind == "answer"
            style = "dim" if delta.kind == "reasoning" else None
            view = MarkdownView(console) if as_markdown else TextView(console, style)
            previous = delta.kind
        assert view is not None
        view.add(printable(delta.text))
    _end(view)
    if not isinstance(view, MarkdownView):
        console.print()


def write(console: "Console", text: str, style: str | None = None) -> None:
    """Writes ``text`` as it is: laying it out, as :meth:`rich.console.Console.print` does, takes longer than reading
    it out of a step of a small model."""
    from rich.color import ColorSystem
    from rich.style import Style

    if not console.quiet:
        colours = ColorSystem.STANDARD if console.color_system else None
        console.file.write(Style.parse(style or "").render(text, color_system=colours))
        console.file.flush()


def _end(view: "TextView | MarkdownView | None") -> None:
    if view is not None:
        view.end()


class TextView:
    """Plain text; on a terminal a word that does not fit goes to the next line whole."""

    def __init__(self, console: "Console", style: str | None) -> None:
        self._console, self._style = console, style
        self._width = console.width if console.is_terminal else 0
        self._column = 0
        self._held = ""

    def add(self, text: str) -> None:
        """Shows ``text``, but for a last word that may go on."""
        if not self._width:
            self._print(text)
            return
        pieces = _PIECES.findall(self._held + text)
        self._held = pieces.pop() if pieces and not pieces[-1].isspace() and not _is_wide(pieces[-1]) else ""
        for piece in pieces:
            self._place(piece)

    def end(self) -> None:
        """Shows what was held back."""
        if self._held:
            self._place(self._held)
            self._held = ""

    def _place(self, piece: str) -> None:
        from rich.cells import cell_len

        size = cell_len(piece)
        if piece == "\n":
            self._column = 0
        elif self._column + size <= self._width:
            self._column += size
        elif piece.isspace():
            piece, self._column = "\n", 0
        elif len(piece) > 1 and (size > self._width or _is_wide(piece)):  # scripts without spaces break anywhere
            for letter in piece:
                self._place(letter)
            return
        else:
            piece, self._column = "\n" + piece, size
        self._print(piece)

    def _print(self, text: str) -> None:
        write(self._console, text, self._style)


def _is_wide(text: str) -> bool:
    from rich.cells import cell_len

    return cell_len(text) > len(text)


class MarkdownView:
    """Markdown, a paragraph or code block at a time: what is finished stays, the one being written is drawn again."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._block = ""
        self._drawn = 0.0
        self._live: Live | None = None

    def add(self, text: str) -> None:
        """Shows ``text``; blocks that it ends are printed for good."""
        self._block += text
        while (end := block_end(self._block)) is not None:
            finished, self._block = self._block[:end], self._block[end:].lstrip("\n")
            self._finish(finished)
        if self._block.strip() and time.monotonic() - self._drawn >= PAUSE:
            self._draw()

    def end(self) -> None:
        """Prints the last block."""
        self._finish(self._block, last=True)

    def _draw(self) -> None:
        from rich.live import Live

        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")
            self._live.start()
        self._live.update(_render(self._block), refresh=True)
        self._drawn = time.monotonic()

    def _finish(self, block: str, last: bool = False) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if block.strip():
            self._console.print(_render(block))
            if not last:
                self._console.print()


def block_end(text: str) -> int | None:
    """Where the first block of a Markdown text ends: at an empty line outside of code; None where it may go on."""
    start = 0
    while (at := text.find("\n\n", start)) >= 0:
        if text[:at].strip() and len(_FENCE.findall(text[:at])) % 2 == 0:
            return at
        start = at + 1
    return None


def as_markdown(text: str) -> str:
    """``text`` with its line breaks kept, as chat models mean them, and 2*3*4 as arithmetic, outside of code."""
    lines, inside = [], False
    for line in text.strip("\n").split("\n"):
        fence = _FENCE.match(line) is not None
        inside ^= fence
        lines.append(line if fence or inside else re.sub(r"(?<=\d)(\s?)\*(?=\s?\d)", r"\1\\*", line) + "  ")
    return "\n".join(lines)


def _render(text: str) -> "Markdown":
    from rich.markdown import Markdown

    return Markdown(as_markdown(text))
