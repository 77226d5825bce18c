"""`axk1 data`: what training data look like once they are packed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from axk1.cli import streams
from axk1.terminal import printable

if TYPE_CHECKING:
    from axk1.train.sources import Taken

Rows = tuple[Any, Iterator[Any], int | None]
"""The tokenizer, rows ``[3, row_tokens]``, and how many there are, where that is known."""

NANO = Path("models/nano")

app = typer.Typer(no_args_is_help=True, help="Look at training data.")


@app.command()
def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            help="JSONL, plain text, Parquet, a folder or name of a dataset, a recipe (.toml), or a run's data.npy."
        ),
    ],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the tokenizer; the recipe's, or models/nano.")
    ] = None,
    row_tokens: Annotated[
        int | None, typer.Option(help="Length of a row, where nothing says it; 256 if left out.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows to show.")] = 2,
    first: Annotated[int, typer.Option(help="The first of them, from 0.")] = 0,
    stage: Annotated[str | None, typer.Option(help="Of a recipe: the stage; its first one if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print rows and documents as JSON.")] = False,
) -> None:
    """Show packed rows: their documents, and in green what is learned of them."""
    for name, value, least in (("--rows", rows, 1), ("--first", first, 0), ("--row-tokens", row_tokens, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}.")
    from axk1.cli.train import shipped
    from axk1.train.inspect import documents

    taken: dict[str, Taken] = {}
    if file.suffix == ".toml":
        words, packed, total = _stage_rows(file, stage, tokenizer, row_tokens, taken)
    else:
        words, packed, total = _file_rows(file, tokenizer or shipped(NANO, NANO), row_tokens or 256)
    chosen = list(islice(packed, first, first + rows))
    if not chosen:
        raise ValueError(f"--first is {first}; {file} has {'fewer' if total is None else total} rows.")
    shown = [list(documents(row, words)) for row in chosen]
    if as_json:
        typer.echo(streams.json_text([[document._asdict() for document in row] for row in shown]))
        return
    _show(shown, first, total)
    for name, each in taken.items():
        typer.echo(f"{name}: {each.words()}")


def _stage_rows(
    file: Path, name: str | None, tokenizer: Path | None, row_tokens: int | None, taken: dict[str, Taken]
) -> Rows:
    """Of a recipe's stage, without end; ``taken`` is filled while they are drawn."""
    from axk1.cli.train import shipped
    from axk1.load import load_tokenizer
    from axk1.train.packing import packed_rows
    from axk1.train.recipe import Recipe, check_stage
    from axk1.train.stages import stage_examples

    recipe = Recipe.load(file)
    names = [each.name for each in recipe.stage]
    if name is not None and name not in names:
        raise ValueError(f"--stage is {name}; {file} has the stages {', '.join(names)}.")
    stage = recipe.stage[names.index(name) if name else 0]
    check_stage(recipe, stage)
    here = recipe.at(stage) if row_tokens is None else replace(recipe, row_tokens=row_tokens)
    words = load_tokenizer(tokenizer or shipped(Path(recipe.tokenizer), Path(recipe.tokenizer)))
    pad = cast(int, words.pad_token_id)
    return words, packed_rows(stage_examples(here, stage, words, taken), here.row_tokens, pad), None


def _file_rows(file: Path, tokenizer: Path, row_tokens: int) -> Rows:
    """Of a source or a run's data. How many there are is found out where that is a file that is read anyway."""
    from axk1.load import load_tokenizer
    from axk1.train.packing import PackedRows, packed_rows, packed_whole
    from axk1.train.sources import Source, source_examples

    words = load_tokenizer(tokenizer)
    pad = cast(int, words.pad_token_id)
    if file.suffix == ".npy":
        if not file.is_file():
            raise ValueError(f"{file} is missing, or no ordinary file.")
        held = PackedRows(file)
        return words, (row for place in range(len(held)) for row in held.read(place, place + 1)), len(held)
    examples = source_examples(str(file), words, row_tokens, Source(1.0, stream=True))
    if file.is_dir() or file.suffix == ".parquet" or not file.exists():
        return words, packed_rows(examples, row_tokens, pad, last=True), None
    whole = packed_whole(examples, row_tokens, pad)
    return words, iter(whole), len(whole)


def _show(rows: list[list[Any]], first: int, total: int | None) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for number, row in enumerate(rows, first):
        tokens, learned = sum(d.tokens for d in row), sum(d.learned for d in row)
        of = "" if total is None else f" of {total:,}"
        console.print(f"row {number}{of}: {len(row)} documents, {learned:,} of {tokens:,} tokens learned")
        for document in row:
            console.print(Text(f"  from {document.start}, {document.learned} of {document.tokens}", style="cyan"))
            parts = [(printable(text), "green" if learned else "dim") for learned, text in document.parts]
            console.print(Text.assemble("  ", *parts))
