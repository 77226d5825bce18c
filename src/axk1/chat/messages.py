"""A conversation's messages and tools: checked whole, once, and put into the one form that templates take.

What is nearly right is taken as meant (``developer`` is system, content in parts is their text, one call is a list of
one, arguments as a JSON string are the object) or refused with a sentence; nothing reaches a template that it could
misrender. The roles and fields are those of the OpenAI chat API and of transformers' chat templates.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from axk1.chat.parser import THINK_CLOSE, THINK_OPEN

Message = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")
_ALIASES = {"developer": "system"}
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_FIELDS = {"role", "content", "reasoning_content", "reasoning", "tool_calls", "tool_call_id", "name"}
_OURS = {"interrupted"}  # of saved conversations
_EMPTY = (None, [], "", False)  # what clients send back for fields that they do not use
_DEEPEST = 64


def check_messages(messages: Any) -> list[Message]:
    """The messages as a chat template takes them, in new objects: text as ``content``, reasoning only in
    ``reasoning_content``, each call as ``{"type": "function", "function": {"name": ..., "arguments": {...}}}``.

    Raises:
        ValueError: when there is no message, or something in one is neither right nor clearly meant.
    """
    if isinstance(messages, Mapping):
        messages = [messages]
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError("There are no messages to answer; give a list of at least one with a role and content.")
    return [_message(message) for message in messages]


def check_tools(tools: Any) -> list[Any] | None:
    """The functions that a model may call, as templates take them; None for none. Python functions stay what they are
    (see `described`).

    Raises:
        ValueError: for what describes no function.
    """
    if tools is None or (isinstance(tools, list | tuple) and not tools):
        return None
    tools = [tools] if isinstance(tools, Mapping) or callable(tools) else tools
    if not isinstance(tools, list | tuple):
        raise ValueError(f"tools must be a list of functions; got {_shown(tools)}.")
    return [tool if callable(tool) else _tool(tool) for tool in tools]


def described(tools: Sequence[Any] | None) -> list[dict[str, Any]] | None:
    """`check_tools`' result with Python functions described, from their type hints and docstrings.

    Raises:
        ValueError: for a function that lacks these.
    """
    return None if tools is None else [_described(tool) if callable(tool) else tool for tool in tools]


def _described(function: Callable[..., Any]) -> dict[str, Any]:
    from transformers.utils.chat_template_utils import get_json_schema

    try:
        return _tool(get_json_schema(function))
    except Exception as error:  # whatever its parser of docstrings raises
        raise ValueError(f"The tool {_shown(function)} cannot be described: {error}") from error


def check_stop(stop: Any) -> list[str]:
    """The stop strings; one string is a list of one.

    Raises:
        ValueError: for anything else, or an empty one.
    """
    stop = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stop, list | tuple) or not all(isinstance(text, str) for text in stop):
        raise ValueError(f"stop must be text or a list of texts; got {_shown(stop)}.")
    if not all(stop):
        raise ValueError("A stop string is empty; leave it out.")
    return list(stop)


def _message(given: Any) -> Message:
    role = given.get("role") if isinstance(given, Mapping) else None
    role = _ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise ValueError(f"A message must be an object whose role is one of {', '.join(ROLES)}; got {_shown(given)}.")
    if unknown := [key for key in given if key not in _FIELDS | _OURS and given[key] not in _EMPTY]:
        raise ValueError(f"A {role} message has {', '.join(map(repr, unknown))}, which nothing reads; leave it out.")
    message: Message = {"role": role}
    calls = _calls(given.get("tool_calls"), role)
    reasoning = _reasoning(given, role)
    content = given.get("content")
    if content is None and (calls or reasoning is not None):
        content = ""
    message["content"] = _text(content, f"The content of a {role} message")
    if role == "assistant":
        message |= _assistant(message["content"], reasoning)
    for name in ("name", "tool_call_id"):
        if given.get(name) is not None:
            message[name] = _text(given[name], f"The {name} of a {role} message")
    return message | ({"tool_calls": calls} if calls else {})


def _text(value: Any, what: str) -> str:
    """``value``, which may be parts of type text, as one text."""
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list | tuple):
        value = "".join(_part(part, what) for part in value)
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text; got {_shown(value)}.")
    if not _is_unicode(value):
        raise ValueError(f"{what} is not valid Unicode: it has a lone surrogate.")
    return value


def _part(part: Any, what: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    text = part.get(_TEXT_PARTS[kind]) if isinstance(kind, str) and kind in _TEXT_PARTS else None
    if not isinstance(text, str):
        raise ValueError(f"{what} must be text, whole or in parts of type text; got the part {_shown(part)}.")
    return text


def _reasoning(given: Mapping[str, Any], role: str) -> str | None:
    """What the message names as its reasoning, without tags left on it."""
    found = [given[name] for name in ("reasoning_content", "reasoning") if given.get(name) is not None]
    if not found:
        return None
    if len(found) > 1 and found[0] != found[1]:
        raise ValueError("A message has 'reasoning' and 'reasoning_content', which differ; give one of them.")
    text = _text(found[0], f"The reasoning of a {role} message")
    if role != "assistant":
        if text:
            raise ValueError(f"A {role} message has reasoning, which only an assistant message may have.")
        return None
    if text.lstrip().startswith(THINK_OPEN):
        text = text.lstrip().removeprefix(THINK_OPEN)
    text = text.rstrip().removesuffix(THINK_CLOSE) if text.rstrip().endswith(THINK_CLOSE) else text
    if THINK_CLOSE in text:
        raise ValueError(f"The reasoning of a message holds {THINK_CLOSE}, which ends it; give the reasoning alone.")
    return text


def _assistant(content: str, reasoning: str | None) -> Message:
    """Content and reasoning of an assistant message, without the newlines that other models put round the tags."""
    if reasoning is None:
        content, reasoning = _split(content)
    if reasoning is None:
        return {"content": content}
    return {"content": content.lstrip("\n") if reasoning else content, "reasoning_content": reasoning.strip("\n")}


def _split(content: str) -> tuple[str, str | None]:
    """A raw reply's answer and its reasoning, which stands before ``</think>``; None where there is none. A reply that
    ended inside its reasoning has no answer."""
    opened = content.lstrip().startswith(THINK_OPEN)
    before, closed, after = content.partition(THINK_CLOSE)
    if not opened and not closed:
        return content, None
    before = before.lstrip().removeprefix(THINK_OPEN) if opened else before
    if THINK_OPEN in before and not opened:
        raise ValueError(
            f"The content of an assistant message has {THINK_OPEN} and {THINK_CLOSE} after other text; what is its "
            "reasoning? Give that as reasoning_content (empty, if the tags are quoted)."
        )
    return after.lstrip("\n"), before


def _calls(given: Any, role: str) -> list[dict[str, Any]]:
    if given is None or (isinstance(given, list | tuple) and not given):
        return []
    if role != "assistant":
        raise ValueError(f"A {role} message has tool_calls, which only an assistant message may have.")
    given = [given] if isinstance(given, Mapping) else given
    if not isinstance(given, list | tuple):
        raise ValueError(f"tool_calls must be a list of calls; got {_shown(given)}.")
    return [_call(call) for call in given]


def _call(given: Any) -> dict[str, Any]:
    kind = given.get("type", "function") if isinstance(given, Mapping) else None
    function = given.get("function", given) if kind == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f"A tool call must be of type function and name it; got {_shown(given)}.")
    assert isinstance(function, Mapping)
    call = {"type": "function", "function": {"name": _mended(name), "arguments": _arguments(name, function)}}
    if given.get("id") is not None:
        call["id"] = _text(given["id"], "The id of a tool call")
    return call


def _arguments(name: str, function: Mapping[str, Any]) -> dict[str, Any]:
    value = function.get("arguments")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"The arguments of the call of {name!r} are no JSON: {_shown(value)}.") from None
    value = value or {}
    if not isinstance(value, dict):
        raise ValueError(f"The arguments of the call of {name!r} must be an object; got {_shown(value)}.")
    return _json(value, f"The arguments of the call of {name!r}")


def _tool(given: Any) -> dict[str, Any]:
    kind = given.get("type", "function") if isinstance(given, Mapping) else None
    function = given.get("function", given) if kind == "function" else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError(f"A tool must be of type function and have a name; got {_shown(given)}.")
    function = {key: value for key, value in function.items() if key != "type" or function is not given}
    return _json({"type": "function", "function": function}, f"The tool {function['name']!r}")


def _json(value: Any, what: str, depth: int = 0) -> Any:
    """``value``, which must be JSON, with replacement characters for lone surrogates, which a model may write."""
    if depth > _DEEPEST:
        raise ValueError(f"{what}: more than {_DEEPEST} objects and lists in each other.")
    if isinstance(value, str):
        return _mended(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_json(item, what, depth + 1) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {_mended(key): _json(item, what, depth + 1) for key, item in value.items()}
    raise ValueError(f"{what}: {_shown(value)} is no JSON.")


def _mended(text: str) -> str:
    return text if _is_unicode(text) else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    """The start of ``value`` for an error's sentence."""
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


def texts(value: Any) -> Sequence[str]:
    """All texts inside of a JSON value, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for item in pair for text in texts(item)]
    return [text for item in value for text in texts(item)] if isinstance(value, list | tuple) else []
