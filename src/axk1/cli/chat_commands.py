"""The commands of `axk1 chat`: lines that begin with a slash."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axk1.terminal import printable

if TYPE_CHECKING:
    from axk1.cli.chat import Session

SHOWN = 6
"""Turns that /load shows."""
SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)
SETTINGS = (*SAMPLING, "max_new_tokens", "markdown")
"""What /set sets."""


class Leave(Exception):
    """The user ends the conversation."""


def run_command(session: "Session", line: str) -> None:
    """Runs a line such as ``/budget 20``, or ``?``.

    Raises:
        Leave: at /exit.
        ValueError: there is no such command, or not with this.
    """
    name, _, rest = line.strip().partition(" ")
    name = "/help" if name == "?" else name
    if name not in COMMANDS:
        raise ValueError(f"there is no command {name}; /help lists them (a leading space makes a line a message).")
    COMMANDS[name][0](session, rest.strip())


def _think(session: "Session", _: str) -> None:
    session.conversation.think = True
    session.say(f"Think, budget {session.conversation.budget}.")


def _nothink(session: "Session", _: str) -> None:
    session.conversation.think = False
    session.say("Non-Think.")


def _budget(session: "Session", text: str) -> None:
    try:
        budget = int(text)
    except ValueError:
        budget = -2
    if budget < -1:
        raise ValueError(f"/budget takes a whole number of tokens, -1 for unlimited or 0 for none; got {text!r}.")
    session.conversation.budget = budget
    session.say(f"Thinking budget {budget}." if budget >= 0 else "Thinking budget unlimited.")


def _system(session: "Session", text: str) -> None:
    session.conversation.system = text or None
    session.say("System prompt set." if text else "System prompt removed.")


def _set(session: "Session", text: str) -> None:
    name, _, value = text.replace("=", " ", 1).partition(" ")
    value = value.strip()
    if name and name not in SETTINGS:
        raise ValueError(f"/set knows {', '.join(SETTINGS)}; got {name!r}.")
    if value:
        _change(session, name, value)
    values = {option: getattr(session.settings["sampling"], option) for option in SAMPLING}
    values |= {"max_new_tokens": session.settings["max_new_tokens"], "markdown": session.markdown}
    session.say(", ".join(f"{option} {values[option]}" for option in SETTINGS if not name or option == name))


def _change(session: "Session", name: str, text: str) -> None:
    """Sets one value, written as JSON, or none, on or off."""
    words = {"none": None, "on": True, "off": False}
    try:
        value = words[text.lower()] if text.lower() in words else json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"/set {name} takes a number; got {text!r}.") from None
    if name == "markdown":
        if not isinstance(value, bool):
            raise ValueError(f"/set markdown takes on or off; got {text!r}.")
        session.markdown = value
    elif name == "max_new_tokens":
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"/set max_new_tokens takes a whole number, at least 1, or none; got {text!r}.")
        session.settings["max_new_tokens"] = value
    else:
        session.settings["sampling"] = dataclasses.replace(session.settings["sampling"], **{name: value})


def _regenerate(session: "Session", _: str) -> None:
    _again(session, None)


def _edit(session: "Session", text: str) -> None:
    if text:
        _again(session, text)
    elif session.reader.interactive:
        question = next((t["content"] for t in reversed(session.conversation.messages) if t["role"] == "user"), "")
        _again(session, session.reader.read("edit> ", question))
    else:
        raise ValueError("/edit needs the new text, where standard input is no terminal.")


def _again(session: "Session", text: str | None) -> None:
    """Answers the last question, or ``text`` in its place; where that fails, all is as it was."""
    messages = list(session.conversation.messages)
    question = session.conversation.take_back()
    try:
        session.answer(question if text is None else text)
    except BaseException:
        session.conversation.messages = messages
        raise


def _undo(session: "Session", _: str) -> None:
    question = session.conversation.take_back()
    session.say(f"Taken back: {printable(_short(question))}")


def _forget(session: "Session", text: str) -> None:
    if not (text or "1").isdecimal() or int(text or "1") < 1:
        raise ValueError(f"/forget takes how many of the oldest turns to drop; got {text!r}.")
    left = session.conversation.forget(int(text or "1"))
    session.say(f"{left} turn{'' if left == 1 else 's'} left.")


def _clear(session: "Session", _: str) -> None:
    session.conversation.messages.clear()
    session.say("Conversation cleared.")


def _save(session: "Session", file: str) -> None:
    if not file:
        raise ValueError("/save needs a file name.")
    session.conversation.save(file, overwrite=_key(file) in session.files)
    session.files.add(_key(file))
    session.say(f"Saved to {file}.")


def _load(session: "Session", file: str) -> None:
    from axk1.chat import Conversation

    if not file:
        raise ValueError("/load needs a file name.")
    session.conversation = state = Conversation.load(file)
    session.files.add(_key(file))
    session.say(f"Loaded {len(state.messages)} turns from {file}.")
    mode = f"Think, budget {state.budget}" if state.think else "Non-Think"
    session.say(
        f"{mode}; " + (f"system prompt: {printable(_short(state.system))}" if state.system else "no system prompt.")
    )
    if len(state.messages) > SHOWN:
        session.say(f"({len(state.messages) - SHOWN} earlier turns)")
    for turn in state.messages[-SHOWN:]:
        sign = {"user": "> ", "assistant": ""}.get(turn["role"], f"[{turn['role']}] ")
        stopped = " [stopped]" if turn.get("interrupted") else ""
        session.console.print(printable(sign + turn["content"] + stopped), style="dim" if sign else None)


def _key(file: str) -> str:
    """One name for a file, however it is spelled; a link is its own file."""
    path = Path(file).expanduser()
    return str(path.parent.resolve() / path.name)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:100] + "..."


def _help(session: "Session", _: str) -> None:
    session.say("\n".join(f"{usage:<18}{what}" for _, usage, what in COMMANDS.values() if what))
    session.say(
        'Ctrl-C stops a reply. A line that ends with \\ goes on in the next one; so does everything between """ and '
        '""". What is pasted is one message. Tab completes commands.'
    )


def _exit(session: "Session", _: str) -> None:
    raise Leave


COMMANDS: dict[str, tuple[Callable[["Session", str], Any], str, str]] = {
    "/think": (_think, "/think", "reason before answering"),
    "/nothink": (_nothink, "/nothink", "answer directly"),
    "/budget": (_budget, "/budget N", "reasoning tokens at most: -1 unlimited, 0 none"),
    "/system": (_system, "/system TEXT", "set the system prompt; without TEXT, remove it"),
    "/set": (_set, "/set NAME VALUE", "temperature, seed, max_new_tokens ...; /set shows them"),
    "/regenerate": (_regenerate, "/regenerate", "answer the last message again"),
    "/edit": (_edit, "/edit TEXT", "change the last message, then answer it"),
    "/undo": (_undo, "/undo", "take back the last message and its answer"),
    "/forget": (_forget, "/forget N", "drop the N oldest turns, when the context is full; 1 without N"),
    "/clear": (_clear, "/clear ", "forget the conversation"),
    "/save": (_save, "/save FILE", "write the conversation as JSON; never over another file"),
    "/load": (_load, "/load FILE", "go on with a saved conversation"),
    "/help": (_help, "/help ", "this list; so does ?"),
    "/exit": (_exit, "/exit ", "leave (or /quit, or Ctrl-D)"),
    "/quit": (_exit, "/quit", ""),
}
"""What a command does, how it is written, and what /help says of it."""
