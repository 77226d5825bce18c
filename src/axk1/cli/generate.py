"""`axk1 generate`: one prompt, or a file of them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from axk1.cli import chat_options as options
from axk1.cli import streams
from axk1.load import resolve_model_path
from axk1.terminal import printable

if TYPE_CHECKING:
    from axk1.chat import Chat
    from axk1.chat.batch import Record
    from axk1.generation.speculate import DraftStatistics

INCOMPLETE = 3
"""Exit code of a file of requests some of which could not be answered."""
UNCLOSED = 4
"""Exit code where a reply ended inside its reasoning, so that it has no answer."""


@options.with_reply_options
def generate(
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint folder or name on the hub. Default: AXK1_MODEL, else the nano.")
    ] = None,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads standard input.")] = None,
    input: Annotated[
        Path | None, typer.Option(help="JSONL: prompt or messages; optional id, think and options of the reply.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="JSONL of replies; an interrupted run goes on.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the reply and its counts as JSON.")] = False,
    logprobs: Annotated[
        int | None, typer.Option(help="Add log-probabilities to the JSON: of each token and the N best in its place.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Cut the answer before this text; repeatable.")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts of the input file answered at once.")] = 32,
    stats: Annotated[
        bool, typer.Option("--stats", help="Say at the end, on standard error, what was read from disk and how fast.")
    ] = False,
    *,
    how: options.ReplyOptions,
) -> None:
    """Answer a prompt, or a JSONL file of them. The answer goes to standard output, the reasoning to standard error.

    With one argument, that is the model if it names a folder, else the prompt: axk1 generate "What is 17 + 25?"
    Exit codes: 2 for an error, 3 where requests of a file could not be answered, 4 where a reply ended inside its
    reasoning.
    """
    if prompt is None and input is None and model is not None and _is_prompt(model):
        model, prompt = None, model
    _check_sources(prompt, input, output, as_json)
    if logprobs is not None and not as_json and input is None:
        raise ValueError("--logprobs needs --json, or --input and --output.")
    if stats and how.expert_cache is None:
        raise ValueError("--stats tells of the experts' cache; add --expert-cache SIZE.")
    how.check()
    folder = resolve_model_path(model)
    reply_options = {
        "think": how.think,
        "budget": how.budget,
        "stop": stop or [],
        "logprobs": logprobs,
        **how.choices(),
    }
    if input is None or output is None:
        text = sys.stdin.read().rstrip("\n") if prompt in (None, "-") else prompt
        if not text.strip():
            raise ValueError("The prompt is empty.")
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        chat = how.load(folder)
        with _statistics(chat, stats):
            _answer(chat, text, as_json, reply_options)
        return
    from axk1.chat.batch import read_records

    records = read_records(input)
    _name_unknown(records)
    if output.exists() and output.samefile(input):
        raise ValueError("--output is the --input file; choose another.")
    streams.check_writable("--output", output)
    chat = how.load(folder)
    with _statistics(chat, stats):
        _answer_file(chat, records, output, {"batch_size": batch_size, **reply_options})


@contextmanager
def _statistics(chat: "Chat", wanted: bool) -> Iterator[None]:
    """Says in the end what the experts' cache did."""
    from axk1.experts.store import store_of

    store = store_of(chat.model)
    try:
        yield
    finally:
        if wanted and store is not None:
            typer.echo(str(store.counters()), err=True)


def _is_prompt(text: str) -> bool:
    """Whether the only argument is a prompt: no folder, and no path or name on the hub that was meant as one."""
    return text == "-" or (not Path(text).exists() and (len(text.split()) != 1 or not {"/", os.sep} & set(text)))


def _check_sources(prompt: str | None, input: Path | None, output: Path | None, as_json: bool) -> None:
    if input is None:
        if output is not None:
            raise ValueError("--output needs --input; the answer to one prompt goes to standard output.")
        if prompt is None and sys.stdin.isatty():
            raise ValueError("There is no prompt; give one, - for standard input, or --input FILE --output FILE.")
        return
    if output is None:
        raise ValueError("--input needs --output FILE for the replies.")
    if prompt is not None or as_json:
        raise ValueError("--input takes its prompts from the file and writes JSON; leave out the prompt and --json.")


def _name_unknown(records: "list[Record]") -> None:
    """Says which keys of the lines nothing reads."""
    names = list(dict.fromkeys(name for record in records for name in record.unknown))
    if names:
        first = next(record.line for record in records if record.unknown)
        text = f"Not read, from line {first} on: {', '.join(names)}. Options of a line have the names of the command's."
        typer.echo(printable(text), err=True)


def _answer(chat: "Chat", text: str, as_json: bool, how: dict[str, Any]) -> None:
    """Streams one reply; with ``as_json``, prints it when it is finished. Exit code 4 where it has no answer."""
    from rich.console import Console

    from axk1.cli.chat_view import write
    from axk1.experts.store import store_of

    stream = chat.stream([{"role": "user", "content": text}], **how)
    stderr = Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)
    previous = None
    for delta in stream:
        if as_json:
            continue
        if delta.kind == "answer":
            if previous == "reasoning":
                stderr.print()
            typer.echo(printable(delta.text) if sys.stdout.isatty() else delta.text, nl=False)
        else:
            write(stderr, printable(delta.text), "dim")
        previous = delta.kind
    if as_json:
        reply = {"think": how["think"], **stream.reply.record(), "drafts": _drafts(stream.statistics)}
        if (store := store_of(chat.model)) is not None:
            reply["experts"] = store.counters().to_dict()
        typer.echo(streams.json_text(reply))
    else:
        typer.echo()
    if not stream.reply.closed:
        if previous == "reasoning":
            stderr.print()
        stderr.print("The reply ended inside the reasoning; raise --max-new-tokens or set a --budget.", style="yellow")
        raise typer.Exit(UNCLOSED)


def _drafts(statistics: "DraftStatistics") -> dict[str, Any]:
    """What drafting did and gained."""
    without, drafting = statistics.rates
    return {
        "drafted": statistics.drafted,
        "accepted": statistics.accepted,
        "acceptance_at": statistics.acceptance_at,
        "steps": statistics.steps,
        "tokens_per_second": {"without": without, "with": drafting},
    }


def _answer_file(chat: "Chat", records: "list[Record]", output: Path, how: dict[str, Any]) -> None:
    """Answers a file; exit code 3 where a request could not be answered, else 4 where a reply has no answer."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from axk1.chat.batch import Done, answer_records

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    done = Done(0, 0, 0)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("replies", total=len(records))
        for done in answer_records(chat, records, output, **how):
            bar.update(task, completed=done.finished)
    if done.unclosed:
        typer.echo(f"{done.unclosed} of {len(records)} replies ended inside the reasoning (closed is false).", err=True)
    if done.failed:
        text = f"{done.failed} of {len(records)} requests could not be answered; their lines say why in 'error'."
        typer.echo(text, err=True)
        raise typer.Exit(INCOMPLETE)
    if done.unclosed:
        raise typer.Exit(UNCLOSED)
