"""A conversation's state: history, system prompt, mode and budget; saved to and loaded from JSON."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from axk1.chat.messages import check_messages
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
        """The messages for the next prompt."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.messages]

    def add_user(self, text: str) -> None:
        """Adds the user's turn."""
        self.messages.append({"role": "user", "content": text})

    def add_reply(self, reply: Reply) -> None:
        """Adds the model's turn."""
        turn = reply.message()
        if reply.finish_reason == "cancelled":
            turn["interrupted"] = True
        self.messages.append(turn)

    def take_back(self) -> str:
        """Removes the last question and what came after it; returns the question.

        Raises:
            ValueError: when there is none.
        """
        places = [place for place, turn in enumerate(self.messages) if turn["role"] == "user"]
        if not places:
            raise ValueError("There is no turn to take back.")
        question = self.messages[places[-1]]["content"]
        del self.messages[places[-1] :]
        return question

    def forget(self, turns: int = 1) -> int:
        """Removes the oldest ``turns`` questions with what came after each; returns how many turns are left."""
        places = [place for place, turn in enumerate(self.messages) if turn["role"] == "user"]
        del self.messages[: places[turns] if turns < len(places) else len(self.messages)]
        return max(len(places) - turns, 0)

    def save(self, path: str | Path, *, overwrite: bool = True) -> None:
        """Writes the conversation as JSON, for its user's eyes only. Links are replaced, never followed.

        Raises:
            ValueError: without ``overwrite``, when there is such a file already.
        """
        path = _expanded(path)
        if not overwrite and (path.exists() or path.is_symlink()):
            raise ValueError(f"{path} exists already; choose another name.")
        write_text(path, json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n", mode=0o600)

    @classmethod
    def load(cls, path: str | Path) -> "Conversation":
        """Reads a saved conversation.

        Raises:
            ValueError: when the file is not one.
        """
        try:
            file = _expanded(path)
            if file.exists() and not file.is_file():
                raise ValueError("it is no regular file.")
            saved = json.loads(file.read_text(encoding="utf-8-sig"))
            _check(saved)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a saved conversation: {error}") from error
        return cls(**saved)


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # of a user without a home
        raise ValueError(f"{path} cannot be found: {error}") from None


def _check(saved: Any) -> None:
    """Refuses what :meth:`Conversation.save` has not written."""
    if not isinstance(saved, dict) or set(saved) != set(Conversation.__dataclass_fields__):
        raise ValueError("it needs system, think, budget and a list of messages.")
    types = {
        "system": isinstance(saved["system"], str | None),
        "think": isinstance(saved["think"], bool),
        "budget": type(saved["budget"]) is int and saved["budget"] >= -1,
        "messages": isinstance(saved["messages"], list),
    }
    if wrong := [name for name, right in types.items() if not right]:
        raise ValueError(f"its {wrong[0]} is {saved[wrong[0]]!r}.")
    for message in check_messages(saved["messages"]) if saved["messages"] else ():
        if message["role"] == "system":
            raise ValueError("a system message stands among its messages; it belongs into system.")
    if not all(isinstance(message["content"], str) for message in saved["messages"]):
        raise ValueError("the content of a message is no text.")
