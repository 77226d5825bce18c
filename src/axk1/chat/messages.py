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
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise ValueError(
                f"The content of a {message['role']} message must be text; got {message.get('content')!r}."
            )
