"""A conversation's state: history, system prompt, mode and budget; saved to and loaded from JSON."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from axk1.chat.messages import ROLES
from axk1.chat.reply import Reply
from axk1.files import write_text


@dataclass
class Conversation:
    """What has been said, and how the next reply is to be made.

    ``messages`` holds the turns after the system prompt. An assistant turn keeps its ``reasoning_content`` for the
    reader, and ``interrupted`` when it was stopped before its end; the model sees neither.
    """

    system: str | None = None
    think: bool = False
    budget: int = -1
    messages: list[dict[str, Any]] = field(default_factory=list)

    def prompt_messages(self) -> list[dict[str, Any]]:
        """The messages as the chat template takes them."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [{key: turn[key] for key in turn if key != "interrupted"} for turn in self.messages]

    def add_user(self, text: str) -> None:
        """Adds the user's turn."""
        self.messages.append({"role": "user", "content": text})

    def add_reply(self, reply: Reply) -> None:
        """Adds the model's turn."""
        turn = reply.message()
        if reply.finish_reason == "cancelled":
            turn["interrupted"] = True
        self.messages.append(turn)

    def save(self, path: str | Path) -> None:
        """Writes the conversation as JSON, for its user's eyes only."""
        path = Path(path).expanduser()
        write_text(path, json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n", mode=0o600)

    @classmethod
    def load(cls, path: str | Path) -> "Conversation":
        """Reads a saved conversation.

        Raises:
            ValueError: when the file is not one.
        """
        try:
            saved = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise ValueError(f"{path} is not a saved conversation: {error}") from error
        if not _is_conversation(saved):
            raise ValueError(
                f"{path} is not a saved conversation: it needs system, think, budget and a list of messages."
            )
        return cls(**saved)


def _is_conversation(saved: Any) -> bool:
    if not isinstance(saved, dict) or set(saved) != set(Conversation.__dataclass_fields__):
        return False
    messages = saved["messages"]
    return (
        (saved["system"] is None or isinstance(saved["system"], str))
        and isinstance(saved["think"], bool)
        and type(saved["budget"]) is int
        and saved["budget"] >= -1
        and isinstance(messages, list)
        and all(isinstance(m, dict) and m.get("role") in ROLES and isinstance(m.get("content"), str) for m in messages)
    )
