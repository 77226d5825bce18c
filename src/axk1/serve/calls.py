"""Tool calls in an answer that streams in: the name as soon as it is known, then the arguments as they are written.

Blocks are those of :mod:`axk1.chat.tools`. One that begins as the chat template writes it, with ``name`` and then
``arguments``, is given out piece by piece; any other JSON order when it is complete. What comes out does not depend on
the chunks, so that a reply told whole is the same as one that was streamed.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from axk1.chat.json_scan import ObjectScanner
from axk1.chat.parser import partial_suffix
from axk1.chat.tools import TOOL_CLOSE, TOOL_OPEN, ToolCall, ToolCallParser
from axk1.generation.sampling import TokenLogprobs

_CHARACTER = r'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})'
_HEAD = re.compile(rf'\s*\{{\s*"name"\s*:\s*("{_CHARACTER}{{1,256}}")\s*,\s*"arguments"\s*:\s*(?=\{{)')
_LONGEST_HEAD = 4096
"""Characters in which a block has to show itself as a call that can be streamed."""
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer outside of calls."""

    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the tokens that were written for it, where they are asked for; filled in by who knows the tokens."""


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; the calls of a reply are numbered from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of a call's arguments, which are the JSON text as the model writes it."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A call is complete."""

    index: int


CallEvent = Text | CallStart | CallArguments | CallEnd


class CallStream:
    """``feed`` chunks of any size, then ``finish``; white space that ends an answer with calls is left out."""

    def __init__(self) -> None:
        self.calls = 0
        """Calls begun."""
        self._state = self._outside
        self._held = ""
        self._space = ""  # white space that a call may follow
        self._block = self._arguments = ObjectScanner()
        self._odd = ToolCallParser()
        self._open = self._said = False

    @property
    def inside(self) -> bool:
        """Whether a call has begun and not ended."""
        return self._state != self._outside

    def feed(self, text: str) -> list[CallEvent]:
        """What became certain with ``text``."""
        events: list[CallEvent] = []
        while text:
            text = self._state(text, events)
        return events

    def finish(self) -> list[CallEvent]:
        """What was still held back: a block that is no call yet is text, a call that was cut off stays a call."""
        events: list[CallEvent] = []
        if self._state == self._in_head:
            self._begin_odd(events)
        if self._state == self._in_odd_block:
            self._take(self._odd.finish(), events)
        elif self._state == self._outside:
            self._text(self._held, events)
        if self._open:
            self._end(events)
        if self._space and not self.calls:
            events.append(Text(self._space))
        return events

    def _outside(self, text: str, events: list[CallEvent]) -> str:
        before, tag, rest = (self._held + text).partition(TOOL_OPEN)
        held = 0 if tag else partial_suffix(before, TOOL_OPEN)
        self._text(before[: len(before) - held], events)
        self._held = before[len(before) - held :]
        if tag:
            self._state, self._block = self._in_head, ObjectScanner()
        return rest

    def _text(self, text: str, events: list[CallEvent]) -> None:
        """Gives out text, but keeps the white space at its end until it is known what follows."""
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        if kept:
            events.append(Text(kept.lstrip() if self.calls and not self._said else kept))
            self._said = True

    def _in_head(self, text: str, events: list[CallEvent]) -> str:
        self._held += text
        found = _HEAD.match(self._held, 0, _LONGEST_HEAD)
        if found:
            rest, head, self._held = self._held[found.end() :], found[0], ""
            self._block, self._arguments = ObjectScanner(), ObjectScanner()
            self._block.feed(head, _skip(head))
            self._state = self._in_arguments
            self._start(json.loads(found[1]), events)
            return rest
        start = 0 if self._block.begun else _skip(text)
        if start < len(text):
            self._block.feed(text, start)
        if self._block.complete or self._block.failed or len(self._held) >= _LONGEST_HEAD:
            return self._begin_odd(events)
        return ""

    def _in_arguments(self, text: str, events: list[CallEvent]) -> str:
        end = self._arguments.feed(text, 0)
        self._block.feed(text[:end], 0)
        events.append(CallArguments(self.calls - 1, text[:end]))
        if self._arguments.failed:
            self._end(events)
        elif self._arguments.complete:
            self._state = self._after_arguments
        return text[end:]

    def _after_arguments(self, text: str, events: list[CallEvent]) -> str:
        """Other keys, which nobody reads, and the closing tag."""
        if not self._block.complete:
            end = self._block.feed(text, 0)
            if self._block.failed:
                self._end(events)
            return text[end:]
        self._held = (self._held + text).lstrip()
        if TOOL_CLOSE.startswith(self._held) and self._held != TOOL_CLOSE:
            return ""
        rest, self._held = self._held.removeprefix(TOOL_CLOSE), ""
        self._end(events)
        return rest

    def _begin_odd(self, events: list[CallEvent]) -> str:
        self._state, self._odd = self._in_odd_block, ToolCallParser()
        self._odd.feed(TOOL_OPEN)
        rest, self._held = self._held, ""
        while rest and self._state == self._in_odd_block:
            rest = self._in_odd_block(rest, events)
        return rest

    def _in_odd_block(self, text: str, events: list[CallEvent]) -> str:
        """A block that cannot be streamed: character by character, so that its end is seen."""
        for at, character in enumerate(text, 1):
            self._take(self._odd.feed(character), events)
            if not self._odd.inside:
                self._state, self._held = self._outside, "".join(map(str, self._odd.finish()))
                return text[at:]
        return ""

    def _take(self, parts: Sequence[str | ToolCall], events: list[CallEvent]) -> None:
        for part in parts:
            if isinstance(part, str):
                self._text(part, events)
                continue
            self._start(part.name, events)
            events.append(CallArguments(self.calls - 1, json.dumps(part.arguments, ensure_ascii=False)))
            self._end(events)

    def _start(self, name: str, events: list[CallEvent]) -> None:
        self._open = True
        events.append(CallStart(self.calls, name.encode("utf-16", "surrogatepass").decode("utf-16", "replace")))
        self.calls += 1

    def _end(self, events: list[CallEvent]) -> None:
        self._open, self._state = False, self._outside
        events.append(CallEnd(self.calls - 1))


def _skip(text: str) -> int:
    found = _SPACE.match(text)
    return found.end() if found else 0
