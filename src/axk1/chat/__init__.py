"""Think and Non-Think conversations: prompt, budget, streaming parser, tool calls.

>>> import axk1.chat
>>> chat = axk1.chat.load("models/nano")
>>> reply = chat.reply([{"role": "user", "content": "What is 17 + 25?"}], think=True)
>>> reply.reasoning, reply.answer

The parser and the tool-call reader need neither torch nor transformers, so the rest is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axk1.chat.conversation import Conversation
    from axk1.chat.parser import Delta, Parsed, ReasoningParser, parse
    from axk1.chat.reply import Reply
    from axk1.chat.session import Chat, ReplyStream, load
    from axk1.chat.tools import ToolCall, extract_tool_calls
    from axk1.load import resolve_model_path

_HOME = {
    "Chat": "session",
    "Conversation": "conversation",
    "Delta": "parser",
    "Parsed": "parser",
    "ReasoningParser": "parser",
    "Reply": "reply",
    "ReplyStream": "session",
    "ToolCall": "tools",
    "extract_tool_calls": "tools",
    "load": "session",
    "parse": "parser",
    "resolve_model_path": "axk1.load",
}

__all__ = [
    "Chat",
    "Conversation",
    "Delta",
    "Parsed",
    "ReasoningParser",
    "Reply",
    "ReplyStream",
    "ToolCall",
    "extract_tool_calls",
    "load",
    "parse",
    "resolve_model_path",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'axk1.chat' has no attribute {name!r}")
    home = _HOME[name]
    return getattr(import_module(home if "." in home else f"axk1.chat.{home}"), name)
