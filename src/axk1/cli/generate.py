"""`axk1 generate`: one prompt, or a file of them."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from axk1.cli import chat_options as options

if TYPE_CHECKING:
    from axk1.chat import Chat


def generate(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads standard input.")] = None,
    input: Annotated[Path | None, typer.Option(help="JSONL: prompt or messages; optional id, think.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSONL of replies; an interrupted run goes on.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the reply and its counts as JSON.")] = False,
    think: options.Think = False,
    budget: options.Budget = -1,
    max_new_tokens: options.MaxNewTokens = None,
    stop: Annotated[list[str] | None, typer.Option(help="Cut the answer before this text; repeatable.")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts of the input file answered at once.")] = 32,
    temperature: options.Temperature = 0.6,
    top_p: options.TopP = 0.95,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
) -> None:
    """Answer a prompt, or a JSONL file of them. The answer goes to standard output, the reasoning to standard error."""
    from axk1.generation.sampling import Sampling

    _check_sources(prompt, input, output, as_json)
    how = {
        "think": think,
        "budget": budget,
        "max_new_tokens": max_new_tokens,
        "stop": stop or [],
        "sampling": Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed),
    }
    if input is None or output is None:
        options.lenient_stdin()
        text = sys.stdin.read().rstrip("\n") if prompt in (None, "-") else prompt
        if not text.strip():
            raise ValueError("The prompt is empty.")
        _answer(options.load_chat(model, device, dtype), text, as_json, how)
        return
    from axk1.chat.batch import read_records

    records = read_records(input)
    if output.exists() and output.samefile(input):
        raise ValueError("--output is the --input file; choose another.")
    _answer_file(options.load_chat(model, device, dtype), records, output, {"batch_size": batch_size, **how})


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
        typer.echo(json.dumps({"think": how["think"], **asdict(stream.reply)}, ensure_ascii=False))
    else:
        typer.echo()
    if not stream.reply.closed:
        stderr.print("The reply ended inside the reasoning; raise --max-new-tokens or set a --budget.", style="yellow")


def _answer_file(chat: "Chat", records: list, output: Path, how: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from axk1.chat.batch import answer_records

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("replies", total=len(records))
        for finished in answer_records(chat, records, output, **how):
            bar.update(task, completed=finished)
