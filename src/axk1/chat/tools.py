"""Hermes tool calls: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` blocks in an answer."""

import json
import re
from dataclasses import dataclass
from typing import Any

from axk1.chat.json_scan import ObjectScanner
from axk1.chat.parser import partial_suffix

TOOL_OPEN = "<tool_call>"
TOOL_CLOSE = "</tool_call>"
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"\s*")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call the model asks for."""

    name: str
    arguments: dict[str, Any]


def extract_tool_calls(answer: str) -> tuple[str, list[ToolCall]]:
    """Takes the tool calls out of a finished answer.

    A block that is not a JSON object with a string ``name`` and an object ``arguments`` (may be missing) stays in the
    text as it is. Strings inside the JSON may quote the tags. Halves of characters that the JSON spells (``\\ud800``)
    become replacement characters: no text of a call is one that cannot be encoded.

    Returns:
        The text around the calls, stripped when there were any, and the calls in order.
    """
    parser = ToolCallParser()
    parts = [*parser.feed(answer), *parser.finish()]
    text = "".join(part for part in parts if isinstance(part, str))
    calls = [part for part in parts if isinstance(part, ToolCall)]
    return (text.strip() if calls else text), calls


class ToolCallParser:
    """The same for an answer that streams in: ``feed`` chunks of any size, then ``finish``.

    A call is given out whole, when its closing tag is there. Text is given out as soon as it cannot belong to a call;
    that around calls is not stripped. Each character of a block is looked at once, however the chunks are cut.
    """

    def __init__(self) -> None:
        self._held = ""
        """The beginning of a tag, outside of blocks."""
        self._block: _Block | None = None

    @property
    def inside(self) -> bool:
        """Whether a block is open."""
        return self._block is not None

    def feed(self, text: str) -> list[str | ToolCall]:
        """The pieces of text and the calls that became certain with ``text``, in order."""
        return _joined(self._take(text))

    def finish(self) -> list[str | ToolCall]:
        """What was still held back: blocks without an end are text, and may hold others that have one."""
        parts: list[str | ToolCall] = []
        while self._block is not None:
            rest, self._block = self._block.text(), None
            parts += [TOOL_OPEN, *self._take(rest)]
        held, self._held = self._held, ""
        return _joined([*parts, held])

    def _take(self, text: str) -> list[str | ToolCall]:
        parts: list[str | ToolCall] = []
        while text:
            if self._block is None:
                before, tag, text = (self._held + text).partition(TOOL_OPEN)
                held = 0 if tag else partial_suffix(before, TOOL_OPEN)
                parts.append(before[: len(before) - held])
                self._held = before[len(before) - held :]
                self._block = _Block() if tag else None
            elif (text := self._block.feed(text)) or self._block.failed or self._block.call:
                block, self._block = self._block, None
                if block.call is not None:
                    parts.append(block.call)
                else:  # what follows the tag is text, and may hold the next one
                    parts.append(TOOL_OPEN)
                    text = block.text() + text
        return parts


class _Block:
    """What follows an opening tag, until it is a call or cannot become one."""

    def __init__(self) -> None:
        self._json = ObjectScanner()
        self._parts: list[str] = []
        self._tail = ""  # after the JSON: white space, then the closing tag
        self.call: ToolCall | None = None
        self.failed = False

    def text(self) -> str:
        """All that was taken."""
        return "".join(self._parts)

    def feed(self, text: str) -> str:
        """Takes ``text``, and gives back what follows the block's end; sets ``call`` or ``failed`` there."""
        start = 0
        if not self._json.begun:
            start = _skip_space(text, 0)
        if start < len(text) and not self._json.complete:
            start = self._json.feed(text, start)
            self.failed = self._json.failed
        if self.failed or not self._json.complete:
            self._parts.append(text)
            return ""
        return self._close(text, start)

    def _close(self, text: str, start: int) -> str:
        if not self._tail:
            start = _skip_space(text, start)
        taken = text[start : start + len(TOOL_CLOSE) - len(self._tail)]
        self._tail += taken
        end = start + len(taken)
        self._parts.append(text[:end])
        if self._tail == TOOL_CLOSE:
            self.call = _read_call(self.text())
            self.failed = self.call is None
        elif not TOOL_CLOSE.startswith(self._tail):
            self.failed = True
        return text[end:]


def _read_call(block: str) -> ToolCall | None:
    """The call in a block that ends with its closing tag."""
    try:
        value = _DECODER.raw_decode(block, _skip_space(block, 0))[0]
    except Exception:  # numbers beyond Python's limits, or whatever else: a reply is never lost for it
        return None
    name, arguments = value.get("name"), value.get("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return ToolCall(_encodable(name), _encodable(arguments))


def _encodable(value: Any) -> Any:
    """``value`` with replacement characters for halves of characters in its texts."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_encodable(each) for each in value]
    if isinstance(value, dict):
        return {_encodable(key): _encodable(each) for key, each in value.items()}
    return value


def _joined(parts: list[str | ToolCall]) -> list[str | ToolCall]:
    """``parts`` without empty texts, and texts that follow each other as one."""
    joined: list[str | ToolCall] = []
    texts: list[str] = []
    for part in [*parts, None]:
        if isinstance(part, str):
            texts.append(part)
            continue
        if any(texts):
            joined.append("".join(texts))
        texts = []
        if part is not None:
            joined.append(part)
    return joined


def _skip_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start
