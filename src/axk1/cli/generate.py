"""`axk1 generate`: one prompt, or a file of them."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from axk1.cli import chat_options as options

if TYPE_CHECKING:
    from axk1.chat import Chat
    from axk1.generation.speculate import DraftStatistics


@options.with_reply_options
def generate(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads standard input.")] = None,
    input: Annotated[Path | None, typer.Option(help="JSONL: prompt or messages; optional id, think.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSONL of replies; an interrupted run goes on.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the reply and its counts as JSON.")] = False,
    logprobs: Annotated[
        int | None, typer.Option(help="Add log-probabilities to the JSON: of each token and the N best in its place.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Cut the answer before this text; repeatable.")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts of the input file answered at once.")] = 32,
    *,
    how: options.ReplyOptions,
) -> None:
    """Answer a prompt, or a JSONL file of them. The answer goes to standard output, the reasoning to standard error."""
    _check_sources(prompt, input, output, as_json)
    if logprobs is not None and not as_json and input is None:
        raise ValueError("--logprobs needs --json, or --input and --output.")
    reply_options = {
        "think": how.think,
        "budget": how.budget,
        "max_new_tokens": how.max_new_tokens,
        "stop": stop or [],
        "sampling": how.sampling(),
        "drafts": how.speculation(),
        "logprobs": logprobs,
    }
    if input is None or output is None:
        options.lenient_stdin()
        text = sys.stdin.read().rstrip("\n") if prompt in (None, "-") else prompt
        if not text.strip():
            raise ValueError("The prompt is empty.")
        _answer(how.load(model), text, as_json, reply_options)
        return
    from axk1.chat.batch import read_records

    records = read_records(input)
    if output.exists() and output.samefile(input):
        raise ValueError("--output is the --input file; choose another.")
    _answer_file(how.load(model), records, output, {"batch_size": batch_size, **reply_options})


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


def _answer(chat: "Chat", text: str, as_json: bool, how: dict[str, Any]) -> None:
    """Streams one reply; with ``as_json``, prints it when it is finished."""
    from rich.console import Console

    stream = chat.stream([{"role": "user", "content": text}], **how)
    stderr = Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)
    previous = None
    for delta in stream:
        if as_json:
            continue
        if delta.kind == "answer":
            if previous == "reasoning":
                stderr.print()
            typer.echo(options.printable(delta.text) if sys.stdout.isatty() else delta.text, nl=False)
        else:
            stderr.print(options.printable(delta.text), style="dim", end="")
        previous = delta.kind
    if as_json:
        reply = {"think": how["think"], **stream.reply.record(), "drafts": _drafts(stream.statistics)}
        typer.echo(json.dumps(reply, ensure_ascii=False))
    else:
        typer.echo()
    if not stream.reply.closed:
        stderr.print("The reply ended inside the reasoning; raise --max-new-tokens or set a --budget.", style="yellow")


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


def _answer_file(chat: "Chat", records: list, output: Path, how: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from axk1.chat.batch import answer_records

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("replies", total=len(records))
        for finished in answer_records(chat, records, output, **how):
            bar.update(task, completed=finished)
