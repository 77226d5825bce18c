"""Hermes tool calls: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` blocks in an answer."""

import json
import re
from dataclasses import dataclass
from typing import Any

from axk1.chat.parser import partial_suffix

TOOL_OPEN = "<tool_call>"
TOOL_CLOSE = "</tool_call>"
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"\s*")
_LITERALS = ("true", "false", "null", "NaN", "Infinity", "-Infinity", *".eE", "e+", "e-", "E+", "E-")
"""What the decoder stops in front of when the text ends inside of it: words, and the rest of a number."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call the model asks for."""

    name: str
    arguments: dict[str, Any]


def extract_tool_calls(answer: str) -> tuple[str, list[ToolCall]]:
    """Takes the tool calls out of a finished answer.

    A block that is not a JSON object with a string ``name`` and an object ``arguments`` (may be missing) stays in the
    text as it is. Strings inside the JSON may quote the tags.

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
    that around calls is not stripped.
    """

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> list[str | ToolCall]:
        """The pieces of text and the calls that became certain with ``text``, in order."""
        self._held += text
        return self._certain(last=False)

    def finish(self) -> list[str | ToolCall]:
        """What was still held back: blocks without an end are text."""
        return self._certain(last=True)

    def _certain(self, last: bool) -> list[str | ToolCall]:
        text, parts, start = self._held, [], 0
        after = end = 0  # text[start:end] is text
        while (opening := text.find(TOOL_OPEN, end)) >= 0:
            after = opening + len(TOOL_OPEN)
            call, closed = _read_call(text, after)
            if call is not None:
                parts += [text[start:opening], call]
                start = end = closed
            elif not last and _may_become_call(text, after):
                end = opening
                break
            else:
                end = after
        else:
            end = len(text) - (0 if last else partial_suffix(text[end:], TOOL_OPEN))
        self._held = text[end:]
        return [part for part in [*parts, text[start:end]] if part != ""]


def _may_become_call(text: str, start: int) -> bool:
    """Whether more text could make the block that begins at ``start`` a call."""
    start = _skip_space(text, start)
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        rest = text[error.pos :].strip()
        cut = error.msg.startswith("Unterminated string") or (error.msg.startswith("Invalid \\u") and len(rest) < 8)
        return cut or any(literal.startswith(rest) for literal in _LITERALS)
    except RecursionError:
        return False
    return isinstance(value, dict) and TOOL_CLOSE.startswith(text[_skip_space(text, end) :])


def _read_call(answer: str, start: int) -> tuple[ToolCall | None, int]:
    """The call whose JSON begins at ``start`` (white space allowed) and the index after its closing tag."""
    start = _skip_space(answer, start)
    try:
        value, end = _DECODER.raw_decode(answer, start)
    except (ValueError, RecursionError):  # not JSON, or nested absurdly deep
        return None, start
    end = _skip_space(answer, end)
    if not answer.startswith(TOOL_CLOSE, end) or not isinstance(value, dict):
        return None, start
    name, arguments = value.get("name"), value.get("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None, start
    return ToolCall(name, arguments), end + len(TOOL_CLOSE)


def _skip_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start
