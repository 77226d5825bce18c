"""`axk1 corpus`: build the nano's real-text corpus, and write problem text beside it."""

from pathlib import Path
from typing import Annotated

import typer

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
) -> None:
    """Write training problems (question, reasoning, answer) as text, for a tokenizer to learn from."""
    from axk1.train.corpus import write_problems

    write_problems(out, count=count, seed=seed, replies=replies)
    typer.echo(f"{out}: {count:,} problems")
