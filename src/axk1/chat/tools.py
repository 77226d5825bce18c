"""Hermes tool calls: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` blocks in a finished answer."""

import json
import re
from dataclasses import dataclass
from typing import Any

TOOL_OPEN = "<tool_call>"
TOOL_CLOSE = "</tool_call>"
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"\s*")


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
    text, calls, start = "", [], 0
    while (opening := answer.find(TOOL_OPEN, start)) >= 0:
        after = opening + len(TOOL_OPEN)
        call, end = _read_call(answer, after)
        if call is None:
            text += answer[start:after]
            start = after
        else:
            text += answer[start:opening]
            calls.append(call)
            start = end
    text += answer[start:]
    return (text.strip() if calls else text), calls


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
