"""`axk1 data`: what training data look like once they are packed."""

from pathlib import Path
from typing import Annotated, Any

import typer

from axk1.cli import streams
from axk1.terminal import printable

app = typer.Typer(no_args_is_help=True, help="Look at training data.")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="JSONL of texts or conversations, plain text, or a run's data.npy.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder of the tokenizer.")] = Path("models/nano"),
    row_tokens: Annotated[int, typer.Option(help="Length of a row, for files that are not packed yet.")] = 256,
    rows: Annotated[int, typer.Option(help="Rows to show.")] = 2,
    first: Annotated[int, typer.Option(help="The first of them, from 0.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print rows and documents as JSON.")] = False,
) -> None:
    """Show packed rows: their documents, and in green what is learned of them."""
    for name, value, least in (("--rows", rows, 1), ("--first", first, 0), ("--row-tokens", row_tokens, 1)):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}.")
    from axk1.load import load_tokenizer
    from axk1.train.inspect import documents

    words = load_tokenizer(tokenizer)
    packed = _rows(file, words, row_tokens)
    if first >= len(packed):
        raise ValueError(f"--first is {first}; {file} has {len(packed)} rows.")
    shown = [list(documents(row, words)) for row in packed[first : first + rows]]
    if as_json:
        typer.echo(streams.json_text([[document._asdict() for document in row] for row in shown]))
        return
    _show(shown, first, len(packed))


def _rows(file: Path, tokenizer: Any, row_tokens: int) -> Any:
    """``[rows, 3, row_tokens]``."""
    from axk1.train.data import file_examples
    from axk1.train.packing import PackedRows, packed_whole

    if file.suffix == ".npy":
        if not file.is_file():
            raise ValueError(f"{file} is missing, or no ordinary file.")
        return PackedRows(file).rows
    return packed_whole(file_examples(file, tokenizer, row_tokens), row_tokens, tokenizer.pad_token_id)


def _show(rows: list[list[Any]], first: int, total: int) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for number, row in enumerate(rows, first):
        tokens, learned = sum(d.tokens for d in row), sum(d.learned for d in row)
        console.print(f"row {number} of {total:,}: {len(row)} documents, {learned:,} of {tokens:,} tokens learned")
        for document in row:
            console.print(Text(f"  from {document.start}, {document.learned} of {document.tokens}", style="cyan"))
            parts = [(printable(text), "green" if learned else "dim") for learned, text in document.parts]
            console.print(Text.assemble("  ", *parts))
