"""What a conversation's messages must look like."""

from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")


def check_messages(messages: Sequence[Message]) -> None:
    """Refuses what the chat template could only misrender.

    Raises:
        ValueError: when there is no message, or one without a known role and text.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError("There are no messages to answer; give a list of at least one with a role and content.")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(f"A message must be an object whose role is one of {', '.join(ROLES)}; got {message!r}.")
        role, content = message["role"], message.get("content")
        if content is None and message.get("tool_calls"):
            continue
        if not isinstance(content, str):
            raise ValueError(f"The content of a {role} message must be text; got {content!r}.")
        if not _is_unicode(content):
            raise ValueError(f"The content of a {role} message is not valid Unicode: it has a lone surrogate.")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
