"""`axk1 train`: a recipe from data to weights."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import axk1
from axk1.cli import chat_options as options

if TYPE_CHECKING:
    from axk1.train.recipe import Recipe


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/nano.toml; nano for the shipped one.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; goes on where it stopped.")] = Path("runs/nano"),
    threads: options.Threads = None,
    export: Annotated[Path | None, typer.Option(help="Write the finished model here, bf16, with tokenizer.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would take, and start nothing.")] = False,
) -> None:
    """Run every stage of a recipe that is not finished yet, resuming the one that was cut off."""
    options.check_threads(threads)
    file = _shipped(recipe, Path("recipes") / f"{recipe}.toml")
    if not file.is_file():
        raise ValueError(
            f"{file} does not exist, or is no ordinary file: give the path of a recipe such as recipes/nano.toml."
        )
    typer.echo("Loading PyTorch and transformers.", err=True)
    import torch

    from axk1.train.recipe import Recipe
    from axk1.train.stages import export_model, run

    plan = Recipe.load(file)
    plan = replace(plan, tokenizer=str(_shipped(Path(plan.tokenizer), Path(plan.tokenizer))))
    if threads is not None:
        torch.set_num_threads(threads)
    if dry_run:
        return _show_estimate(plan)
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


def _show_estimate(plan: Recipe) -> None:
    from axk1.load import load_tokenizer
    from axk1.train.estimate import estimate, sentences
    from axk1.train.recipe import check_recipe

    check_recipe(plan, load_tokenizer(plan.tokenizer))
    for line in sentences(estimate(plan)):
        typer.echo(line)


def _shipped(path: Path, name: Path) -> Path:
    """``path``, or where there is nothing, the file or folder ``name`` that comes with axk1, if there is one."""
    package = Path(axk1.__file__).parent
    places = [package / name, package.parents[1] / name]  # installed; in a clone, src/axk1/../..
    return path if path.exists() else next((place for place in places if place.exists()), path)
