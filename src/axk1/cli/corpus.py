"""`axk1 corpus`: build the nano's real-text corpus, and write problem text beside it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from axk1.cli import chat_options as options
from axk1.cli import streams

app = typer.Typer(no_args_is_help=True, help="Build training text.")


@app.command()
def build(
    out: Annotated[Path, typer.Argument(help="Folder to write; an interrupted build goes on.")],
    max_bytes: Annotated[int, typer.Option(help="Bytes of text per language at most.")] = 6_000_000,
) -> None:
    """Build en, ko, zh, ja, es and code text from Debian packages (apt needed, nothing is installed)."""
    from rich.console import Console
    from rich.progress import Progress

    from axk1.train.corpus import build as build_corpus

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("corpus", total=None)
        sizes = build_corpus(
            out,
            max_bytes=max_bytes,
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    for language, size in sizes.items():
        typer.echo(f"{out / language}.jsonl: {size:,} bytes of text")


@app.command()
def problems(
    out: Annotated[Path, typer.Argument(help="JSONL file to write.")],
    count: Annotated[int, typer.Option(help="Problems to draw from the training split.")] = 40_000,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    replies: Annotated[bool, typer.Option("--replies", help="Only what a model writes: reasoning, answer.")] = False,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Different questions as prompts, with their task as domain.")
    ] = False,
) -> None:
    """Write training problems (question, reasoning, answer) as text, for a tokenizer to learn from."""
    from axk1.train.corpus import write_problems, write_prompts

    if prompts:
        write_prompts(out, count=count, seed=seed)
    else:
        write_problems(out, count=count, seed=seed, replies=replies)
    typer.echo(f"{out}: {count:,} problems")


@app.command()
def overlap(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder of the model that answers.")],
    out: Annotated[Path, typer.Argument(help="JSONL file to write, for `data` of a recipe's stage.")],
    count: Annotated[int, typer.Option("--problems", help="Training problems to ask, each in both modes.")] = 1000,
    samples: Annotated[int, typer.Option(help="Attempts at most in each mode.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of problems and attempts.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Of a reply.")] = 256,
    threads: options.Threads = None,
) -> None:
    """Mode-Overlap data: problems that a model solves in Think and in Non-Think, in its own words."""
    from itertools import islice

    for name, value in (("--problems", count), ("--samples", samples)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    streams.check_writable("OUT", out)
    chat = options.load_chat(str(model), None, "auto", threads)
    from rich.console import Console
    from rich.progress import Progress

    from axk1.tasks import different, generate
    from axk1.train.overlap import write_overlap

    problems = list(islice(different(generate("train", seed)), count))
    settings: dict[str, Any] = {"samples": samples, "seed": seed, "max_new_tokens": max_new_tokens}
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replies", total=None)
        found = write_overlap(
            chat,
            problems,
            out,
            **settings,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    typer.echo(f"{out}: {found.both:,} of {found.asked:,} problems, each in both modes")
    typer.echo(f"solved in Think {found.think:,}, in Non-Think {found.non_think:,}")
