"""`axk1 chat`: a conversation in the terminal."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from axk1.cli import chat_options as options
from axk1.cli import streams

if TYPE_CHECKING:
    from rich.console import Console

    from axk1.chat import Chat, Conversation, ReplyStream

HELP = """\
/think            reason before answering
/nothink          answer directly
/budget N         reasoning tokens at most: -1 unlimited, 0 none
/system TEXT      set the system prompt; without TEXT, remove it
/clear            forget the conversation
/save FILE        write the conversation as JSON
/load FILE        go on with a saved conversation
/help             this list
/exit             leave (or Ctrl-D)
Ctrl-C stops a reply. A line that ends with \\ goes on in the next one; so does everything between \"\"\" and \"\"\"."""
MORE = "... "


@options.with_reply_options
def chat(
    model: options.Model = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    *,
    how: options.ReplyOptions,
) -> None:
    """Talk with a model in the terminal, with its reasoning or without; /help lists the commands."""
    from rich.console import Console

    how.check()
    reply_options = {
        "sampling": how.sampling(),
        "drafts": how.speculation(),
        "max_new_tokens": how.max_new_tokens,
    }
    console = Console(soft_wrap=True, markup=False, emoji=False, highlight=False)
    engine = how.load(model)
    from axk1.chat import Conversation

    session = Session(engine, Conversation(system, how.think, how.budget), console, reply_options)
    if session.interactive:
        console.print("/help lists the commands, Ctrl-C stops a reply, Ctrl-D leaves.", style="dim")
        with _line_editing():
            session.run()
    else:
        session.run()


class Session:
    """Reads lines until the end of input; a line is a command or a message to answer."""

    def __init__(self, engine: "Chat", conversation: "Conversation", console: "Console", how: dict[str, Any]):
        self.engine = engine
        self.conversation = conversation
        self.console = console
        self.how = how
        self.interactive = sys.stdin.isatty()
        self.commands: dict[str, Callable[[str], object]] = {
            "/think": lambda _: self._set_mode(True),
            "/nothink": lambda _: self._set_mode(False),
            "/budget": self._set_budget,
            "/system": self._set_system,
            "/clear": lambda _: self._clear(),
            "/save": self._save,
            "/load": self._load,
            "/help": lambda _: self._say(HELP),
        }

    def run(self) -> None:
        """The conversation, until /exit or the end of input."""
        while True:
            try:
                text, is_block = self._read_message()
                if text.startswith("/") and not is_block:
                    if text.strip() == "/exit":
                        return
                    self._command(text)
                elif text.strip():
                    self._answer(text)
            except KeyboardInterrupt:  # at the prompt: drop the line
                self.console.print()
            except EOFError:
                if self.interactive:
                    self.console.print()
                return
            except (ValueError, OSError) as error:
                self.console.print(f"error: {error}", style="red")

    def _read_message(self) -> tuple[str, bool]:
        """The next message, and whether it came as a block (which is never a command)."""
        text = self._read_line("think> " if self.conversation.think else "> ")
        if text.startswith('"""'):
            text = text[3:]
            with suppress(EOFError):
                while '"""' not in text:
                    text += "\n" + self._read_line(MORE)
            return text.partition('"""')[0].strip("\n"), True
        with suppress(EOFError):
            while text.endswith("\\"):
                text = text[:-1] + "\n"
                text += self._read_line(MORE)
        return text, False

    def _read_line(self, prompt: str) -> str:
        if self.interactive:
            return input(prompt)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def _answer(self, text: str) -> None:
        """Shows the reply as it comes, and adds both turns to the conversation."""
        state = self.conversation
        messages = [*state.prompt_messages(), {"role": "user", "content": text}]
        stream = self.engine.stream(messages, think=state.think, budget=state.budget, **self.how)
        with _interrupts_cancel(stream):
            self._show(stream)
            reply = stream.reply
            state.add_user(text)
            state.add_reply(reply)
        if reply.finish_reason == "cancelled":
            self._say("[stopped]")
        elif not reply.closed:
            self._say("[no tokens left: the reply ended inside its reasoning]")
        if self.interactive:
            tokens = reply.reasoning_tokens + reply.answer_tokens
            counts = f"{reply.reasoning_tokens} reasoning + {reply.answer_tokens} answer tokens"
            acceptance = stream.statistics.acceptance
            drafts = "" if acceptance is None else f", {acceptance:.0%} of drafts accepted"
            self._say(f"{counts}, {tokens / reply.seconds:.0f} tokens/s{drafts}")

    def _show(self, stream: "ReplyStream") -> None:
        previous = None
        for delta in stream:
            if delta.kind != previous:
                if previous or delta.kind == "reasoning":
                    self._say(("\n" if previous else "") + ("[reasoning]" if delta.kind == "reasoning" else "[answer]"))
                previous = delta.kind
            style = "dim" if delta.kind == "reasoning" else None
            self.console.print(streams.printable(delta.text), style=style, end="")
        self.console.print()

    def _say(self, text: str) -> None:
        self.console.print(text, style="dim")

    def _command(self, line: str) -> None:
        name, _, rest = line.strip().partition(" ")
        if name not in self.commands:
            raise ValueError(f"there is no command {name}; /help lists them (a leading space makes a line a message).")
        self.commands[name](rest.strip())

    def _set_mode(self, think: bool) -> None:
        self.conversation.think = think
        self._say(f"Think, budget {self.conversation.budget}." if think else "Non-Think.")

    def _set_budget(self, text: str) -> None:
        try:
            budget = int(text)
        except ValueError:
            budget = -2
        if budget < -1:
            raise ValueError(f"/budget takes a whole number of tokens, -1 for unlimited or 0 for none; got {text!r}.")
        self.conversation.budget = budget
        self._say(f"Thinking budget {budget}." if budget >= 0 else "Thinking budget unlimited.")

    def _set_system(self, text: str) -> None:
        self.conversation.system = text or None
        self._say("System prompt set." if text else "System prompt removed.")

    def _clear(self) -> None:
        self.conversation.messages.clear()
        self._say("Conversation cleared.")

    def _save(self, file: str) -> None:
        if not file:
            raise ValueError("/save needs a file name.")
        self.conversation.save(file)
        self._say(f"Saved to {file}.")

    def _load(self, file: str) -> None:
        from axk1.chat import Conversation

        if not file:
            raise ValueError("/load needs a file name.")
        self.conversation = Conversation.load(file)
        self._say(f"Loaded {len(self.conversation.messages)} turns from {file}.")


@contextmanager
def _interrupts_cancel(stream: "ReplyStream") -> Iterator[None]:
    """While a reply is written, Ctrl-C ends it: by a flag, so that no bookkeeping is cut in the middle."""
    previous = signal.signal(signal.SIGINT, lambda *_: stream.cancel())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _line_editing() -> Iterator[None]:
    """Arrow keys and a history that outlives the program, where Python has readline."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "axk1"
    file = state / "chat_history"
    with suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with suppress(OSError):
            state.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
