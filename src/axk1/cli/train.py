"""`axk1 train`: a recipe from data to weights."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/nano.toml.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; goes on where it stopped.")] = Path("runs/nano"),
    threads: Annotated[int | None, typer.Option(help="CPU threads; as many as torch finds when left out.")] = None,
    export: Annotated[Path | None, typer.Option(help="Write the finished model here, bf16, with tokenizer.")] = None,
) -> None:
    """Run every stage of a recipe that is not finished yet, resuming the one that was cut off."""
    typer.echo("Loading PyTorch and transformers.", err=True)
    import torch

    from axk1.train.recipe import Recipe
    from axk1.train.stages import export_model, run

    plan = Recipe.load(recipe)
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads is {threads}; it must be at least 1.")
        torch.set_num_threads(threads)
    start = time.monotonic()

    def say(line: str) -> None:
        typer.echo(f"{time.monotonic() - start:7.1f} s  {line}", err=True)

    try:
        final = run(plan, out, say)
    except KeyboardInterrupt:
        typer.echo("Stopped; the same command goes on.", err=True)
        raise
    if export is not None:
        export_model(final, Path(plan.tokenizer), export)
    typer.echo(f"Finished: {export or final}")
