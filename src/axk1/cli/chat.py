"""`axk1 chat`: a conversation in the terminal."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from axk1.cli import chat_options as options
from axk1.cli.chat_input import PipedReader, Reader, TerminalReader
from axk1.load import resolve_model_path
from axk1.terminal import sentence

if TYPE_CHECKING:
    from rich.console import Console

    from axk1.chat import Chat, Conversation, ReplyStream

MORE = "... "
FULL = "/forget drops the oldest turn and keeps the others, /clear forgets them all; then send it again (arrow up)."


@options.with_reply_options
def chat(
    model: options.Model = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    markdown: Annotated[
        bool | None, typer.Option("--markdown/--plain", help="Render answers as Markdown. Default: on a terminal.")
    ] = None,
    *,
    how: options.ReplyOptions,
) -> None:
    """Talk with a model in the terminal, with its reasoning or without; /help lists the commands."""
    from rich.console import Console

    how.check()
    folder = resolve_model_path(model)
    settings = how.choices()
    engine = how.load(folder)
    from axk1.chat import Conversation
    from axk1.cli.chat_commands import COMMANDS, SETTINGS

    interactive = sys.stdin.isatty()
    console = Console(soft_wrap=not interactive, markup=False, emoji=False, highlight=False)
    reader = TerminalReader(list(COMMANDS), SETTINGS) if interactive else PipedReader()
    session = Session(engine, Conversation(system, how.think, how.budget), console, reader, settings)
    if markdown is not None:
        session.markdown = markdown
    if interactive:
        mode = "reasons first (/nothink: not)" if how.think else "answers directly (/think: with reasoning)"
        session.say(f"{_describe(engine)}. It {mode}. /help lists the commands, Ctrl-C stops a reply, Ctrl-D leaves.")
    session.run()


def _describe(engine: "Chat") -> str:
    """Which model answers: its folder, size, number format and device."""
    from axk1.experts.store import store_of

    model = engine.model
    size = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(model.dtype).removeprefix("torch.")
    text = f"{model.config.name_or_path}: {size / 1e6:,.1f} million parameters, {dtype}, {model.device}"
    store = store_of(model)
    return (
        text if store is None else f"{text}, and {len(store.layout.experts):,} experts on disk, {store.slots:,} cached"
    )


class Session:
    """Reads lines until the end of input; a line is a command or a message to answer."""

    def __init__(
        self, engine: "Chat", conversation: "Conversation", console: "Console", reader: Reader, settings: dict[str, Any]
    ) -> None:
        self.engine = engine
        self.conversation = conversation
        self.console = console
        self.reader = reader
        self.settings = settings
        self.markdown = console.is_terminal and not console.is_dumb_terminal
        self.files: set[str] = set()
        """What this session has saved or loaded, which it may write again."""

    def run(self) -> None:
        """The conversation, until /exit or the end of input."""
        from axk1.chat.session import ContextFullError
        from axk1.cli.chat_commands import Leave, run_command

        while True:
            try:
                text, is_block = self._read_message()
                if not is_block and (text.strip() == "?" or (text.startswith("/") and "\n" not in text)):
                    run_command(self, text)
                elif text.strip():
                    self.answer(text)
            except KeyboardInterrupt:  # at the prompt: drop the line, of which a pipe has none
                if not self.reader.interactive:
                    raise
                self.console.print()
            except (Leave, EOFError) as end:
                if self.reader.interactive and isinstance(end, EOFError):
                    self.console.print()
                return
            except (ValueError, OSError) as error:
                self.console.print(f"error: {sentence(error)}", style="red")
                if isinstance(error, ContextFullError):
                    self.say(FULL)

    def _read_message(self) -> tuple[str, bool]:
        """The next message, and whether it came as a block (which is never a command)."""
        text = self.reader.read("think> " if self.conversation.think else "> ")
        if text.startswith('"""'):
            text = text[3:]
            with suppress(EOFError):
                while '"""' not in text:
                    text += "\n" + self.reader.read(MORE)
            return text.partition('"""')[0].strip("\n"), True
        with suppress(EOFError):
            while text.endswith("\\"):
                text = text[:-1] + "\n"
                text += self.reader.read(MORE)
        return text, False

    def answer(self, text: str) -> None:
        """Shows the reply as it comes, and adds both turns to the conversation."""
        from axk1.cli.chat_view import show

        state = self.conversation
        messages = [*state.prompt_messages(), {"role": "user", "content": text}]
        stream = self.engine.stream(messages, think=state.think, budget=state.budget, **self.settings)
        with _interrupts_cancel(stream):
            show(self.console, stream, self.markdown)
            reply = stream.reply
            state.add_user(text)
            state.add_reply(reply)
        if reply.finish_reason == "cancelled":
            self.say("[stopped]")
        elif not reply.closed:
            self.say("[no tokens left: the reply ended inside its reasoning]")
        elif reply.finish_reason == "length":
            self.say("[no tokens left: the reply is cut off]")
        if self.reader.interactive:
            self._say_counts(stream)

    def _say_counts(self, stream: "ReplyStream") -> None:
        reply, acceptance = stream.reply, stream.statistics.acceptance
        tokens = reply.reasoning_tokens + reply.answer_tokens
        counts = f"{reply.reasoning_tokens} reasoning + {reply.answer_tokens} answer tokens"
        drafts = "" if acceptance is None else f", {acceptance:.0%} of drafts accepted"
        self.say(f"{counts}, {tokens / reply.seconds:.0f} tokens/s{drafts}")

    def say(self, text: str) -> None:
        """Something that is not the model's."""
        self.console.print(text, style="dim")


@contextmanager
def _interrupts_cancel(stream: "ReplyStream") -> Iterator[None]:
    """While a reply is written, Ctrl-C ends it: by a flag, so that no bookkeeping is cut in the middle."""
    previous = signal.signal(signal.SIGINT, lambda *_: stream.cancel())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
